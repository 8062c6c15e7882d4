"""More hostile programs, tests that test nothing, and honest programs of odd shapes.

Escapes return the right value only if the act succeeds; forgeries are wrong or never finish;
a hollow test must fail whatever the program does; an honest program must pass.
"""
ESCAPES = {
    'sigio to pid1':
        'fcntl.fcntl(3, fcntl.F_SETOWN, 1); fcntl.fcntl(3, 10, signal.SIGKILL); fcntl.f'
        'cntl(3, fcntl.F_SETFL, os.O_ASYNC)',
    'sigio owner parent': 'fcntl.fcntl(3, fcntl.F_SETOWN, os.getppid())',
    'sigio owner_ex': 'fcntl.fcntl(3, 15, struct.pack("ii", 1, os.getppid()))',
    'ioctl fiosetown': 'fcntl.ioctl(3, 0x8901, struct.pack("i", os.getppid()))',
    'inotify old': 'call(253)',
    'fanotify': 'call(300, 0, 0)',
    'sched idle parent': 'os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))',
    'sched affinity parent': 'os.sched_setaffinity(os.getppid(), {0})',
    'sched attr parent':
        'call(314, os.getppid(), struct.pack("IIQiIQQQ", 48, 0, 0, 19, 0, 0, 0, 0), 0)',
    'ioprio parent': 'call(251, 1, os.getppid(), (3<<13)|7)',
    'nice parent': 'os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)',
    'kcmp parent': 'call(312, os.getpid(), os.getppid(), 0, 0, 0)',
    'process_madvise': 'call(440, 3, 0, 0, 0, 0)',
    'process_mrelease': 'call(448, 3, 0)',
    'memfd_secret': 'call(447, 0)',
    'old aio': 'c = ctypes.c_ulong(0); call(206, 8, ctypes.byref(c))',
    'io_uring register': 'call(427, 3, 0, 0, 0)',
    'bind wire abstract': 's = socket.socket(fileno=os.dup(3)); s.bind("\\0r1nb-x")',
    'bind wire path': 's = socket.socket(fileno=os.dup(3)); s.bind("sock"); os.stat("sock")',
    'vsock': 'socket.socket(40, 1)',
    'packet': 'socket.socket(17, 3)',
    'alg': 'socket.socket(38, 5)',
    'unix abstract': 'socket.socket(1,1).connect("\\0/tmp/.X11-unix/X0")',
    'quotactl': 'call(179, 0x80000100, 0, 0, 0)',
    'syslog': 'ok(libc.klogctl(3, ctypes.create_string_buffer(100), 100))',
    'reboot': 'call(169, 0xfee1dead, 672274793, 0x4321fedc, 0)',
    'swapon': 'call(167, b"/box/x", 0)',
    'settime': 'time.clock_settime(time.CLOCK_REALTIME, 0)',
    'hostname': 'socket.sethostname("x")',
    'module': 'call(313, 3, b"", 0)',
    'kexec': 'call(246, 0, 0, 0, 0)',
    'iopl': 'call(172, 3)',
    'acct': 'call(163, b"/box/a")',
    'vhangup': 'call(153)',
    'userfaultfd': 'call(323, 0)',
    'perf': 'call(298, bytes(128), 0, -1, -1, 0)',
    'name_to_handle':
        'call(303, -100, b"/", ctypes.create_string_buffer(b"\\x80\\0\\0\\0"+bytes(130)'
        '), ctypes.byref(ctypes.c_int()), 0)',
    'mount_setattr': 'call(442, -100, b"/", 0, bytes(32), 32)',
    'open_tree': 'call(428, -100, b"/", 1)',
    'fspick': 'call(433, -100, b"/", 0)',
    'clone newuser thread': 'call(56, 0x10010000|0x100|0x800, 0, 0, 0, 0)',
    'i386 open':
        'code = bytes.fromhex("b805000000" "bb00000000" "31c9" "31d2" "cd80" "c3")\n  m'
        ' = mmap.mmap(-1, 4096, prot=7); m.write(code)\n  a = ctypes.addressof(ctypes.c'
        '_char.from_buffer(m)); r = ctypes.CFUNCTYPE(ctypes.c_int)(a)()\n  if r < 0: ra'
        'ise OSError(-r, "x")',
    'cgroup write': 'open("/sys/fs/cgroup/cgroup.procs", "w")',
    'sysrq': 'open("/proc/sysrq-trigger","w").write("b")',
    'core_pattern': 'open("/proc/sys/kernel/core_pattern").read()',
    'proc self fd': 'os.listdir("/proc/self/fd")',
    'proc stat': 'open("/proc/stat").read()',
    'cpuinfo': 'open("/proc/cpuinfo").read()',
    'hosts': 'open("/etc/hosts").read()',
    'resolv': 'open("/etc/resolv.conf").read()',
    'tty': 'open("/dev/tty")',
    'kmsg': 'open("/dev/kmsg")',
    'mem': 'open("/dev/mem","rb")',
    'fuse': 'open("/dev/fuse","rb")',
    'shm': 'open("/dev/shm/x","w")',
    'ptmx': 'os.openpty()',
    'var tmp': 'open("/var/tmp/x","w")',
    'run': 'os.listdir("/run")',
    'root home': 'os.listdir(os.path.expanduser("~"))',
    'pwd module': 'import pwd\n  pwd.getpwuid(0)',
    'import harness': 'import r1nb',
    'harness by path': 'sys.path.append(os.path.expanduser("~")); import r1nb',
    'dev mknod null': 'os.mknod("n", 0o020666, os.makedev(1,1)); open("n","rb").read(1)',
    'xattr': 'open("s","w"); os.setxattr("s","security.capability",b"x"); 1',
    'hard link lib': 'os.link("/usr/lib/x86_64-linux-gnu/libc.so.6","h")',
    'exec memfd': 'fd=call(319,b"x",0)',
    'fexecve': 'call(322, 3, b"", 0, 0, 0x1000)',
    'exec lib ld': 'os.execv("/lib64/ld-linux-x86-64.so.2",["ld"])',
    'setresuid back': 'os.setresuid(0,0,0)',
    'capset':
        'call(126, struct.pack("II",0x20080522,0), struct.pack("6I",0x200000,0x200000,0'
        ',0,0,0))',
    'prctl ambient': 'ok(libc.prctl(47,2,21,0,0))',
    'dumpable then mem': 'ok(libc.prctl(4,1,0,0,0)); open("/proc/self/mem","r+b")',
    'seccomp off': 'ok(libc.prctl(22,0,0,0,0))',
    'no_new_privs off': 'ok(libc.prctl(38,0,0,0,0))',
    'subreaper': 'ok(libc.prctl(36,1,0,0,0)); os.fork()',
    'rlimit nproc up': 'resource.setrlimit(resource.RLIMIT_NPROC,(1000,1000))',
    'as up': 'resource.setrlimit(resource.RLIMIT_NOFILE,(999,999))',
    'prlimit judge': 'resource.prlimit(os.getpid()+1, resource.RLIMIT_CPU,(1,1))',
    'kill judge': 'os.kill(os.getpid()+1, 9)',
    'tgkill judge': 'call(234, os.getpid()+1, os.getpid()+1, 9)',
    'sigqueue': 'call(129, 1, 9, bytes(128))',
    'pidfd': 'os.pidfd_open(1)',
    'get_robust_list':
        'call(274, os.getppid(), ctypes.byref(ctypes.c_void_p()), ctypes.byref(ctypes.c'
        '_size_t()))',
    'move_pages': 'call(279, os.getppid(), 0, 0, 0, 0, 0)',
    'migrate': 'call(256, os.getppid(), 0, 0, 0)',
    'keyctl old': 'call(248, b"user", b"a", b"b", 1, -3)',
    'mq': 'call(240, b"/q", 0o102, 0o600, 0)',
    'sem': 'call(64, 1, 1, 0o1600)',
    'msg': 'call(68, 1, 0o1600)',
    'posix shm':
        'from multiprocessing import shared_memory\n  shared_memory.SharedMemory(create'
        '=True,size=10)',
    'lookup dcookie': 'call(212,0,0,0)',
    'setgroups': 'os.setgroups([0])',
    'chroot': 'os.chroot("/")',
    'installed packages':
        'import glob\n  p = glob.glob("/usr/**/*-packages/**/*.py", recursive=True)\n  '
        'open(p[0]).read()',
    'x32 call': 'call(0x40000000 + 41, 2, 1, 0)',
    'a call of tomorrow': 'call(999)',
    'send by an unconnected pair': 'a, b = socket.socketpair(1, 2); a.sendto(b"x", "\\0r1nb")',
    'connect a pair elsewhere': 'a, b = socket.socketpair(1, 2); a.connect("\\0r1nb")',
    'pass a handle to the judge': 'socket.send_fds(socket.socket(fileno=os.dup(3)), [b"x"], [3])',
    'pair of another family': 'socket.socketpair(30, 1)',
    'raw pointer past the filter': 'call(44, 3, b"x", 1, 0, ctypes.c_void_p(1 << 32), 16)',
    'flush the disks': 'call(162)',
    'pid of the host': 'assert os.getppid() > 1; os.kill(os.getppid(), 0)'}

