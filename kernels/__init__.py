"""GPU kernels, one operation a file, installed as `r1nb.kernels`.

The reference of each operation is plain PyTorch in a notebook; a kernel here never defines it.
Nothing is imported with the package: a launcher imports its compiler when it is called.
"""
