"""More programs, in the groups of ``hostile_programs``."""

from __future__ import annotations

from hostile_programs import ANSWER, LEAK, Program

HONEST = [
    Program(
        "recursion 3000 in setrecursionlimit",
        ("import sys\nsys.setrecursionlimit(1<<30)\ndef f(n):return 0 if n==0 else 1+f(n-1)\nassert f(10000)==10000\n")
        + ANSWER,
        "right",
    ),
    Program(
        "eof loop",
        ("t=0\nwhile True:\n try:t+=sum(map(int,input().split()))\n except EOFError:break\nprint(t)"),
        "right",
    ),
    Program(
        "print end flush",
        ("a,b=map(int,input().split())\nfor c in str(a+b):print(c,end='',flush=True)\nprint()"),
        "right",
    ),
    Program(
        "stdout.buffer",
        ("import sys\na,b=map(int,sys.stdin.buffer.read().split());sys.stdout.buffer.write(b'%d\\n'%(a+b))"),
        "right",
    ),
    Program("fileinput", ("import fileinput\nfor l in fileinput.input():print(sum(map(int,l.split())))"), "right"),
    Program(
        "environ reads",
        ("import os\nos.environ.get('X');os.environ['HOME'];os.getenv('PATH');os.path.expanduser('~')\n") + ANSWER,
        "right",
    ),
    Program(
        "tempfile all",
        (
            "import tempfile,os,shutil\n"
            "f=tempfile.NamedTemporaryFile('w+');f.write('x');f.flush();assert open(f.name).read()=='"
            "x';f.close()\n"
            "t=tempfile.TemporaryFile();t.write(b'a');t.seek(0);assert t.read()==b'a'\n"
            "d=tempfile.mkdtemp();open(d+'/a','w').close();shutil.copy(d+'/a',d+'/b') if 0 else None;"
            "shutil.rmtree(d)\n"
            "fd,p=tempfile.mkstemp();os.close(fd);os.remove(p)\n"
            "s=tempfile.SpooledTemporaryFile();s.write(b'1')\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "daemon thread left",
        ("import threading,time\nthreading.Thread(target=time.sleep,args=(60,),daemon=True).start()\n") + ANSWER,
        "right",
    ),
    Program(
        "asyncio subprocess none",
        (
            "import asyncio\n"
            "async def m():\n"
            " r=await asyncio.to_thread(input);print(sum(map(int,r.split())))\n"
            "asyncio.run(m())"
        ),
        "right",
    ),
    Program(
        "contextlib redirect",
        (
            "import contextlib,io\n"
            "b=io.StringIO()\n"
            "with contextlib.redirect_stdout(b):\n"
            " x,y=map(int,input().split());print(x+y)\n"
            "print(b.getvalue().strip())"
        ),
        "right",
    ),
    Program("exit by string none", ANSWER + ("raise SystemExit"), "right"),
    Program("quit()", ANSWER + ("quit()"), "right"),
    Program("os._exit after flush", ANSWER + ("import sys,os;sys.stdout.flush();os._exit(0)"), "right"),
    Program(
        "metaclass abc enum",
        (
            "import abc,enum\n"
            "class E(enum.Enum):A=1\n"
            "class B(abc.ABC):\n"
            " @abc.abstractmethod\n"
            " def f(s):...\n"
            "class C(B):\n"
            " def f(s):return sum(map(int,input().split()))\n"
            "print(C().f())"
        ),
        "right",
    ),
    Program(
        "__name__ and __file__",
        ("import sys\nassert __name__=='__main__'\nprint(sum(map(int,input().split()))) if sys.argv else 0"),
        "right",
    ),
    Program("import __main__", ("import __main__\nx=5\nassert __main__.x==5\n") + ANSWER, "right"),
    Program(
        "pickle own class",
        (
            "import pickle\n"
            "class P:\n"
            " def __init__(s,x):s.x=x\n"
            "print(sum(pickle.loads(pickle.dumps(P(list(map(int,input().split()))))).x))"
        ),
        "right",
    ),
    Program(
        "dataclass of __main__ annotations",
        (
            "from __future__ import annotations\n"
            "from dataclasses import dataclass,field\n"
            "@dataclass(order=True)\n"
            "class P:\n"
            " x:int\n"
            " y:list[int]=field(default_factory=list)\n"
            "p=P(1)\n"
            "import typing;typing.get_type_hints(P)\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "traceback format",
        ("import traceback\ntry:1/0\nexcept Exception:assert 'ZeroDivision' in traceback.format_exc()\n") + ANSWER,
        "right",
    ),
    Program(
        "mmap file",
        (
            "import mmap\n"
            "open('f','wb').write(b'x'*4096)\n"
            "with open('f','r+b') as g:\n"
            " m=mmap.mmap(g.fileno(),0);m[0]=65;m.flush();m.close()\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "os walk cwd",
        (
            "import os,glob,pathlib\n"
            "list(os.walk('.'));glob.glob('*');os.listdir();os.makedirs('x/y');os.removedirs('x/y');p"
            "athlib.Path.cwd();os.access('.',os.W_OK);os.stat('.')\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "file seek append",
        (
            "open('a','w').write('1\\n')\n"
            "with open('a','a+') as f:\n"
            " f.write('2\\n');f.seek(0);assert f.read()=='1\\n2\\n'\n"
            "import os;os.truncate('a',0) if 0 else None;os.remove('a')\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "stdin twice",
        ("import sys\nx=sys.stdin.readline();y=sys.stdin.read();print(sum(map(int,(x+y).split())))"),
        "right",
    ),
    Program(
        "8 threads stack default",
        (
            "import threading\n"
            "ts=[threading.Thread(target=lambda:sum(range(1000))) for _ in range(20)]\n"
            "[t.start() for t in ts];[t.join() for t in ts]\n"
        )
        + ANSWER,
        "right",
    ),
    Program("BOM source", ("\ufeffa,b=map(int,input().split());print(a+b)"), "right"),
    Program("encoding cookie", ("# -*- coding: latin-1 -*-\n") + ANSWER, "right"),
    Program("shebang", ("#!/usr/bin/env python3\n") + ANSWER, "right"),
    Program("future annotations", ("from __future__ import annotations\nx:Foo=1\n") + ANSWER, "right"),
    Program(
        "builtins print replaced honestly",
        ("import builtins\n_p=print\ndef print(*a,**k):_p(*a,**k)\na,b=map(int,input().split());print(a+b)"),
        "right",
    ),
    Program("closes stdout", ANSWER + ("import sys;sys.stdout.close()"), "right"),
    Program(
        "stdout None",
        ("import sys\na,b=map(int,input().split());print(a+b)\nsys.stdout.flush();sys.stdout=None"),
        "right",
    ),
    Program("closes stderr", ("import sys\nsys.stderr.close()\n") + ANSWER, "right"),
    Program("settrace honest", ("import sys\nsys.settrace(lambda *a:None)\n") + ANSWER, "right"),
    Program("audit honest", ("import sys\nsys.addaudithook(lambda *a:None)\n") + ANSWER, "right"),
    Program(
        "unittest",
        (
            "import unittest\n"
            "class T(unittest.TestCase):\n"
            " def test(s):s.assertEqual(1,1)\n"
            "unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "os.pipe select",
        ("import os,select\nr,w=os.pipe();os.write(w,b'x');assert select.select([r],[],[],1)[0]==[r]\n") + ANSWER,
        "right",
    ),
    Program(
        "selectors epoll",
        (
            "import selectors,os\n"
            "s=selectors.DefaultSelector();r,w=os.pipe();s.register(r,1);os.write(w,b'x');assert s.se"
            "lect(1)\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "socketpair", ("import socket\na,b=socket.socketpair();a.send(b'x');assert b.recv(1)==b'x'\n") + ANSWER, "right"
    ),
    Program("excepthook", ("import sys\nsys.excepthook=lambda *a:None\n") + ANSWER, "right"),
    Program(
        "thread raising, main right",
        ("import threading\nt=threading.Thread(target=lambda:1/0);t.start();t.join()\n") + ANSWER,
        "right",
    ),
    Program("del raising", ("class D:\n def __del__(s):raise ValueError\nd=D();del d\n") + ANSWER, "right"),
    Program(
        "exec prints",
        (
            "import os,sys\n"
            "os.execv(sys.executable,[sys.executable,'-S','-c','a,b=map(int,input().split());print(a+"
            "b)'])"
        ),
        "right",
    ),
    Program(
        "fds",
        (
            "import os\n"
            "l=[]\n"
            "try:\n"
            " while 1:l.append(os.open('/dev/null',0))\n"
            "except OSError:pass\n"
            "assert len(l)<256\n"
            "for i in l:os.close(i)\n"
        )
        + ANSWER,
        "right",
    ),
]
"""They must pass."""

HONEST_FUNCTIONS = [
    Program("float exact", ("def add(a,b):return float(a+b)"), "right"),
    Program("partial", ("import functools\nadd=functools.partial(lambda c,a,b:a+b+c,0)"), "right"),
    Program("callable object", ("class C:\n def __call__(s,a,b):return a+b\nadd=C()"), "right"),
    Program("exception inside caught", ("def add(a,b):\n try:1/0\n except ZeroDivisionError:return a+b"), "right"),
    Program("prints json", ('def add(a,b):\n print(\'["l","value",["l",5,null]]\');return a+b'), "right"),
    Program("stderr noise", ("import sys\ndef add(a,b):sys.stderr.write('x'*100000);return a+b"), "right"),
    Program("replaces sys.stdout", ("import sys,io\nsys.stdout=io.StringIO()\ndef add(a,b):return a+b"), "right"),
    Program("reads all input", ("import sys\nsys.stdin.read()\ndef add(a,b):return a+b"), "right"),
    Program("asserts in module", ("def add(a,b):return a+b\nassert add(1,2)==3"), "right"),
    Program("input at module level", ("try:x=input()\nexcept EOFError:x=''\ndef add(a,b):return a+b"), "right"),
]
"""They must pass."""

FORGERIES = [
    Program("exit True", ANSWER + ("import sys;sys.exit(True)")),
    Program(
        "patch same_output name",
        (
            "import sys\n"
            "for m in list(sys.modules.values()):\n"
            " try:m.same_output=lambda*a:True;m._lines=lambda*a:[]\n"
            " except Exception:pass\n"
            "print(0)"
        ),
    ),
    Program(
        "settrace forging",
        (
            "import sys\n"
            "def t(f,e,a):\n"
            " for k in list(f.f_locals):\n"
            "  if k in('code','status','end'):f.f_locals[k]=0\n"
            " return t\n"
            "sys.settrace(t);sys.setprofile(t)\n"
            "raise SystemExit(5)"
        ),
    ),
    Program(
        "audit hook harness",
        (
            "import sys,os\n"
            "def h(e,a):\n"
            " if e.startswith('os') or 'exit' in e:os._exit(0)\n"
            "sys.addaudithook(h)\n"
            "print(0)"
        ),
    ),
    Program(
        "frames up for input",
        (
            "import sys\n"
            "f=sys._getframe()\n"
            "out=[]\n"
            "while f:\n"
            " out+=list(f.f_locals.values());f=f.f_back\n"
            "import re\n"
            "print([x for x in out if isinstance(x,bytes)][-1:])"
        ),
    ),
    Program("writes to stdin", ("import os\ntry:os.write(0,b'1')\nexcept OSError:pass\nprint(0)")),
    Program("stdout as input loop", ("import os\ntry:os.dup2(0,1)\nexcept OSError:pass\nprint(1)")),
    Program(
        "control fd reopen",
        (
            "import os\n"
            "for p in ('/dev/fd/3','/dev/fd/1','/dev/stdout'):\n"
            " try:open(p,'wb').write(b'A5\\n')\n"
            " except OSError:pass\n"
            "print(0)"
        ),
    ),
    Program(
        "gc harness functions",
        (
            "import gc,types,os\n"
            "for o in gc.get_objects():\n"
            " if isinstance(o,types.FunctionType) and o.__name__=='finish':o.__code__=(lambda code:os"
            "._exit(0)).__code__\n"
            "raise SystemExit(3)"
        ),
    ),
    Program(
        "patched os._exit",
        (
            "import os\n"
            "real=os._exit\n"
            "os._exit=lambda c:real(0)\n"
            "a,b=map(int,input().split())\n"
            "print(a+b+1)\n"
            "raise SystemExit(7)"
        ),
    ),
    Program("carriage returns", ("a,b=map(int,input().split());print('999\\r'+str(a+b))")),
    Program("ansi", ("a,b=map(int,input().split());print('\\x1b[2K'+str(a+b))")),
    Program("nbsp around", ("a,b=map(int,input().split());print('\\xa0'+str(a+b))")),
    Program(
        "vertical tab split",
        ("a,b=map(int,input().split());s=str(a+b);print(s[0]+'\\x0b'+s[1:]) if len(s)>1 else print('x')"),
    ),
    Program("ctypes exit", ("import ctypes\nprint(5,flush=True)\nctypes.CDLL(None)._exit(0)")),
    Program("ctypes raw exit_group", ("import ctypes\nctypes.CDLL(None).syscall(231,0)")),
    Program(
        "deep pickle",
        (
            "import pickle\n"
            "class A:\n"
            " def __reduce__(s):return eval,('__import__(\"os\")._exit(0)',)\n"
            "pickle.loads(pickle.dumps(A()))"
        ),
    ),
    Program(
        "deleted files keep space",
        (
            "import os\n"
            "l=[]\n"
            "try:\n"
            " for i in range(200):\n"
            "  f=open('x','wb');os.unlink('x');f.write(b'x'*(1<<20));f.flush();l.append(f)\n"
            "except OSError:pass\n"
            "print(0)"
        ),
    ),
    Program(
        "memory by tmp and processes",
        (
            "import os\n"
            "for i in range(100):\n"
            " try:open('/dev/shm/%d'%i,'wb').write(b'x'*(1<<20))\n"
            " except OSError:pass\n"
            " try:open('/tmp/%d'%i,'wb').write(b'x'*(1<<20))\n"
            " except OSError:pass\n"
            "print(0)"
        ),
    ),
]
"""Their output, or their going, must not be taken for the answer."""

FUNCTIONS = [
    Program(
        "mutates and returns alias", ("def add(a,b):\n class I(int):\n  def __index__(s):return a+b\n return I(0)")
    ),
    Program(
        "int with __index__",
        ("class I(int):\n def __index__(s):return 10**6\n def __int__(s):return 5\ndef add(a,b):return I(1)"),
    ),
    Program(
        "bool subclass impossible, mro forged",
        (
            "class M(type):\n"
            " @property\n"
            " def __mro__(c):return (int,object)\n"
            "class A(metaclass=M):\n"
            " def __index__(s):return 5\n"
            "def add(a,b):return A()"
        ),
    ),
    Program("class property int", ("class A:\n __class__=int\n def __index__(s):return 1\ndef add(a,b):return A()")),
    Program(
        "dict subclass",
        ("class A(dict):\n def items(s):return[(1,2)]\n def __eq__(s,o):return True\ndef add(a,b):return A()"),
    ),
    Program("coroutine", ("async def add(a,b):return a+b")),
    Program(
        "patch plain read",
        (
            "import gc,types\n"
            "for o in gc.get_objects():\n"
            " if isinstance(o,dict) and 'to_plain' in o:\n"
            '  try:o[\'write\']=lambda *a,**k:\'["l",["y","int"],null]\'\n'
            "  except Exception:pass\n"
            "def add(a,b):return 0"
        ),
    ),
    Program("return function itself", ("def add(a,b):return add")),
    Program("raises StopAsyncIteration", ("def add(a,b):raise StopAsyncIteration")),
    Program("raises KeyboardInterrupt", ("def add(a,b):raise KeyboardInterrupt")),
    Program("raises RecursionError", ("def add(a,b):return add(a,b)")),
    Program("raises BaseExceptionGroup", ("def add(a,b):raise BaseExceptionGroup('x',[SystemExit(0)])")),
    Program("raises ExceptionGroup of Stop", ("def add(a,b):raise ExceptionGroup('x',[StopIteration()])")),
    Program("raises SystemExit subclass", ("class S(SystemExit):pass\ndef add(a,b):raise S(0)")),
    Program(
        "signal alarm answers",
        (
            "import signal,os\n"
            'signal.signal(signal.SIGALRM,lambda*a:os.write(3,b\'["l","value",["l",5,null]]\\n\'))\n'
            "signal.setitimer(signal.ITIMER_REAL,.01,.01)\n"
            "def add(a,b):\n"
            " import time;time.sleep(.1);return 0"
        ),
    ),
    Program(
        "thread answers all numbers",
        (
            "import os,threading\n"
            "def w():\n"
            ' for i in range(2,200):os.write(3,b\'["l","value",["l",%d,null]]\\n\'%i)\n'
            "def add(a,b):\n"
            " threading.Thread(target=w).start();return 0"
        ),
    ),
    Program("reads next question", ("import os\ndef add(a,b):\n try:x=os.read(3,0)\n except OSError:pass\n return -1")),
    Program(
        "peeks pipe for expectations",
        (
            "import socket\n"
            "def add(a,b):\n"
            " s=socket.socket(fileno=3)\n"
            " s.setblocking(False)\n"
            " try:d=s.recv(1<<16,socket.MSG_PEEK)\n"
            " except OSError:d=b''\n"
            " s.detach();return d.decode('latin1')"
        ),
    ),
    Program("huge nested dict", ("def add(a,b):\n d={}\n for i in range(200):d={0:d}\n return d")),
    Program("negative zero", ("def add(a,b):return -0.0")),
]
"""What they give must not be taken for the value."""

REACH = [
    Program(
        "abstract sockets by socketpair name",
        LEAK
        + (
            "import socket\n"
            "a,b=socket.socketpair()\n"
            "for n in('\\0prism','\\0/tmp/.X11-unix/X0','\\0org.freedesktop','/run/dbus/system_bus_socke"
            "t'):\n"
            " try:a.connect(n);L(n)\n"
            " except OSError:pass\n"
            " try:a.sendto(b'x',n);L(n)\n"
            " except OSError:pass\n"
            " try:b.bind(n);L('bind '+n)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "dgram socketpair sendto",
        LEAK
        + (
            "import socket\n"
            "a,b=socket.socketpair(socket.AF_UNIX,socket.SOCK_DGRAM)\n"
            "for n in('/dev/log','/run/systemd/journal/socket','\\0prism'):\n"
            " try:a.sendto(b'x',n);L(n)\n"
            " except OSError:pass\n"
            " try:a.sendmsg([b'x'],[],0,n);L(n)\n"
            " except OSError:pass\n"
            " try:a.connect(n);L(n)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "socketpair other kinds",
        LEAK
        + (
            "import socket\n"
            "for k in(1,2,3,5):\n"
            " try:\n"
            "  a,b=socket.socketpair(socket.AF_UNIX,k)\n"
            "  try:a.bind('s.sock');L('bound')\n"
            "  except OSError:pass\n"
            "  try:a.bind('\\0abs');L('abs')\n"
            "  except OSError:pass\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "SO_PEERCRED of control",
        LEAK
        + (
            "import socket,struct\n"
            "for fd in range(64):\n"
            " try:\n"
            "  s=socket.socket(fileno=os.dup(fd))\n"
            "  p,u,g=struct.unpack('3i',s.getsockopt(1,17,12))\n"
            "  if p>60 and p!=os.getpid():L((p,u))\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "setsockopt mark",
        LEAK
        + (
            "import socket\n"
            "a,b=socket.socketpair()\n"
            "for o in(36,25,32,33):\n"
            " try:a.setsockopt(1,o,1);L(o) if o in(36,12,33) else 0\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "sysfs and proc anywhere",
        LEAK
        + (
            "for p in('/proc/version','/proc/1/status','/proc/self/status','/proc/sys/kernel/hostname"
            "','/sys/class/net','/proc/net/tcp','/proc/self/environ','/proc/self/cmdline','/proc/self"
            "/fd','/dev/fd','/dev/stdin','/proc/thread-self','/sys/fs/cgroup','/proc/keys','/proc/kal"
            "lsyms','/proc/self/ns/net','/proc/self/uid_map'):\n"
            " try:os.stat(p);L(p)\n"
            " except OSError:pass\n"
            " try:os.lstat(p);L('l'+p)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "statx access paths",
        LEAK
        + (
            "for p in(b'/etc/passwd',b'/root',b'/etc/../etc/shadow',b'//etc/passwd',b'/./etc/passwd',"
            "b'/tmp/../etc/passwd',b'/usr/lib/../../etc/passwd',b'/dev/../etc/passwd'):\n"
            " b=ctypes.create_string_buffer(256)\n"
            " for n in (332,):\n"
            "  r=libc.syscall(n,-100,p,0,0x7ff,b)\n"
            "  if r==0:L(p)\n"
            " if libc.access(p,0)==0:L(p)\n"
            " if libc.open(p,0)>=0:L(p)\n"
            " if libc.chdir(p)==0:L(p)"
        ),
    ),
    Program(
        "truncate others",
        LEAK
        + (
            "for p in (os.__file__,'/usr/lib/os-release','/etc/passwd'):\n"
            " for f in(lambda:os.truncate(p,0),lambda:open(p,'r+b'),lambda:os.unlink(p),lambda:os.ren"
            "ame(p,'/tmp/q'),lambda:os.link(p,'q'),lambda:os.mkdir(p+'d'),lambda:os.rmdir(os.path.dir"
            "name(p)),lambda:os.setxattr(p,'user.a',b'1'),lambda:os.removexattr(p,'user.a')):\n"
            "  try:\n"
            "   f()\n"
            "   if f.__code__.co_names and 'link' in f.__code__.co_names and os.path.exists('q') and "
            "os.stat('q').st_nlink>1:L(p)\n"
            "   elif 'link' not in f.__code__.co_names:L(p)\n"
            "  except OSError:pass"
        ),
    ),
    Program(
        "fchmod etc of library",
        LEAK
        + (
            "f=os.open(os.__file__,os.O_RDONLY)\n"
            "for g in(lambda:os.fchmod(f,0o777),lambda:os.fchown(f,0,0),lambda:os.utime(f),lambda:os."
            "ftruncate(f,0),lambda:os.posix_fallocate(f,0,1)):\n"
            " try:g();L(g.__code__.co_names)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "dirfd walk up",
        LEAK
        + (
            "d=os.open('.',os.O_RDONLY|os.O_DIRECTORY)\n"
            "for n in range(1,10):\n"
            " for p in('etc/passwd','etc/hostname','root'):\n"
            "  q='../'*n+p\n"
            "  try:os.open(q,os.O_RDONLY,dir_fd=d);L(q)\n"
            "  except OSError:pass\n"
            "  try:os.stat(q,dir_fd=d);L('s'+q)\n"
            "  except OSError:pass\n"
            "  try:os.readlink(q,dir_fd=d);L('r'+q)\n"
            "  except OSError:pass"
        ),
    ),
    Program(
        "magic links by dirfd",
        LEAK
        + (
            "for p in('/proc','/proc/self','/dev','/'):\n"
            " try:\n"
            "  d=os.open(p,os.O_RDONLY)\n"
            "  x=os.listdir(d)\n"
            "  if p.startswith('/proc'):L(p)\n"
            "  if p=='/' and ('etc' in x or 'root' in x or 'home' in x):L(x)\n"
            "  if p=='/dev' and set(x)-{'null','zero','random','urandom','shm','full'}:L(x)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "fifo and special",
        LEAK
        + (
            "import stat\n"
            "try:os.mkfifo('p')\n"
            "except OSError:pass\n"
            "for m in(stat.S_IFSOCK,stat.S_IFBLK,stat.S_IFCHR):\n"
            " try:os.mknod('n%d'%m,m|0o600,os.makedev(1,1)) ; L(m) if m!=stat.S_IFSOCK else 0\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "setuid files",
        LEAK
        + (
            "import stat\n"
            "open('s','w').write('#!/bin/sh\\n')\n"
            "try:\n"
            " os.chmod('s',0o6755)\n"
            " st=os.stat('s')\n"
            " if st.st_uid==0:L('root file')\n"
            "except OSError:pass\n"
            "for f in(lambda:os.setuid(0),lambda:os.seteuid(0),lambda:os.setgid(0),lambda:os.setresui"
            "d(0,0,0),lambda:os.setreuid(0,0),lambda:os.setgroups([0]),lambda:os.initgroups('root',0)"
            "):\n"
            " try:f();L('id')\n"
            " except (OSError,KeyError):pass"
        ),
    ),
    Program(
        "ld.so runs others",
        LEAK
        + (
            "import subprocess,glob\n"
            "for ld in glob.glob('/lib64/ld-linux*')+glob.glob('/lib/ld-linux*')+glob.glob('/usr/lib/"
            "*/ld-linux*'):\n"
            " for p in('/bin/ls','/usr/bin/id','/usr/bin/su'):\n"
            "  try:\n"
            "   r=subprocess.run([ld,p,'/'],capture_output=True,timeout=5)\n"
            "   if r.returncode==0 and (b'uid' in r.stdout or b'etc' in r.stdout):L((ld,p))\n"
            "  except (OSError,subprocess.SubprocessError):pass"
        ),
    ),
    Program(
        "helper programs in lib",
        LEAK
        + (
            "import subprocess,glob\n"
            "for p in glob.glob('/usr/lib/*/*keysign*')+glob.glob('/usr/lib/dbus-1.0/*helper*')+glob."
            "glob('/usr/lib/openssh/*'):\n"
            " try:\n"
            "  r=subprocess.run([p],capture_output=True,timeout=5)\n"
            "  if b'root' in r.stdout:L(p)\n"
            " except (OSError,subprocess.SubprocessError):pass"
        ),
    ),
    Program(
        "ptrace child",
        LEAK
        + (
            "p=os.fork()\n"
            "if p==0:\n"
            " import time;time.sleep(3);os._exit(0)\n"
            "if libc.ptrace(16,p,0,0)==0:L('attach')\n"
            "if libc.ptrace(0,0,0,0)==0:L('traceme')\n"
            "os.kill(p,9)"
        ),
    ),
    Program(
        "pidfd of parent",
        LEAK
        + ("r=libc.syscall(434,os.getppid(),0)\nif r>=0:L('pidfd')\nr=libc.syscall(424,r,9,0,0)\nif r==0:L('sent')"),
    ),
    Program(
        "mount with arguments",
        LEAK
        + (
            "b=b'/tmp'\n"
            "for c in(lambda:libc.mount(b'none',b,b'tmpfs',0,None),lambda:libc.mount(b'proc',b,b'proc"
            "',0,None),lambda:libc.mount(b'/',b,None,4096,None),lambda:libc.umount2(b'/tmp',2),lambda"
            ":libc.chroot(b'.'),lambda:libc.unshare(0x10000000),lambda:libc.unshare(0x20000),lambda:l"
            "ibc.setns(0,0),lambda:libc.syscall(155,b'.',b'.'),lambda:libc.syscall(430,b'tmpfs',0),la"
            "mbda:libc.syscall(428,-100,b'/',1),lambda:libc.syscall(435,ctypes.create_string_buffer(8"
            "8),88)):\n"
            " if c()>=0:L('did')"
        ),
    ),
    Program(
        "clone flags each",
        LEAK
        + (
            "for f in(0x80,0x20000,0x2000000,0x4000000,0x8000000,0x10000000,0x20000000,0x40000000,0x2"
            "000,0x8000):\n"
            " r=libc.syscall(56,f|17,0,0,0,0)\n"
            " if r==0:os._exit(0)\n"
            " if r>0 and f!=0x80:L(hex(f))\n"
            " if r>0:os.waitpid(r,0)"
        ),
    ),
    Program(
        "clone high word flags",
        LEAK
        + (
            "r=libc.syscall(56,ctypes.c_long(0x110000000|17|0x20000000),0,0,0,0)\n"
            "if r==0:os._exit(0)\n"
            "if r>0:L('clone')"
        ),
    ),
    Program(
        "prctl all",
        LEAK
        + (
            "for o in(4,38,22,8,9,24,26,28,29,36,40,47,59,1,0x59616d61,62,65):\n"
            " r=libc.prctl(o,1,0,0,0)\n"
            " if r==0 and o in(4,36,29,9,8,28,0x59616d61,62,1):L(o)"
        ),
    ),
    Program("dumpable off", LEAK + ("if libc.prctl(4,0,0,0,0)==0:L('hidden from the keeper')")),
    Program(
        "ioctls",
        LEAK
        + (
            "import fcntl\n"
            "for fd in range(0,4):\n"
            " for r in(0x5412,0x540E,0x541C,0x5413,0x5414,0x5423,0x541D,0x5480,0x8901,0x8902,0x89e0,0"
            "xC0502100,0x4B45):\n"
            "  try:\n"
            "   fcntl.ioctl(fd,r,b'\\0'*8)\n"
            "   if r not in(0x5413,):L((fd,hex(r)))\n"
            "  except (OSError,ValueError):pass"
        ),
    ),
    Program(
        "ioctl high word",
        LEAK
        + (
            "import fcntl\n"
            "r=libc.syscall(16,1,ctypes.c_ulong(0x100005401),ctypes.create_string_buffer(64))\n"
            "r=libc.syscall(16,1,ctypes.c_ulong(0x100005412),b'x')\n"
            "if r==0:L('tiocsti')"
        ),
    ),
    Program(
        "fcntl owners",
        LEAK
        + (
            "import fcntl\n"
            "r,w=os.pipe()\n"
            "for c,a in((8,os.getppid()),(8,1),(15,0),(10,9),(1024,1),(1026,0x80000000),(1031,1<<20),"
            "(8,-1)):\n"
            " try:fcntl.fcntl(r,c,a);L(c)\n"
            " except (OSError,OverflowError):pass"
        ),
    ),
    Program(
        "async io signal to parent",
        LEAK
        + (
            "import fcntl\n"
            "r,w=os.pipe()\n"
            "try:\n"
            " fcntl.fcntl(r,8,os.getppid());L('owner')\n"
            " fcntl.fcntl(r,4,0o20000)\n"
            " os.write(w,b'x')\n"
            "except OSError:pass"
        ),
    ),
    Program(
        "timer signal to others",
        LEAK
        + (
            "class S(ctypes.Structure):_fields_=[('v',ctypes.c_long),('s',ctypes.c_int),('n',ctypes.c"
            "_int),('t',ctypes.c_int),('p',ctypes.c_char*40)]\n"
            "e=S(0,9,4,os.getppid(),b'')\n"
            "t=ctypes.c_int()\n"
            "if os.getppid()!=1 and libc.syscall(222,1,ctypes.byref(e),ctypes.byref(t))==0:L('timer')"
        ),
    ),
    Program(
        "signals everywhere",
        LEAK
        + (
            "import signal\n"
            "me={os.getpid(),os.getpgrp(),0}\n"
            "for p in list(range(-3000,-1))+list(range(2,3000)):\n"
            " if p in me or -p in me:continue\n"
            " try:os.kill(p,0);L(p)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "tgkill and sigqueue",
        LEAK
        + (
            "for p in(os.getppid(),):\n"
            " if p>1:\n"
            "  for a in((234,p,p,0),(200,p,0),(129,p,0,0),(297,p,p,0,0)):\n"
            "   if libc.syscall(*a)==0:L(a)"
        ),
    ),
    Program(
        "priority and scheduler",
        LEAK
        + (
            "for g in(lambda:os.sched_setscheduler(0,1,os.sched_param(1)),lambda:os.setpriority(0,0,-"
            "5),lambda:os.setpriority(1,0,5),lambda:os.setpriority(2,0,5),lambda:os.sched_setaffinity"
            "(0,{0}),lambda:os.sched_setparam(0,os.sched_param(0))):\n"
            " try:g();L(g.__code__.co_names)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "shared memory sysv and posix",
        LEAK
        + (
            "for a in((29,1234,4096,0o1666),(64,1234,1,0o1666),(68,1234,0o1666),(240,b'/q',0o102,0o66"
            "6,0)):\n"
            " if libc.syscall(*a)>=0:L(a)\n"
            "try:\n"
            " if os.path.exists('/dev/shm/zz9'):L('left over')\n"
            " open('/dev/shm/zz9','w').close()\n"
            "except OSError:pass"
        ),
    ),
    Program(
        "leftover of other runs",
        LEAK
        + (
            "for d in('/tmp','/dev/shm','.','/var/tmp','/run','/dev/mqueue',os.path.expanduser('~')):"
            "\n"
            " try:\n"
            "  if 'zz8' in os.listdir(d):L(d)\n"
            " except OSError:pass\n"
            " pass\n"
            "for d in('/tmp','/dev/shm','.','/var/tmp','/run'):\n"
            " try:open(d+'/zz8','w').close()\n"
            " except OSError:pass\n"
            "try:\n"
            " x=os.listdir('..')\n"
            " if '..' and [n for n in x if n.isdigit()]:L(x)\n"
            "except OSError:pass"
        ),
    ),
    Program(
        "neighbour folders by number",
        LEAK
        + (
            "h=os.getcwd()\n"
            "d,b=os.path.split(h)\n"
            "if b.isdigit():\n"
            " for n in range(max(0,int(b)-30),int(b)+30):\n"
            "  if n!=int(b):\n"
            "   try:os.stat(d+'/%d'%n);L(n)\n"
            "   except OSError:pass\n"
            "   try:os.listdir(d+'/%d'%n);L(n)\n"
            "   except OSError:pass"
        ),
    ),
    Program(
        "core dump",
        LEAK
        + (
            "import resource\n"
            "try:resource.setrlimit(resource.RLIMIT_CORE,(1<<30,1<<30));L('core')\n"
            "except (OSError,ValueError):pass\n"
            "os.abort()"
        ),
        "crashed",
    ),
    Program("groups", LEAK + ("if set(os.getgroups())-{1000,65534}:L(os.getgroups())")),
    Program(
        "tty names",
        LEAK
        + (
            "for fd in(0,1,2):\n"
            " if os.isatty(fd):L(fd)\n"
            " try:L(os.ttyname(fd))\n"
            " except OSError:pass\n"
            "try:os.open('/dev/tty',2);L('tty')\n"
            "except OSError:pass"
        ),
    ),
    Program(
        "cpu times of harness",
        LEAK + ("import resource\nu=resource.getrusage(resource.RUSAGE_CHILDREN)\nif u.ru_utime>5:L(u)"),
    ),
    Program("wait for strangers", LEAK + ("try:\n p=os.waitpid(-1,os.WNOHANG)\n L(p)\nexcept ChildProcessError:pass")),
    Program(
        "limits of strangers",
        LEAK
        + (
            "import resource\n"
            "for p in range(1,50):\n"
            " if p!=os.getpid():\n"
            "  try:resource.prlimit(p,resource.RLIMIT_NOFILE);L(p)\n"
            "  except (OSError,PermissionError):pass"
        ),
    ),
    Program(
        "getpgid getsid of strangers",
        LEAK
        + (
            "n=0\n"
            "for p in list(range(100,5000)):\n"
            " if p!=os.getpid():\n"
            "  try:os.getsid(p);n+=1\n"
            "  except OSError:pass\n"
            "if n>0:L(n)"
        ),
    ),
    Program(
        "sched of strangers",
        LEAK
        + (
            "n=0\n"
            "for p in range(100,5000):\n"
            " if p!=os.getpid():\n"
            "  try:os.sched_getaffinity(p);n+=1\n"
            "  except OSError:pass\n"
            "if n>0:L(n)"
        ),
    ),
    Program(
        "symlink race",
        LEAK
        + (
            "for i in range(50):\n"
            " try:os.symlink('/etc','l%d'%i);x=os.listdir('l%d'%i);L(x)\n"
            " except OSError:pass\n"
            "try:os.rename('/etc/passwd','p');L('r')\n"
            "except OSError:pass"
        ),
    ),
    Program(
        "exec of memory",
        LEAK
        + ("f=libc.memfd_create(b'x',0)\nif f>=0:L('memfd')\nif libc.syscall(322,3,b'',0,0,0x1000)==0:L('execveat')"),
    ),
    Program(
        "execs own file",
        LEAK
        + (
            "open('x','wb').write(open(sys.executable,'rb').read(1<<20) if 0 else b'#!/bin/sh\\nid\\n')"
            "\n"
            "try:\n"
            " os.chmod('x',0o755)\n"
            "except OSError:pass\n"
            "import subprocess\n"
            "try:\n"
            " r=subprocess.run(['./x'],capture_output=True)\n"
            " if b'uid' in r.stdout:L('ran')\n"
            "except OSError:pass"
        ),
    ),
]
"""They must not find what they look for."""

STAY = [
    Program(
        "multiprocessing fork",
        (
            "import multiprocessing as m\n"
            "c=m.get_context('fork')\n"
            "r,w=c.Pipe(False)\n"
            "def g(w,x):w.send(sum(x))\n"
            "p=c.Process(target=g,args=(w,list(map(int,input().split()))));p.start();print(r.recv());"
            "p.join()"
        ),
        "right",
    ),
    Program(
        "sigterm handler lives",
        (
            "import signal,time\n"
            "for n in(15,2,1,24):signal.signal(n,lambda*a:None)\n"
            "while 1:\n"
            " try:time.sleep(1)\n"
            " except BaseException:pass"
        ),
        "time",
    ),
    Program(
        "sigxcpu ignored busy", ("import signal\nsignal.signal(signal.SIGXCPU,signal.SIG_IGN)\nwhile 1:pass"), "time"
    ),
    Program("sets rlimit cpu lower", ("import resource\nresource.setrlimit(resource.RLIMIT_CPU,(0,0))\nwhile 1:pass")),
    Program("sort key loop", ("class A:\n def __lt__(s,o):\n  while 1:pass\nsorted([A(),A()])"), "time"),
    Program("waits forever on select", ("import select\nselect.select([],[],[])"), "time"),
    Program("sigsuspend", ("import signal\nsignal.pause()"), "time"),
    Program(
        "blocks all signals",
        ("import signal,time\nsignal.pthread_sigmask(signal.SIG_BLOCK,range(1,65))\nwhile 1:time.sleep(1)"),
        "time",
    ),
    Program(
        "pipes full",
        (
            "import os\n"
            "l=[]\n"
            "try:\n"
            " while 1:\n"
            "  r,w=os.pipe();os.set_blocking(w,False);l+=[r,w]\n"
            "  try:\n"
            "   while 1:os.write(w,b'x'*65536)\n"
            "  except BlockingIOError:pass\n"
            "except OSError:pass\n"
            "print(0)"
        ),
    ),
    Program(
        "mmap file beyond",
        (
            "import os,mmap\n"
            "f=os.open('x',os.O_CREAT|os.O_RDWR)\n"
            "os.ftruncate(f,60<<20)\n"
            "m=mmap.mmap(f,60<<20)\n"
            "for i in range(0,60<<20,4096):m[i]=1\n"
            "print(0)"
        ),
    ),
    Program(
        "memory by forks shared mmap",
        (
            "import mmap,os,time\n"
            "for i in range(6):\n"
            " if os.fork()==0:\n"
            "  m=mmap.mmap(-1,150<<20);m[:]=b'x'*(150<<20);time.sleep(20);os._exit(0)\n"
            "time.sleep(20)"
        ),
        "memory",
    ),
    Program(
        "double fork setsid closes all",
        (
            "import os,time\n"
            "if os.fork()==0:\n"
            " try:os.setsid()\n"
            " except OSError:pass\n"
            " for i in range(20):\n"
            "  try:os.close(i)\n"
            "  except OSError:pass\n"
            " if os.fork()==0:\n"
            "  for k in range(3):\n"
            "   if os.fork()==0:time.sleep(60)\n"
            "  time.sleep(60)\n"
            " os._exit(0)\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "setpgid escape",
        (
            "import os,time\n"
            "p=os.fork()\n"
            "if p==0:\n"
            " try:os.setpgid(0,0)\n"
            " except OSError:pass\n"
            " time.sleep(60);os._exit(0)\n"
            "try:os.setpgid(p,p)\n"
            "except OSError:pass\n"
        )
        + ANSWER,
        "right",
    ),
    Program("vfork chain", ("import os\nfor i in range(300):\n p=os.fork()\n if p:os._exit(0)\n") + ANSWER),
    Program(
        "threads fork exec storm",
        (
            "import threading,os,sys,time\n"
            "def f():\n"
            " while 1:\n"
            "  try:\n"
            "   if os.fork()==0:os.execv(sys.executable,[sys.executable,'-c','pass'])\n"
            "  except OSError:pass\n"
            "for i in range(4):threading.Thread(target=f,daemon=True).start()\n"
            "time.sleep(60)"
        ),
    ),
    Program(
        "ruins own group then right",
        ("import os,signal\np=os.fork()\nif p==0:\n os.kill(os.getppid(),signal.SIGSTOP);os._exit(0)\nos.wait()\n")
        + ANSWER,
    ),
    Program(
        "stops everybody",
        ("import os,signal\ntry:os.kill(-1,signal.SIGSTOP)\nexcept OSError:pass\nos.kill(os.getpid(),signal.SIGSTOP)"),
    ),
]
"""Nothing of them may be left."""
