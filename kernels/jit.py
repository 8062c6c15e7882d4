"""CUDA C++ to a running kernel: NVRTC compiles at first use, the disk remembers, the driver runs.

NVRTC comes with every CUDA build of torch, so a reader needs no toolkit; the driver comes with
the GPU. Nothing here runs at import. `python -m r1nb.kernels.jit FOLDER` writes the headers for
nvcc and editors.
"""
import ctypes, functools, glob, hashlib, importlib.util, os, shutil, sys, warnings
from pathlib import Path
from r1nb.core import R1Error, require, write_atomic

HERE = Path(__file__).parent
WIDTHS = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 256)   # N of a wgmma


# --- the instruction that changes with its width -------------------------------------------------

def wgmma(
    name:str,       # C++ name, e.g. `wgmma_fp8`
    shape:str,      # what follows m64nN, e.g. `k32.f32.e4m3.e4m3`
    n:int,          # N, a multiple of 8
    a_regs:bool,    # A from four registers instead of a descriptor
    flags:str,      # the immediates after scale-d, as PTX wants them
    parameters:str, # template parameters those flags use
)->str:             # one device function; acc[N/2] floats a thread
    "Write `acc += A[64,k] B[k,N]`: PTX counts operands by number, so the text depends on N."
    half = n//2; a = half if not a_regs else f'{{%{half}, %{half+1}, %{half+2}, %{half+3}}}'
    b = half + (4 if a_regs else 1)
    out = ', '.join(f'%{i}' for i in range(half))
    bound = ', '.join(f'"+f"(acc[{i}])' for i in range(half))
    left = ', '.join(f'"r"(a[{i}])' for i in range(4)) if a_regs else '"l"(a)'
    words = [w for w in parameters.replace('int', '').split(',') if w.strip()]
    flags = flags.format(*(f'%{b+2+i}' for i in range(len(words))))
    extra = ''.join(f', "n"({w.strip()})' for w in words)
    a_type = 'const u32 (&a)[4]' if a_regs else 'u64 a'
    head = f'template <{parameters}> ' if parameters else ''
    a_text = a if a_regs else f'%{a}'
    return (f'{head}DEVICE void {name}(float (&acc)[{half}], {a_type}, u64 b, int add) {{\n'
            f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{b+1}, 0;\\n"\n'
            f'    "wgmma.mma_async.sync.aligned.m64n{n}{shape} "\n'
            f'    "{{{out}}}, {a_text}, %{b}, p, {flags}; }}"\n'
            f'    : {bound}\n    : {left}, "l"(b), "r"(add){extra});\n}}\n')


@functools.cache
def header()->str:     # the text of wgmma.cuh
    "Every `wgmma` the kernels use, overloaded by the size of the accumulator."
    kinds = [('wgmma_fp8', 'k32.f32.e4m3.e4m3', False, '1, 1', ''),
             ('wgmma_bf16', 'k16.f32.bf16.bf16', False, '1, 1, {0}, {1}', 'int TA, int TB'),
             ('wgmma_bf16_rs', 'k16.f32.bf16.bf16', True, '1, 1, {0}', 'int TB'),
             ('wgmma_f16_rs', 'k16.f32.f16.f16', True, '1, 1, {0}', 'int TB')]
    return '#pragma once\n#include "hopper.cuh"\n' + ''.join(
        wgmma(name, shape, n, regs, flags, parameters)
        for name, shape, regs, flags, parameters in kinds for n in WIDTHS)


def headers()->dict[str,str]:     # name -> text
    "What a kernel may include: the .cuh files of this folder, and the generated one."
    return {p.name: p.read_text() for p in sorted(HERE.glob('*.cuh'))} | {'wgmma.cuh': header()}


# --- compile -------------------------------------------------------------------------------------

