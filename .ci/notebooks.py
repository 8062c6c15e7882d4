"""Run every notebook top to bottom, two at a time, under the house's time limits.

    python .ci/notebooks.py [NN_topic ...]
A cell has 10 s, a notebook 60 s. What is too slow beside another one is judged again, alone.
Cells tagged with a flag of settings.ini (tst_flags) are skipped, as `nbdev_test` does.
"""
import configparser, json, os, re, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

CELL, NOTEBOOK, GRACE = 10, 60, 4   # seconds; a cell is stopped at CELL*GRACE
ROOT = Path(__file__).resolve().parent.parent
ini = configparser.ConfigParser(); ini.read(ROOT/'settings.ini')
FLAGS = '|'.join(ini['DEFAULT']['tst_flags'].split())
SKIP = re.compile(rf'^\s*#\s*\|\s*(({FLAGS})\s*:?\s*$|eval\s*:\s*false)', re.M)

def execute(path, threads):
    "(seconds, slowest cell, error, cells that print something but store nothing) of one notebook"
    os.environ.update(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE='1',
                      PYDEVD_DISABLE_FILE_VALIDATION='1')
    nb, start, slowest, bare = nbformat.read(path, 4), time.time(), (0, 0), []
    wires = tempfile.TemporaryDirectory()      # sockets of its own: a port may be somebody else's
    kernel = dict(transport='ipc', connection_file=f'{wires.name}/kernel.json')
    client = NotebookClient(nb, timeout=CELL*GRACE, resources={'metadata': {'path': path.parent}},
                            extra_arguments=['--log-level=ERROR'],
                            config=Config(KernelManager=kernel))
    with wires, client.setup_kernel():
        for i, cell in enumerate(nb.cells):
            if cell.cell_type != 'code' or SKIP.search(cell.source): continue
            stored, t = cell.outputs, time.time()
            try: client.execute_cell(cell, i)
            except CellTimeoutError: return time.time()-start, (time.time()-t, i), 'stopped', []
            except (CellExecutionError, DeadKernelError) as e:
                return time.time()-start, slowest, f'cell {i}:\n{shorten(cell.source, str(e))}', []
            slowest = max(slowest, (time.time()-t, i))
            if not stored and any(o.get('name') != 'stderr' for o in cell.outputs): bare.append(i)
    return time.time()-start, slowest, None, bare

def shorten(source, error):
    lines = re.sub(r'\x1b\[[0-9;]*m', '', error).strip().splitlines()
    return '\n'.join(f'    {s}' for s in source.splitlines()[:6] + ['  …'] + lines[-12:])

def slow(seconds, slowest, error): return error == 'stopped' or seconds > NOTEBOOK or slowest[0] > CELL

def verdict(path, result):
    seconds, (most, cell), error, bare = result
    wrong = []
    if slow(seconds, (most, cell), error):
        wrong.append(f'too slow (a notebook has {NOTEBOOK} s, a cell {CELL} s)')
    elif error: wrong.append(error)
    if bare: wrong.append(f'cells {bare} have outputs that are not stored: run the notebook, save, nbdev_clean')
    print(f'{path.stem:20s}{seconds:6.1f} s   slowest cell {cell:3d} {most:5.1f} s', *wrong, flush=True)
    return not wrong

def main(stems):
    paths = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if not stems or p.stem in stems)
    skipped = [p for p in paths if 'skip_exec: true' in p.read_text()]
    paths = [p for p in paths if p not in skipped]
    os.system(f'{sys.executable} -c "import torch, matplotlib.pyplot"')   # once, so that no cell pays the cold disk
    with ProcessPoolExecutor(2) as pool:
        jobs = [(p, pool.submit(execute, p, 1)) for p in paths]
        results = [(p, j.result()) for p, j in jobs]
    ok = True
    for p, r in results:
        if slow(*r[:3]): r = execute(p, os.cpu_count())
        ok = verdict(p, r) and ok
    print(f'{len(paths)} notebooks, {sum(r[0] for _, r in results):.0f} s of running')
    return ok

if __name__ == '__main__': sys.exit(not main(sys.argv[1:]))