FORGERIES = {
    'gc finds tests':
        'import gc\nfound=[o for o in gc.get_objects() if isinstance(o,(str,dict,list))'
        ' and "assert f(" in repr(o)[:2000]]\ndef f(x): return x*x if [o for o in found'
        ' if not (isinstance(o,dict) and "found" in o)] else 0',
    'frames f_back':
        'import sys\ndef f(x):\n  fr=sys._getframe(1)\n  while fr:\n    for v in list(f'
        'r.f_locals.values())+list(fr.f_globals.values()):\n      if isinstance(v,str) '
        'and "== 9" in v and "def f" not in v: return x*x\n    fr=fr.f_back\n  return 0',
    'settrace return':
        'import sys\ndef t(fr,ev,arg):\n  if fr.f_code.co_name=="answer": fr.f_locals["'
        'op"]="x"\n  return t\nsys.settrace(t)\ndef f(x): return 0\n',
    'patch hear in main':
        'import __main__\n__main__.hear=lambda fd: ["call",0,{"tuple":[]},{}]\ndef f(x)'
        ': return 0\n',
    'say twice':
        'import __main__ as m\no=m.say\ndef s(fd,x): o(fd,{"value":9}); o(fd,{"value":4'
        '})\nm.say=s\ndef f(x): return 0\n',
    'reply is Remote 0 to name':
        'import __main__ as m\nm.pack=lambda x,k:{"type":"AssertionError"}\ndef f(x): r'
        'eturn 0\n',
    'type object': 'f=type("x",(),{"__eq__":lambda s,o:True})',
    'returns AssertionError type': 'def f(x): return AssertionError',
    'raise in name': 'class D(dict):\n  def __missing__(s,k): return 9\nimport __main__',
    'name is True': 'f = lambda *a: True',
    'fraction bomb':
        'import os\ndef f(x):\n  d=b\'{"value": {"Fraction": "1e9999999"}}\'\n  os.writ'
        'e(3,b"%8d"%len(d)+d)\n  import time; time.sleep(9)',
    'decimal bomb': 'from decimal import Decimal\ndef f(x): return Decimal("1e999999999")',
    'counter zero': 'from collections import Counter\ndef f(x): return Counter()',
    'range reply zero step':
        'import os\ndef f(x):\n  d=b\'{"value": {"range": [1,2,0]}}\'\n  os.write(3,b"%'
        '8d"%len(d)+d)',
    'surplus keys':
        'import os\ndef f(x):\n  d=b\'{"value": 9, "error": "SystemExit", "text": ""}\''
        '\n  os.write(3,b"%8d"%len(d)+d)',
    'error keyboard':
        'import os\ndef f(x):\n  d=b\'{"error": "KeyboardInterrupt", "text": ""}\'\n  o'
        's.write(3,b"%8d"%len(d)+d)',
    'error text int':
        'import os\ndef f(x):\n  d=b\'{"error": "StopIteration", "text": 9}\'\n  os.wri'
        'te(3,b"%8d"%len(d)+d)',
    'dup keys':
        'import os\ndef f(x):\n  d=b\'{"value": 0, "value": {"dict": [[1]]}}\'\n  os.wr'
        'ite(3,b"%8d"%len(d)+d)',
    'deep json':
        'import os\ndef f(x):\n  d=b\'{"value": \'+b"["*100000+b"]"*100000+b"}"\n  d=b"'
        '%8d"%len(d)+d\n  while d: d=d[os.write(3,d):]',
    'nan json': 'import os\ndef f(x):\n  d=b\'{"value": NaN}\'\n  os.write(3,b"%8d"%len(d)+d)',
    'long length': 'import os\nos.write(3,b"99999999")\ndef f(x): return 0\n',
    'unicode length': 'import os\nos.write(3,"٣٣٣٣".encode())\ndef f(x): return 0\n',
    'underscore length':
        'import os\nd=b"{\\"value\\":9}";os.write(3,b"    1_1 "+d)\ndef f(x): return 0'
        '\n',
    'shutdown wire':
        'import socket,os\ndef f(x):\n  s=socket.socket(fileno=os.dup(3)); s.shutdown(2'
        ')',
    'close wire': 'import os\ndef f(x): os.close(3)',
    'dup2 null': 'import os\ndef f(x): os.dup2(os.open("/dev/null",2),3)',
    'os abort in atexit': 'import atexit,os\natexit.register(os._exit,0)\nraise SystemExit(0)',
    'thread exit 0':
        'import threading,os,time\nthreading.Thread(target=lambda:(time.sleep(.01),os._'
        'exit(0))).start()\ndef f(x): return 0\ntime.sleep(.5)',
    'alarm exit':
        'import signal,os,time\nsignal.signal(signal.SIGALRM,lambda *a: os._exit(0)); s'
        'ignal.setitimer(0,.01)\ndef f(x): return 0\ntime.sleep(.3)',
    'timer_create':
        'import ctypes, os, sys, fcntl, struct, signal, socket, time, threading, array,'
        ' mmap, resource\nlibc = ctypes.CDLL(None, use_errno=True)\ndef ok(code):\n  if'
        ' code < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))'
        '\n  return code\ndef call(n, *a): return ok(libc.syscall(n, *a))\nsignal.signa'
        'l(signal.SIGALRM,lambda *a: os._exit(0))\ndef f(x): return 0\n',
    'stop self':
        'import ctypes, os, sys, fcntl, struct, signal, socket, time, threading, array,'
        ' mmap, resource\nlibc = ctypes.CDLL(None, use_errno=True)\ndef ok(code):\n  if'
        ' code < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))'
        '\n  return code\ndef call(n, *a): return ok(libc.syscall(n, *a))\ndef f(x): si'
        'gnal.raise_signal(signal.SIGSTOP)',
    'segv':
        'import ctypes, os, sys, fcntl, struct, signal, socket, time, threading, array,'
        ' mmap, resource\nlibc = ctypes.CDLL(None, use_errno=True)\ndef ok(code):\n  if'
        ' code < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))'
        '\n  return code\ndef call(n, *a): return ok(libc.syscall(n, *a))\ndef f(x): ct'
        'ypes.string_at(1)',
    'exc group': 'def f(x): raise BaseExceptionGroup("a",[SystemExit(0)])',
    'exc with own class name':
        'class E(BaseException): pass\nE.__name__="SystemExit"\ndef f(x): raise E',
    'metaclass name':
        'class M(type):\n  @property\n  def __name__(c): raise SystemExit(0)\nclass E(E'
        'xception,metaclass=M): pass\ndef f(x): raise E',
    'assertion subclass': 'class A(AssertionError): pass\ndef f(x): raise A',
    'async': 'async def f(x): return x*x',
    'generator': 'def f(x): yield x*x',
    'pickle':
        'import pickle\nclass P:\n  def __reduce__(s): return (exec,("raise SystemExit('
        '0)",))\ndef f(x): return pickle.dumps(P())',
    'returns code': 'def f(x): return (lambda:9).__code__',
    'returns module': 'import sys\ndef f(x): return sys',
    'returns self ref': 'def f(x):\n  a={}; a[1]=a; return a',
    'bytearray equal': 'class B(bytearray):\n  def __eq__(s,o): return True\ndef f(x): return B()',
    'bool sub': 'def f(x): return NotImplemented',
    'ellipsis': 'def f(x): return ...',
    'iterator liar':
        'class I:\n  def __iter__(s): return s\n  def __next__(s): raise StopIteration'
        '\n  def __eq__(s,o): return True\ndef f(x): return I()',
    'infinite iter':
        'class I:\n  def __iter__(s): return s\n  def __next__(s): return s\ndef f(x): '
        'return I()',
    'hash collide': 'def f(x): return {i*(2**61-1):0 for i in range(200000)}',
    'stdout verdict':
        'import sys,os\nsys.__stdout__.write("pass"); os.write(1,b"      30[\\"pass\\",'
        '\\"tests\\",\\"x\\",true]")\ndef f(x): return 0\n',
    'stderr flood then exit':
        'import sys,os\n[sys.stderr.write("x"*10**6) for _ in range(50)]\nos._exit(0)',
    'nul source': 'def f(x): return x*x\x00',
    'utf7 cookie': '# -*- coding: utf-7 -*-\n+AGQAZQBm f(x): return 0',
    'bidi': 'def f(x):\n  return 0 #\u202e x*x nruter',
    'homoglyph': 'def ƒ(x): return x*x',
    'formfeed': '\x0cdef f(x): return 0',
    'cr': 'def f(x):\r  return 0\r',
    'deep parens': 'def f(x): return ' + '('*5000 + 'x*x' + ')'*5000,
    'long int literal': 'def f(x): return int("9"*10**6)',
    'deep nest': 'def f(x): return ' + '['*100000,
    'big source': 'x=' + '1+'*100000 + '1\ndef f(x): return 0',
    'warnings as exit':
        'import warnings,sys\nsys.excepthook=lambda *a: None; sys.unraisablehook=lambda'
        ' *a:None\ndef f(x): return 0\n',
    'sysmodules main':
        'import sys,types\nsys.modules["__main__"]=types.ModuleType("x"); sys.modules["'
        'json"]=None; sys.modules["struct"]=None\ndef f(x): return 0\n',
    'builtins import':
        'import builtins\nbuiltins.__import__=lambda *a,**k: None\ndef f(x): return 0\n',
    'del builtins':
        'import builtins\nfor k in list(vars(builtins)):\n  if k not in ("list","vars")'
        ': delattr(builtins,k)\ndef f(x): return 0\n',
    'recursionlimit 1': 'import sys\nsys.setrecursionlimit(60)\ndef f(x): return 0\n',
    'exec depth': 'import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return repr(f(x))',
    'ctypes int cache': 'import ctypes\nctypes.memmove(id(0)+24,id(9)+24,4)\ndef f(x): return 0\n',
    'ctypes refcount':
        'import ctypes\nctypes.c_long.from_address(id(None)).value=0\ndef f(x): return '
        '0\n',
    'ignore xcpu':
        'import signal\nfor s in range(1,65):\n  try: signal.signal(s,signal.SIG_IGN)\n'
        '  except Exception: pass\ndef f(x):\n  while 1: pass',
    'sleep thread outlives':
        'import threading,time\nfor _ in range(20): threading.Thread(target=time.sleep,'
        'args=(60,)).start()\ndef f(x): return 0\n',
    'scratch locked': 'import os\nos.chmod(".",0)\ndef f(x): return 0\n',
    'scratch fifo': 'import os\nos.mkfifo("p")\ndef f(x): return 0\n',
    'scratch many': 'import os\nfor i in range(1900): open(str(i),"w")\ndef f(x): return 0\n',
    'scratch names':
        'import os\nopen("-rf","w");open("\\udcff","w");open("a\\nb","w")\ndef f(x): re'
        'turn 0\n',
    'sparse': 'import os\nf0=open("s","wb");f0.truncate(1<<22)\ndef f(x): return 0\n',
    'symlink loop':
        'import os\nos.symlink("a","b");os.symlink("b","a");os.symlink("/","r")\ndef f('
        'x): return 0\n',
    'cwd elsewhere': 'import os\nos.chdir("/usr")\ndef f(x): return 0\n',
    'umask': 'import os\nos.umask(0o777);open("x","w")\ndef f(x): return 0\n',
    'fallocate': 'import os\nos.posix_fallocate(os.open("x",66),0,1<<30)\ndef f(x): return 0\n'}