@functools.cache
def nvrtc():
    "The run-time compiler: torch's own copy, else a toolkit's."
    spec = importlib.util.find_spec('nvidia')
    roots = spec.submodule_search_locations if spec else []
    places = [f'{root}/*/lib/libnvrtc.so.1[2-9]' for root in roots]
    found = [p for pattern in places for p in sorted(glob.glob(pattern), reverse=True)]
    home = os.environ.get('CUDA_HOME', '/usr/local/cuda')
    for name in found + ['libnvrtc.so.13', 'libnvrtc.so.12', f'{home}/lib64/libnvrtc.so']:
        for part in glob.glob(f'{os.path.dirname(name)}/libnvrtc-builtins.so*'): ctypes.CDLL(part)
        try: return ctypes.CDLL(name)
        except OSError: continue
    raise R1Error('CUDA kernels need NVRTC (libnvrtc.so 12 or later): it comes with a CUDA build '
                  'of torch, or `pip install nvidia-cuda-nvrtc`')


def cache_folder()->Path:
    "Where compiled kernels live: R1NB_CACHE, else the user's cache folder."
    user = Path(os.environ.get('XDG_CACHE_HOME') or Path.home()/'.cache')
    return Path(os.environ.get('R1NB_CACHE') or user/'r1nb')/'kernels'


def cubin(
    file:str,               # a .cu file of this folder
    arch:str='sm_90a',      # the machine code wanted
    defines:dict|None=None, # macros: the shapes compiled in
)->bytes:                   # machine code
    "Compile one file, or read what an earlier run compiled from the same text."
    heads, text = headers(), (HERE/file).read_text()
    options = [f'-arch={arch}', '-std=c++17', '-default-device', '--ptxas-options=-O3']
    options += [f'-D{k}={v}' for k, v in sorted((defines or {}).items())]
    rtc, major, minor = nvrtc(), ctypes.c_int(), ctypes.c_int()
    rtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    said = repr((text, heads, options, major.value, minor.value))
    key = hashlib.sha256(said.encode()).hexdigest()[:24]
    kept = cache_folder()/f'{Path(file).stem}-{arch}-{key}.cubin'
    code = kept.read_bytes() if kept.exists() else b''
    if code[:4] == b'\x7fELF': return code
    print(f'compiling {file} for {arch} (once; kept in {kept.parent})', file=sys.stderr, flush=True)
    code = build(rtc, file, text, heads, options)
    try: kept.parent.mkdir(parents=True, exist_ok=True); write_atomic(kept, code)
    except (OSError, R1Error) as e:      # a full or read-only disk stops nobody
        print(f'not kept, so compiled again next time ({e}): set R1NB_CACHE', file=sys.stderr)
    return code


def build(
    rtc,                   # NVRTC
    file:str,              # for messages
    text:str,              # CUDA C++
    heads:dict[str,str],   # what it may include
    options:list[str],     # the compiler's
)->bytes:                  # machine code
    "Run NVRTC; what it complains of is the error."
    strings = lambda xs: (ctypes.c_char_p*len(xs))(*(x.encode() for x in xs))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    rtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), file.encode(), len(heads),
                           strings(heads.values()), strings(heads.keys()))
    try:
        failed = rtc.nvrtcCompileProgram(program, len(options), strings(options))
        rtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value); rtc.nvrtcGetProgramLog(program, log)
        require(not failed, f'{file} does not compile:\n{log.value.decode()[:4000]}')
        rtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value); rtc.nvrtcGetCUBIN(program, code)
        return code.raw
    finally: rtc.nvrtcDestroyProgram(ctypes.byref(program))


# --- launch --------------------------------------------------------------------------------------

@functools.cache
def driver():
    "The GPU's driver."
    try: return ctypes.CDLL('libcuda.so.1')
    except OSError: raise R1Error('CUDA kernels need an NVIDIA driver: libcuda.so.1 is not here')


def call(name, *args):
    "Call the driver; an error becomes a Python error with the driver's own words."
    cuda = driver(); code = getattr(cuda, name)(*args)
    if not code: return
    words = ctypes.c_char_p(); cuda.cuGetErrorString(code, ctypes.byref(words))
    raise RuntimeError(f'{name}: {(words.value or b"unknown error").decode()} ({code})')


