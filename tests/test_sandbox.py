"""The sandbox under attack: hostile programs, planted forgeries, published reference solutions."""
import json, os, socket, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import pytest
from r1nb.core import R1Error
from r1nb.jail import Limits, pack, unpack
from r1nb.sandbox import (Sandbox, Tests, isolation, probe, run_tests, tests_of as made_tests,
                          whole_program)
from r1nb.tasks import load
sys.path.insert(0, str(Path(__file__).parent))
import hostile

DATA = Path(os.environ.get('R1NB_DATA', Path(__file__).parent.parent.parent/'shared/data'))
Tests.__test__ = False
GOOD, TESTS = 'def f(x): return x*x', 'assert f(3) == 9\nassert f(-2) == 4'
STRONG = [level for level in ('bwrap', 'namespaces') if probe(level)[0]]
needs_walls = pytest.mark.skipif(not STRONG, reason=f'no isolation here: {isolation()}')
needs_data = pytest.mark.skipif(not (DATA/'mbpp').is_dir(), reason=f'no data at {DATA}')
SHORT = Limits(seconds=.8, cpu=2)

def filtered():
    "The filters alone, without namespaces; not where root's Python is hidden from all others."
    if not probe('weak')[1].endswith('Landlock on'): return []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with Sandbox(1, SHORT, 'weak', allow_weak=True) as b:
            return ['weak']*int(b.run('import urllib.request\n' + GOOD, TESTS).answer)

@pytest.fixture(scope='module', params=STRONG + filtered())
def box(request):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with Sandbox(1, SHORT, request.param, allow_weak=True) as b: yield b

def fails(box, program, tests=TESTS):
    v = box.run(program, tests)
    assert v.answer == 0, v
    return v.reason

@needs_walls
def test_right_passes_wrong_fails(box):
    assert box.run(GOOD, TESTS).answer == 1
    assert 'Assertion' in fails(box, 'def f(x): return x+5')
    assert 'SyntaxError' in fails(box, 'def f(x) return')
    assert 'NameError' in fails(box, 'x = 1')

def test_weak_only_on_demand():
    limits = Limits(seconds=1.)
    with pytest.raises(R1Error, match='allow-weak-sandbox'): Sandbox(1, limits, 'weak')
    with pytest.warns(UserWarning, match='WEAK SANDBOX'):
        box = Sandbox(1, limits, 'weak', allow_weak=True)
    with box:
        assert box.run(GOOD, TESTS).answer == 1
        assert box.run('import sys; sys.exit(0)', TESTS).answer == 0
        assert 'time' in box.run('while True: pass', TESTS).reason
        assert box.run('x = bytearray(1<<33)', TESTS).answer == 0