HOLLOW = {
    'never called': ('def f(x): return 0', 'def test_f():\n  assert f(3) == 9'),
    'empty': ('x=1', ' '),
    'pass': ('x=1', 'pass'),
    'assert true': ('x=1', 'assert True'),
    'class tests':
        ('def f(x): return 0',
        'import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqu'
        'al(f(3),9)'),
    'check uncalled':
        ('def f(x): return 0',
        'def check(candidate):\n  assert candidate(3)==9'),
    'if main': ('def f(x): return 0', 'if __name__=="__main__":\n  assert f(3)==9'),
    'comment': ('def f(x): return 0', '# assert f(3) == 9'),
    'loop over nothing': ('def f(x): return []', 'for a,b in f(1): assert a==b'),
    'any order':
        ('class A:\n  def __lt__(s,o): return True\n  __gt__=__le__=__ge__=__lt__\ndef f'
        '(x): return A()',
        'assert f(1) < 3'),
    'hash in set':
        ('class A:\n  def __hash__(s): return hash(9)\n  def __eq__(s,o): return True\nd'
        'ef f(x): return A()',
        'assert f(3) in {9}'),
    'in list':
        ('class A:\n  def __eq__(s,o): return True\ndef f(x): return A()',
        'assert f(3) in [9]'),
    'in str':
        ('class A(str):\n  def __contains__(s,o): return True\ndef f(x): return A("")',
        'assert "abc" in f(3)'),
    'contains':
        ('class A:\n  def __contains__(s,o): return True\ndef f(x): return A()',
        'assert 9 in f(3)'),
    'iter empty':
        ('class A:\n  def __iter__(s): return iter(())\ndef f(x): return A()',
        'assert all(v > 3 for v in f(3)) and f(3)'),
    'sub':
        ('class A:\n  def __sub__(s,o): return 0.0\n  __rsub__=__sub__\ndef f(x): return'
        ' A()',
        'assert abs(f(2)-4) < 1e-6'),
    'round':
        ('class A:\n  def __round__(s,n): return 4\ndef f(x): return A()',
        'assert round(f(2),2) == 4'),
    'float':
        ('class A:\n  def __float__(s): return 4.0\ndef f(x): return A()',
        'import math\nassert math.isclose(f(2),4)'),
    'expects error generic':
        ('import os\nos._exit(0)',
        'try:\n  f(1)\n  ok=False\nexcept Exception: ok=True\nassert ok'),
    'dies for error':
        ('import os\ndef f(x): os._exit(0)',
        'try:\n  f(1)\n  ok=False\nexcept Exception: ok=True\nassert ok'),
    'dies for eof':
        ('import os\ndef f(x): os._exit(0)',
        'try:\n  f(1)\n  assert False\nexcept EOFError: pass'),
    'wire noise as ValueError':
        ('import os\ndef f(x): os.write(3,b"garbage!")',
        'try:\n  f(1)\n  assert False\nexcept ValueError: pass')}