class Attribute(ctypes.Structure):
    "CUlaunchAttribute: which, and a union of 64 bytes."
    _fields_ = [('id', ctypes.c_int), ('pad', ctypes.c_int), ('value', ctypes.c_uint*16)]


class Config(ctypes.Structure):
    "CUlaunchConfig."
    _fields_ = [('grid', ctypes.c_uint*3), ('block', ctypes.c_uint*3), ('smem', ctypes.c_uint),
                ('stream', ctypes.c_void_p), ('attributes', ctypes.POINTER(Attribute)),
                ('count', ctypes.c_uint)]


class Kernel:
    "One compiled entry point, loaded on the current GPU."
    def __init__(self, file, entry, **defines):
        import torch
        self.device = torch.cuda.current_device()
        major, minor = torch.cuda.get_device_capability()
        code = cubin(file, f'sm_{major}{minor}' + 'a'*(major >= 9), defines)
        torch.cuda.synchronize()           # makes torch's context current: the module goes there
        self.module, self.function, self.smem = ctypes.c_void_p(), ctypes.c_void_p(), 0
        call('cuModuleLoadData', ctypes.byref(self.module), code)
        call('cuModuleGetFunction', ctypes.byref(self.function), self.module, entry.encode())

    def __call__(self,
        grid,            # blocks, an int or up to three
        block,           # threads in a block
        *args,           # tensors, ints (32 bits), floats (32 bits), tensor maps, or ctypes values
        smem:int=0,      # dynamic shared memory, bytes
        cluster:int=1,   # blocks (along x) that may read each other's shared memory
        overlap:bool=False, # may start while the kernel before it ends (it must wait by itself)
    ):
        "Launch on torch's current stream."
        import torch
        away = next((a.device for a in args if getattr(a, 'is_cuda', 0) and
                     a.device.index != self.device), None)
        require(not away, f'tensors are on {away}, the current GPU is cuda:{self.device}: call '
                f'torch.cuda.set_device("{away}") first')
        if smem > self.smem:
            call('cuFuncSetAttribute', self.function, 8, ctypes.c_int(smem)); self.smem = smem
        values = [a if isinstance(a, ctypes._SimpleCData) else as_argument(a) for a in args]
        pointers = (ctypes.c_void_p*len(values))(*(ctypes.addressof(v) for v in values))
        wishes = [Attribute(4, 0, (ctypes.c_uint*16)(cluster, 1, 1))]*(cluster > 1)
        wishes += [Attribute(6, 0, (ctypes.c_uint*16)(1))]*overlap
        three = lambda n: (ctypes.c_uint*3)(*((*((n,) if isinstance(n, int) else n), 1, 1)[:3]))
        config = Config(three(grid), three(block), smem, torch.cuda.current_stream().cuda_stream,
                        (Attribute*len(wishes))(*wishes), len(wishes))
        call('cuLaunchKernelEx', ctypes.byref(config), self.function, pointers, None)


def as_argument(a):
    "What the driver reads for one Python value."
    if hasattr(a, 'data_ptr'): return ctypes.c_void_p(a.data_ptr())
    if a is None: return ctypes.c_void_p(0)
    if isinstance(a, float): return ctypes.c_float(a)
    return ctypes.c_int(a) if isinstance(a, int) else a


@functools.cache
def on_device(device, file, entry, defines): return Kernel(file, entry, **dict(defines))


def kernel(
    file:str,     # a .cu file of this folder
    entry:str,    # an `extern "C" __global__` in it
    **defines,    # macros: the shapes compiled in
)->Kernel:        # call it as k(grid, block, *args, smem=, cluster=)
    "The compiled kernel for the current GPU: from memory, from disk, or from the compiler."
    import torch
    return on_device(torch.cuda.current_device(), file, entry, tuple(sorted(defines.items())))


TYPES = {'uint8': 0, 'float8_e4m3fn': 0, 'float8_e5m2': 0, 'int8': 0, 'int32': 3, 'float16': 6,
         'float32': 7, 'bfloat16': 9}     # CUtensorMapDataType
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}   # bytes -> CUtensorMapSwizzle