# ---- the battery -----------------------------------------------------------------------------
# An escape returns the right value only if the act succeeds, so a pass would be an escape.
ESCAPES = {
    'passwd': 'open("/etc/passwd").read()', 'canary': 'open(CANARY).read()',
    'canary by dots': 'open("../../../.."+CANARY).read()',
    'canary by symlink': 'os.symlink(CANARY, "s"); open("s").read()',
    'canary by symlinked folder': 'os.symlink("/tmp", "d"); os.listdir("d")[0]',
    'canary by hard link': 'os.link(CANARY, "h"); open("h").read()',
    'canary by folder handle': 'd = os.open("/", os.O_RDONLY); open(os.open(".."+CANARY, 0, '
        'dir_fd=d))',
    'canary written': 'open(CANARY, "w").write("x")', 'canary removed': 'os.remove(CANARY)',
    'environment': 'os.environ["R1NB_SECRET"]', 'home': 'os.listdir("/home")',
    'environment of self': 'open("/proc/self/environ").read()',
    'environment of parent': 'open(f"/proc/{os.getppid()}/environ").read()',
    'memory of process 1': 'open("/proc/1/mem", "rb").read(1)',
    'memory of self': 'open("/proc/self/mem", "r+b")',
    'root of self': 'os.listdir("/proc/self/root")',
    'open files of parent': 'os.listdir(f"/proc/{os.getppid()}/fd")',
    'mounts': 'open("/proc/mounts").read()',
    'kernel settings': 'open("/sys/kernel/uevent_helper").read()', 'disk': 'open("/dev/vda", "rb")',
    'make a disk': 'os.mknod("v", 0o60600, os.makedev(254, 0)); open("v", "rb")',
    'write the library': 'open(os.__file__, "a").write("x")',
    'write the root': 'open("/x", "w").write("x")', 'write /tmp': 'open("/tmp/r1nb-escape", "w")',
    'rename the library': 'os.rename(os.__file__, os.__file__+"x")', 'remove the tree':
        'shutil.rmtree("/"); 1/0', 'chroot': 'os.mkdir("c"); os.chroot("c")',
    'become root': 'os.setuid(0)', 'become root by groups': 'os.setgroups([0])',
    'set-uid file': 'os.chown("/box", 0, 0)',
    'mount': 'ok(libc.mount(b"none", b"/box", b"tmpfs", 0, None))',
    'unmount': 'ok(libc.umount2(b"/box", 2))', 'unshare': 'ok(libc.unshare(0x10000000))',
    'setns': 'ok(libc.setns(0, 0))', 'pivot_root': 'ok(libc.pivot_root(b".", b"."))',
    'trace the parent': 'ok(libc.ptrace(16, os.getppid(), 0, 0))',
    'trace process 1': 'ok(libc.ptrace(16, 1, 0, 0))',
    'raw read of the parent': 'ok(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0))',
    'kill the parent': 'os.kill(os.getppid(), 9)', 'kill process 1': 'os.kill(1, 9)',
    'kill everyone': 'os.kill(-1, 9)', 'stop the parent': 'os.kill(os.getppid(), 19)',
    'signal the group': 'os.killpg(0, 0)', 'thread signal': 'ok(libc.syscall(234, 1, 1, 9))',
    'fork': 'os.fork() or os._exit(0)', 'fork bomb': 'while True: os.fork()',
    'raw fork': 'libc.syscall(57) > 0 or 1/0', 'raw vfork': 'libc.syscall(58) > 0 or 1/0',
    'raw clone': 'libc.syscall(56, 17, 0, 0, 0, 0) > 0 or 1/0',
    'shell': 'os.system("true") == 0 or 1/0',
    'subprocess': 'subprocess.run(["true"])', 'spawn': 'os.posix_spawn("/bin/true", ["true"], {})',
    'exec': 'os.execv(sys.executable, [sys.executable, "-c", "0"])',
    'multiprocessing': 'p = multiprocessing.Process(target=int); p.start()',
    'connect': 'socket.create_connection(("127.0.0.1", PORT), 1)',
    'listen': 'socket.create_server(("127.0.0.1", 0))',
    'datagram': 'socket.socket(2, 2).sendto(b"x", ("127.0.0.1", PORT))',
    'unix socket': 'socket.socket(socket.AF_UNIX).connect("/run/x")',
    'netlink': 'socket.socket(16, 3, 0)', 'name server': 'socket.gethostbyname("example.org")',
    'download': 'urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=1)',
    'raw socket call': 'ok(libc.syscall(41, 2, 1, 0))',
    'ring': 'ok(libc.syscall(425, 8, bytes(120)))',
    'kernel program': 'ok(libc.syscall(321, 0, bytes(64), 64))',
    'keyring': 'ok(libc.syscall(250, 0, -3, 1))',
    'process handle': 'ok(libc.syscall(434, os.getppid(), 0))',
    'nameless file': 'os.memfd_create("m")',
    'shared memory': 'ok(libc.shmget(1, 4096, 0o1600))',
    'old machine': 'ok(libc.personality(0x40000))',
    'limits of the parent': 'resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)',
    'lift a limit': 'resource.setrlimit(resource.RLIMIT_AS, (1<<40, 1<<40))',
    'lift another': 'resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))'}