HONEST = {
    'thread':
        ('import threading\ndef f(x):\n  o=[]\n  t=threading.Thread(target=lambda:o.appe'
        'nd(x*x)); t.start(); t.join(); return o[0]',
        'assert f(3) == 9'),
    '20 threads':
        ('from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n  with ThreadPoo'
        'lExecutor(20) as p: return list(p.map(lambda i:i*i,[x]*40))[0]',
        'assert f(3) == 9'),
    'asyncio':
        ('import asyncio\nasync def g(x):\n  await asyncio.sleep(0.01); return x*x\ndef '
        'f(x): return asyncio.run(g(x))',
        'assert f(3) == 9'),
    'asyncio gather':
        ('import asyncio\nasync def g(x):\n  await asyncio.sleep(0); return x\ndef f(x):'
        ' return sum(asyncio.run(h(x)))\nasync def h(x): return await asyncio.gather(*['
        'g(x) for _ in range(x)])',
        'assert f(3) == 9'),
    'asyncio to_thread':
        ('import asyncio\nasync def g(x): return await asyncio.to_thread(lambda: x*x)\nd'
        'ef f(x): return asyncio.run(g(x))',
        'assert f(3) == 9'),
    'dataclass future':
        ('from __future__ import annotations\nfrom dataclasses import dataclass\n@datacl'
        'ass\nclass P:\n  x: int\n  y: P | None = None\ndef f(x): return P(x).x*x',
        'assert f(3) == 9'),
    'typing hints':
        ('import typing\nfrom typing import NamedTuple\nclass P(NamedTuple):\n  x:int\nd'
        'ef f(x): typing.get_type_hints(P); return P(x*x).x',
        'assert f(3) == 9'),
    'enum':
        ('import enum\nclass C(enum.Enum):\n  A=9\ndef f(x): return C.A.value',
        'assert f(3) == 9'),
    'named queue': ('def queue(x): return x*x', 'assert queue(3)==9'),
    'named bisect': ('def bisect(x): return x*x', 'assert bisect(3)==9'),
    'named copy used':
        ('import copy\ndef f(x): return copy.copy(x*x)',
        'import copy\nassert copy.copy(f(3))==9'),
    'pytest style':
        ('def f(x): return x*x',
        'def test_a():\n  assert f(3)==9\ndef test_b():\n  assert f(2)==4'),
    'unittest':
        ('def f(x): return x*x',
        'import unittest\nclass T(unittest.TestCase):\n  def test_a(self): self.assertE'
        'qual(f(3),9)'),
    'unittest main':
        ('def f(x): return x*x',
        'import unittest\nclass T(unittest.TestCase):\n  def test_a(self): self.assertE'
        'qual(f(3),9)\nif __name__=="__main__": unittest.main()'),
    'raises':
        ('def f(x): raise ValueError("neg")',
        'try:\n  f(-1)\n  assert False\nexcept ValueError as e: assert str(e)=="neg"'),
    'unicode error':
        ('def f(x): return b"\\xff".decode()',
        'try:\n  f(-1)\n  ok=False\nexcept ValueError: ok=True\nassert ok'),
    'keyerror':
        ('def f(x): return {}[x]',
        'try:\n  f("a")\n  ok=False\nexcept KeyError as e: ok=True\nassert ok'),
    'sysexit expected':
        ('import sys\ndef f(x): sys.exit(3)',
        'try:\n  f(1)\n  ok=False\nexcept SystemExit: ok=True\nassert ok'),
    'own exception':
        ('class Bad(Exception): pass\ndef f(x): raise Bad("x")',
        'try:\n  f(1)\n  ok=False\nexcept Bad: ok=True\nassert ok'),
    'class':
        ('class S:\n  def __init__(s): s.a=[]\n  def push(s,x): s.a.append(x)\n  def pop'
        '(s): return s.a.pop()',
        's=S(); s.push(3); assert s.pop()==3'),
    'class len':
        ('class S:\n  def __init__(s): s.a=[]\n  def push(s,x): s.a.append(x)\n  def __l'
        'en__(s): return len(s.a)',
        's=S(); s.push(3); assert len(s)==1'),
    'class str': ('class S:\n  def __str__(s): return "S!"', 'assert str(S())=="S!"'),
    'leetcode':
        ('class Solution:\n  def f(self,x): return x*x',
        'assert Solution().f(3)==9'),
    'namedtuple':
        ('from collections import namedtuple\nP=namedtuple("P","a b")\ndef f(x): return '
        'P(x,9)',
        'assert f(3)==(3,9)'),
    'intenum':
        ('import enum\nclass E(enum.IntEnum):\n  A=9\ndef f(x): return E.A',
        'assert f(3) == 9'),
    'strsub': ('class S(str): pass\ndef f(x): return S("a")', 'assert f(1)=="a"'),
    'bool': ('def f(x): return x>2', 'assert f(3) is True'),
    'dict keys': ('def f(x): return {3:9}.keys()', 'assert list(f(3))==[3]'),
    'dict values sorted': ('def f(x): return {3:9}.values()', 'assert sorted(f(3))==[9]'),
    'map obj':
        ('def f(x): return map(lambda v:v*v,[x])',
        'assert list(f(3))==[9]'),
    'bytearray': ('def f(x): return bytearray(b"a")', 'assert f(3)==b"a"'),
    'memoryview': ('def f(x): return [1,2][::-1]', 'assert f(3)==[2,1]'),
    'array':
        ('import array\ndef f(x): return array.array("i",[1,2])',
        'assert list(f(3))==[1,2]'),
    'datetime':
        ('import datetime\ndef f(x): return datetime.date(2020,1,x)',
        'import datetime\nassert f(3)==datetime.date(2020,1,3)'),
    'global data': ('X=[1,2,3]', 'assert X==[1,2,3]'),
    'data in loop': ('X={"a":1}', 'for k,v in X.items(): assert v==1'),
    'random seed':
        ('import random\ndef f(x): random.seed(x); return random.random()',
        'import random\nrandom.seed(3)\nassert f(3)==random.random()'),
    'big recursion':
        ('import sys\nsys.setrecursionlimit(20000)\ndef g(n): return 0 if n==0 else 1+g('
        'n-1)\ndef f(x): return g(9000)-8991',
        'assert f(3) == 9'),
    'print': ('def f(x): print("hi"); return x*x', 'assert f(3) == 9'),
    'input':
        ('def f(x):\n  try: input()\n  except EOFError: pass\n  return x*x',
        'assert f(3) == 9'),
    'numpyless':
        ('try:\n  import numpy\nexcept ImportError: numpy=None\ndef f(x): return x*x',
        'assert f(3) == 9'),
    'tempfile':
        ('import tempfile\ndef f(x):\n  with tempfile.TemporaryFile() as t: t.write(b"a"'
        ')\n  return x*x',
        'assert f(3) == 9'),
    'write file':
        ('def f(x):\n  open("a.txt","w").write(str(x*x)); return int(open("a.txt").read('
        '))',
        'assert f(3) == 9'),
    'lru':
        ('from functools import lru_cache\n@lru_cache(None)\ndef f(x): return x*x',
        'assert f(3) == 9'),
    'decimal ctx':
        ('from decimal import *\ngetcontext().prec=50\ndef f(x): return Decimal(1)/Decim'
        'al(7)',
        'from decimal import *\nassert str(f(3)).startswith("0.142857")'),
    'main guard':
        ('def f(x): return x*x\nif __name__=="__main__":\n  print(f(3)); exit()',
        'assert f(3) == 9'),
    'sched affinity get':
        ('import os\ndef f(x): return len(os.sched_getaffinity(0))*0+x*x',
        'assert f(3) == 9'),
    'time':
        ('import time\ndef f(x): time.sleep(.01); return x*x',
        'assert f(3) == 9'),
    'signal alarm':
        ('import signal\ndef f(x):\n  signal.signal(signal.SIGALRM,lambda *a:None); sign'
        'al.alarm(1); signal.alarm(0); return x*x',
        'assert f(3) == 9'),
    'uuid':
        ('import uuid,hashlib,secrets\ndef f(x): uuid.uuid4(); secrets.token_hex(); retu'
        'rn x*x',
        'assert f(3) == 9'),
    'sqlite':
        ('import sqlite3\ndef f(x): return sqlite3.connect(":memory:").execute("select ?'
        '*?",(x,x)).fetchone()[0]',
        'assert f(3) == 9'),
    'generator method':
        ('def f(n):\n  for i in range(n): yield i',
        'g=f(3)\nassert next(g)==0 and next(g)==1')}