def tensor_map(
    t,                  # the tensor in GPU memory, up to 5 dimensions, last one contiguous
    box:tuple,          # what one copy moves: a length for each dimension
    swizzle:int=128,    # bytes of the pattern that spreads rows over the banks: 0, 32, 64 or 128
    promote:int=256,    # bytes that a miss brings into L2: 0, 64, 128 or 256
):
    "Describe a tensor to the copy engine (CUDA driver API, cuTensorMapEncodeTiled)."
    rank, item = t.dim(), t.element_size()
    require(len(box) == rank, f'box {box} has {len(box)} sides for a tensor of {rank}')
    steps = [s*item for s in t.stride()[:-1]]
    require(t.stride(-1) == 1 and t.data_ptr() % 16 == 0 and all(s % 16 == 0 for s in steps),
            f'the copy engine needs rows that start at multiples of 16 bytes, not every {steps}')
    room = (ctypes.c_ubyte*192)()            # a tensor map is 128 bytes at a multiple of 64
    place = (ctypes.c_ubyte*128).from_buffer(room, -ctypes.addressof(room) % 64)
    longs = lambda xs: (ctypes.c_uint64*max(1, len(xs)))(*xs)
    words = lambda xs: (ctypes.c_uint32*len(xs))(*xs)
    call('cuTensorMapEncodeTiled', place, TYPES[str(t.dtype).split('.')[-1]], rank,
         ctypes.c_void_p(t.data_ptr()), longs(t.shape[::-1]), longs(steps[::-1]),
         words(box[::-1]), words([1]*rank), 0, SWIZZLES[swizzle],
         {0: 0, 64: 1, 128: 2, 256: 3}[promote], 0)
    return place


# --- which implementation ------------------------------------------------------------------------

def missing(
    impl:str,                     # 'cuda' or 'triton'
    device,                       # where the tensors are
    capability:tuple=(9, 0),      # the oldest GPU that `cuda` will do with
)->str:                           # '' when nothing is missing
    "Why an implementation cannot run here, in a few words."
    import torch
    if torch.device(device).type != 'cuda': return f'the tensors are on {device}'
    if torch.version.hip: return 'the GPU is not from NVIDIA'
    have = torch.cuda.get_device_capability(device)
    named = f'compute capability {have[0]}.{have[1]}'
    if impl == 'triton':
        if have < (8, 9): return f'{named} has no eight-bit numbers, 8.9 and later do'
        if not importlib.util.find_spec('triton'): return 'triton is not installed'
        return '' if any(map(shutil.which, (os.environ.get('CC') or 'cc', 'gcc', 'clang'))) else \
            'triton needs a C compiler: install gcc or set CC'
    if have[0] != capability[0]: return f'{named} is not {capability[0]}.x'
    try: nvrtc()
    except R1Error as e: return str(e)
    return ''


def pick(
    impl:str|None,             # the one asked for, or None for the fastest that runs here
    device,                    # where the tensors are
    order=('cuda', 'triton', 'ref'), # fastest first; what an operation has
    capability:tuple=(9, 0),   # the oldest GPU that `cuda` will do with
)->str:                        # one of `order`
    "The implementation to use: for one that cannot run the next best, and a line that says why."
    require(impl in (None, *order), f'impl={impl!r} is none of {", ".join(order)}')
    whys = []
    for name in order if impl is None else order[order.index(impl):]:
        why = '' if name == 'ref' else missing(name, device, capability)
        if not why: break
        whys.append(why)
    else: name = 'ref'
    if whys and (impl or str(device).startswith('cuda')):   # on a CPU, None means the reference
        warnings.warn(f'impl={impl or order[0]!r} cannot run here ({whys[0]}): '
                      f'using the next best, {name!r}')
    return name


if __name__ == '__main__':
    if len(sys.argv) != 2: sys.exit('usage: python -m r1nb.kernels.jit FOLDER')
    folder = Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
    for name, text in headers().items(): (folder/name).write_text(text)