# These use up something, or fall over; none can end in a pass.
FLOODS = {
    'memory': 'bytearray(1<<40)',
    'memory in steps': 'a = []\n  while True: a.append(bytearray(1<<24))',
    'loop': 'while True: pass', 'sleep': 'time.sleep(99)', 'huge power': '10**10**10',
    'catching loop': 'while True:\n    try:\n      while True: pass\n    except BaseException: '
        'pass',
    'limits ignored': 'signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n  while True: pass',
    'backtracking': 're.match("(a+)+$", "a"*99+"b")',
    'one big file': 'open("x", "wb").write(bytes(1<<26)); return 0',
    'many files': 'for i in range(10**6): open(str(i), "w").write("x"*4000)',
    'deep folders': 'for i in range(9999): os.mkdir("d"); os.chdir("d")',
    'locked folder': 'os.mkdir("d"); open("d/x", "w"); os.chmod("d", 0); return 0',
    'handles': 'a = [open("/dev/null") for _ in range(999)]',
    'threads': 'for _ in range(9999): threading.Thread(target=time.sleep, args=(99,)).start()',
    'recursion': 'return f(x)', 'deep recursion': 'sys.setrecursionlimit(10**9); return f(x)',
    'null pointer': 'ctypes.string_at(0)', 'abort': 'os.abort()',
    'terminal flood': 'while True: print("x"*9999)',
    'error flood': 'while True: sys.stderr.write("x"*9999)',
    'huge answer': 'return "x"*(1<<27)', 'endless answer': 'return itertools.count()',
    'deep answer': 'a = []\n  for _ in range(10**5): a = [a]\n  return a',
    'answer in itself': 'a = []; a.append(a); return a',
    'slow hash': 'return {2**61-1: 0} | {i*(2**61-1): 0 for i in range(3000)}'}

HEAD = '''import ctypes, itertools, multiprocessing, os, re, resource, shutil, signal, socket
import fcntl, mmap, struct, subprocess, sys, threading, time, urllib.request
libc = ctypes.CDLL(None)
def ok(code): assert code >= 0
def call(*numbers): ok(libc.syscall(*numbers))
'''
ESCAPES |= hostile.ESCAPES

@pytest.fixture(scope='module')
def host():
    "What must not change: a secret file, a secret variable, a listening port, the processes."
    os.environ['R1NB_SECRET'] = 'canary'
    with tempfile.TemporaryDirectory() as d, socket.create_server(('127.0.0.1', 0)) as server:
        os.chmod(d, 0o755)
        path = Path(d)/'canary'
        path.write_text('canary')
        path.chmod(0o666)
        server.setblocking(False)
        yield dict(CANARY=str(path), PORT=server.getsockname()[1])
        assert path.read_text() == 'canary' and not Path('/tmp/r1nb-escape').exists()
        with pytest.raises(BlockingIOError): server.accept()
    del os.environ['R1NB_SECRET']

def children():
    "The live processes below this one."
    if not Path('/proc').is_dir(): return set()
    up = {}
    for p in Path('/proc').glob('[0-9]*/stat'):
        try: up[int(p.parent.name)] = int(p.read_text().rsplit(')', 1)[1].split()[1])
        except OSError: pass
    found, fresh = set(), {os.getpid()}
    while fresh: fresh = {c for c, p in up.items() if p in fresh} - found; found |= fresh
    return found

def attack(host, act, after='return x*x'):
    names = '\n'.join(f'{k} = {v!r}' for k, v in host.items())
    return f'{HEAD}{names}\ndef f(x):\n  {act}\n  {after}\n'

@needs_walls
@pytest.mark.parametrize('name', ESCAPES)
def test_no_escape(box, host, name):
    fails(box, attack(host, ESCAPES[name]))

@needs_walls
@pytest.mark.parametrize('name', FLOODS)
def test_no_flood(box, host, name):
    start = time.time()
    fails(box, attack(host, FLOODS[name], 'return 0'))
    assert time.time() - start < SHORT.seconds + 3

@needs_walls
def test_what_is_allowed(box, host):
    for act in ('open("x", "w").write("y"); open("x").read()', 'print("hello")',
    'import random, json',
                't = threading.Thread(target=int); t.start(); t.join()',
                'os.mkdir("d"); os.rmdir("d")'):
        v = box.run(attack(host, act), TESTS)
        assert v.answer == 1, (act, v)

@needs_walls
def test_scratch_is_fresh_and_nothing_lives_on(box):
    box.run('open("left", "w").write("x")\nimport threading, time\n'
            'threading.Thread(target=time.sleep, args=(99,)).start()\ndef f(x): return x*x', TESTS)
    assert 'fail' not in box.run('import os\ndef f(x): return os.listdir(".")',
    'assert f(1) == []').reason
    assert box.run('import os\ndef f(x): return os.listdir(".")', 'assert f(1) == []').answer == 1

@needs_walls
def test_host_unharmed(host):
    "No process is left over, and the jail of the last attack still answers or was replaced."
    before = children()
    with Sandbox(1, SHORT) as box:
        for act in ('while True: os.fork()', 'os.kill(-1, 9)', 'while True: pass'):
            fails(box, attack(host, act))
        assert box.run(GOOD, TESTS).answer == 1
        assert len(children() - before) <= 3
    assert children() <= before

# ---- forgeries: wrong programs that would like to pass ---------------------------------------
FDS = 'import os, json\nd = json.dumps(%s).encode(); d = b"%%8d" %% len(d) + d\n' \
      'for fd in range(64):\n  try: os.write(fd, d)\n  except OSError: pass\n'
WRONG = 'def f(x): return 0\n'
FORGERIES = {
    'exit': 'import sys; sys.exit(0)', 'hard exit': 'import os; os._exit(0)',
    'exit inside': 'import sys\ndef f(x): sys.exit(0)',
    'hard exit inside': 'import os\ndef f(x): os._exit(0)',
    'exit at the end': WRONG+'import atexit, os; atexit.register(os._exit, 0)',
    'prints a pass': WRONG+'print("pass", ["pass", "tests", "every test passed"], "OK", "1 '
        'passed")',
    'verdict on every handle': FDS % '["pass", "tests", "every test passed"]' + WRONG,
    'ready-made replies': FDS % '{"value": 9}'*4 + WRONG,
    'replies without end': FDS.replace('for fd', 'while True:\n for fd').replace('\n  ',
        '\n   ') % '{"value": 9}',
    'reply of half a message': WRONG+'import os\n[os.write(fd, b"      99{") for fd in (3,)]',
    'reply that is no length': WRONG+'import os\nos.write(3, b"passpass")',
    'reply of negative length': WRONG+'import os\nos.write(3, b"      -1")',
    'reply that is no JSON': WRONG+'import os\nos.write(3, b"       4pass")',
    'reply with a strange type': FDS % '{"value": {"__class__": 1}}' + WRONG,
    'reply with a function': FDS % '{"value": {"type": "exec"}}' + WRONG,
    'error that is an exit': FDS % '{"error": "SystemExit", "text": 0}' + WRONG,
    'equal to all': 'class A:\n  __eq__ = lambda s, o: True\n  __ne__ = lambda s, o: False\ndef '
        'f(x): return A()',
    'number equal to all': 'class A(int):\n  __eq__ = lambda s, o: True\n  __hash__ = None\ndef '
        'f(x): return A(0)',
    'list equal to all': 'class A(list):\n  __eq__ = lambda s, o: True\ndef f(x): return A()',
    'text equal to all': 'class A(str):\n  __eq__ = lambda s, o: True\ndef f(x): return A("pass")',
    'near to all': 'class A(float):\n  __sub__ = __rsub__ = __abs__ = lambda s, *o: 0.0\ndef '
        'f(x): return A(0)',
    'true for all': 'class A:\n  __bool__ = lambda s: True\n  __eq__ = lambda s, o: s\ndef '
        'f(x): return A()',
    'claims a class': 'class A:\n  __class__ = int\n  __eq__ = lambda s, o: True\ndef f(x): '
        'return A()',
    'meta': 'class M(type):\n  __eq__ = lambda s, o: True\n  __hash__ = None\nclass '
        'A(metaclass=M): pass\ndef f(x): return A',
    'raises in eq': 'class A:\n  def __eq__(s, o): raise SystemExit(0)\ndef f(x): return A()',
    'raises in repr': 'class A:\n  def __repr__(s): raise SystemExit(0)\ndef f(x): return A()',
    'raises exit': 'def f(x): raise SystemExit(0)',
    'raises interrupt': 'def f(x): raise KeyboardInterrupt',
    'raises end': 'def f(x): raise GeneratorExit',
    'raises stop': 'def f(x): raise StopIteration(9)',
    'raises its own': 'class SystemExit(BaseException): pass\ndef f(x): raise SystemExit',
    'raises with bad text': 'class E(Exception):\n  def __str__(s): raise SystemExit(0)\ndef '
        'f(x): raise E',
    'no assertions': 'import builtins\n'
        'builtins.AssertionError = type("A", (SystemExit,), {})\n'+WRONG,
    'no errors': 'import builtins\n'
        'builtins.Exception = builtins.BaseException = SystemExit\n'+WRONG,
    'all is well': 'import builtins\nbuiltins.all = builtins.any = builtins.bool = lambda *a: '
        'True\n'+WRONG,
    'exec replaced': 'import builtins\nbuiltins.exec = builtins.compile = lambda *a: None\n'+WRONG,
    'checker patched': 'import __main__ as m\nm.judge = m._judge = m.pack = lambda *a: 9\n'+WRONG,
    'wire patched': 'import __main__ as m, json\njson.dumps = lambda x: \'["pass", "tests", '
        '""]\'\n'+WRONG,
    'packs lies': 'import __main__ as m\nm.pack = lambda x, k: {"ref": 0}\n'+WRONG,
    'reads the tests': 'import gc\nfound = [o for o in gc.get_objects() if isinstance(o, dict) and '
        '"setup" in o and "entry" in o]\ndef f(x): return x*x if found else 0',
    'reads stdin': 'import sys, os\nt = os.read(0, 9999) or sys.stdin.read()\ndef f(x): return '
        'x*x if t else 0',
    'reads the frames': 'import sys\ndef f(x):\n  g = sys._getframe()\n  while g:\n'
        '    if "assert" in str(g.f_locals.get("tests", "")): return x*x\n    g = g.f_back\n  '
            'return 0',
    'reads other handles': 'import os\ndef f(x):\n  for fd in range(64):\n    if fd != 3:\n     '
        ' try:\n'
        '        if os.read(fd, 9): return x*x\n      except OSError: pass\n  return 0',
    'traces': 'import sys\nsys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)\n'+WRONG,
    'left-over thread': 'import threading, os, time\ndef go():\n  time.sleep(.05); os.write(3, '
        'b"       3[1]")\n'
        'threading.Thread(target=go).start()\n'+WRONG,
    'signal handler': 'import signal, os\nfor s in range(1, 20):\n  try: signal.signal(s, '
        'lambda *a: os._exit(0))\n'
        '  except OSError: pass\n'+WRONG, 'ends the loop': 'f = 3',
        'f is a class': 'class f:\n  def __init__(s, x): pass',
    'nan': 'def f(x): return float("nan")',
    'optimised': 'import sys\nsys.flags = None; __debug__' + '\n'+WRONG,
    'import hook': 'import sys\nsys.meta_path.clear(); sys.modules.clear()\n'+WRONG,
    'null bytes': 'def f(x): return 0\0', 'not Python': 'return 9', 'nothing': '',
    'a lone surrogate': '\ud800'}

FORGERIES |= hostile.FORGERIES

@needs_walls
@pytest.mark.parametrize('name', FORGERIES)
def test_no_forgery(box, name): fails(box, FORGERIES[name])

HELPED = {  # a program that replaces what the tests lean on: (program, tests)
    'isclose': ('def isclose(*a, **k): return True\nclass math:\n  isclose = isclose\ndef f(x): '
        'return 0',
                'assert math.isclose(f(2), 4)'),
    'len': ('def len(x): return 3\ndef f(x): return []', 'assert len(f(1)) == 3'),
    'abs': ('def abs(x): return 0\ndef f(x): return 7', 'assert abs(f(1) - 1) < 1e-6'),
    'sorted': ('def sorted(x): return [1]\ndef f(x): return [2]', 'assert sorted(f(1)) == [1]'),
    'helper of the setup': ('def poly(*a): return 0\ndef f(x): return 99',
        Tests('assert abs(poly([1, 1], f([1, 1]))) < 1e-4', 'def poly(c, x): return c[0]+c[1]*x',
            'f')),
    'not equal': ('class A: pass\ndef f(x): return A()', 'assert f(1) != 2'),
    'not': ('class A:\n  __bool__ = lambda s: False\ndef f(x): return A()', 'assert not f(1)'),
    'true': ('class A: pass\ndef f(x): return A()', 'assert f(1)'),
    'swallowed': ('def f(x): raise SystemExit(0)', 'try: r = f(1)\nexcept Exception: r = '
        '0\nassert r == 1')}

@needs_walls
@pytest.mark.parametrize('name', HELPED)
def test_tests_lean_on_nothing_of_the_program(box, name): fails(box, *HELPED[name])

@needs_walls
@pytest.mark.parametrize('name', hostile.HOLLOW)
def test_hollow_tests_pass_nobody(box, name): fails(box, *hostile.HOLLOW[name])

def honest(box):
    "Whoever fails, and why; a Python that the jail's user cannot read lends no more modules."
    said = {name: box.run(*pair) for name, pair in hostile.HONEST.items()}
    return {k: v.reason for k, v in said.items() if not v.answer and 'NotFound' not in v.reason}

@needs_walls
def test_honest_programs_of_odd_shapes_pass(box): assert honest(box) == {}

def test_the_battery_is_large():
    assert sum(map(len, (ESCAPES, FLOODS, FORGERIES, HELPED, hostile.HOLLOW))) >= 340

# ---- values and published sets ---------------------------------------------------------------
@needs_walls
def test_values_cross_unchanged(box):
    for text in ('(1, [2.5, {3}])', '{"a": (None, True)}', '2**300', '-7.1e-300', 'float("inf")',
    'b"\\xff"',
                 'range(3)', 'frozenset([1])', '1j', '"\\ud800"', '{(1, 2): [3]}', 'int',
                 '__import__("decimal").Decimal("1.10")'):
        v = box.run('def f(x): return x', f'v = {text}\nassert f(v) == v and type(f(v)) is type(v)')
        assert v.answer == 1, (text, v)
    assert box.run('def f(n): return (i for i in range(n))',
    'assert list(f(3)) == [0, 1, 2]').answer == 1
    assert box.run('class Node:\n  def __init__(s, v): s.v, s.next = v, None\ndef f(n): return '
        'n.next.v',
                   'a = Node(1)\na.next = Node(2)\nassert f(a) == 2').answer == 1

def graded(rows):
    for r in rows:
        if 'def check(candidate):' in r['test'] and 'test_check()' not in r['test']:
            yield r['solution'], Tests(f'{r["test"]}\ncheck({r["entry_point"]})', r['prompt'],
            r['entry_point'])
        else: yield r['solution'], Tests(r['test'], '', r['entry_point'])

@needs_walls
@needs_data
@pytest.mark.parametrize('name', ['humaneval', 'mbpp'])
def test_reference_solutions_pass(name):
    problems = load(name, DATA)[::4]           # measure_sandbox.py runs them all
    with Sandbox(2, Limits(seconds=20., cpu=20)) as box:
        said = box.run_all([(whole_program(p, p.gold), made_tests(p)) for p in problems])
    assert [(p.id, v) for p, v in zip(problems, said) if v.answer != 1] == []

@needs_walls
@needs_data
def test_agrees_with_the_graders():
    rows = [json.loads(line) for line in (DATA/'code_graded/reflexion_runs.jsonl').open()][::3]
    with Sandbox(2, Limits(seconds=10., cpu=10)) as box: said = box.run_all(graded(rows))
    assert sum((v.answer == 1) == r['rerun_passed'] for v, r in zip(said, rows)) >= .98*len(rows)
