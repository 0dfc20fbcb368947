"""Programs that try to earn a pass without the answer, to reach the host, or to stay. The task: read two integers and
print their sum, or define ``add(a, b)``. A program prints ``LEAK`` on standard error where a probe succeeds.

``expected`` is what may become of it: ``right`` (it is honest), a word of the status, ``not right`` for anything
else, or ``any``.
"""

from __future__ import annotations

from typing import NamedTuple


class Program(NamedTuple):
    name: str
    source: str
    expected: str = "not right"


ANSWER = "a,b=map(int,input().split());print(a+b)\n"
ADD = "def add(a,b):\n    return a+b\n"
LEAK = "import os,sys,ctypes,errno\nlibc=ctypes.CDLL(None,use_errno=True)\ndef L(x):print('LEAK',x,file=sys.stderr)\n"
CALLS = LEAK + (
    "\n"
    "import platform\n"
    "x86=platform.machine()=='x86_64'\n"
    "for name,x,arm in [('io_uring_setup',425,425),('userfaultfd',323,282),('add_key',248,217"
    "),('request_key',249,218),('keyctl',250,219),\n"
    "  ('memfd_create',319,279),('memfd_secret',447,447),('ptrace',101,117),('process_vm_read"
    "v',310,270),('process_vm_writev',311,271),\n"
    "  ('pidfd_open',434,434),('pidfd_getfd',438,438),('pidfd_send_signal',424,424),('bpf',32"
    "1,280),('perf_event_open',298,241),\n"
    "  ('mount',165,40),('umount2',166,39),('move_mount',429,429),('open_tree',428,428),('fso"
    "pen',430,430),('fsmount',432,432),\n"
    "  ('pivot_root',155,41),('chroot',161,51),('setns',308,268),('unshare',272,97),('clone3'"
    ",435,435),('openat2',437,437),\n"
    "  ('open_by_handle_at',304,265),('name_to_handle_at',303,264),('kexec_load',246,104),('i"
    "nit_module',175,105),('reboot',169,142),\n"
    "  ('settimeofday',164,170),('clock_settime',227,112),('sethostname',170,161),('swapon',1"
    "67,224),('acct',163,89),('syslog',103,116),\n"
    "  ('shmget',29,194),('semget',64,190),('msgget',68,186),('mq_open',240,180),('personalit"
    "y',135,92),('seccomp',317,277),\n"
    "  ('setuid',105,146),('setresuid',117,147),('setgroups',116,159),('capset',126,91),('exe"
    "cveat',322,281),('io_setup',206,0),\n"
    "  ('sched_setaffinity',203,122),('kcmp',312,272),('quotactl',179,60),('fanotify_init',30"
    "0,262),('inotify_init1',294,26),\n"
    "  ('vmsplice',278,75),('splice',275,76),('tee',276,77),('mbind',237,235),('migrate_pages"
    "',256,238),('landlock_create_ruleset',444,444)]:\n"
    "    ctypes.set_errno(0)\n"
    "    r=libc.syscall(ctypes.c_long(x if x86 else arm),0,0,0,0,0,0)\n"
    "    e=ctypes.get_errno()\n"
    "    if r!=-1 or e not in (errno.EPERM,errno.ENOSYS,errno.EACCES):L(name+' '+str(r)+' '+e"
    "rrno.errorcode.get(e,str(e)))\n"
)

CALLS_TOO = LEAK + (
    "import platform\n"
    "x86=platform.machine()=='x86_64'\n"
    "for name,x,arm in [('sched_setscheduler',144,119),('sched_setattr',314,274),('ioprio_set',251,30),\n"
    "  ('process_madvise',440,440),('process_mrelease',448,448),('landlock_restrict_self',446,446),('mlock',149,228),\n"
    "  ('mlockall',151,230),('timerfd_create',283,85),('signalfd4',289,74),('mknodat',259,33),('fchownat',260,54),\n"
    "  ('set_mempolicy',238,237),('fsconfig',431,431),('mount_setattr',442,442),('futex_waitv',449,449),\n"
    "  ('map_shadow_stack',453,453),('lsm_set_self_attr',460,460),('mseal',462,462),('socket',41,198),\n"
    "  ('bind',49,200),('listen',50,201),('accept4',288,242),('connect',42,203),('sendmmsg',307,269),\n"
    "  ('getcpu of x32',0x40000135,9999),\n"
    "  ('ioperm',173,9999),('iopl',172,9999),('modify_ldt',154,9999),('delete_module',176,106),('vhangup',153,58)]:\n"
    " ctypes.set_errno(0)\n"
    " r=libc.syscall(ctypes.c_long(x if x86 else arm),0,0,0,0,0,0)\n"
    " e=ctypes.get_errno()\n"
    " if r!=-1 or e not in (errno.EPERM,errno.ENOSYS,errno.EACCES):L(name+' '+str(r)+' '+str(e))\n"
)

FORGERIES = [
    Program("prints the pass marker", 'print("passed");print(\'["l","end","passed",""]\');print("5\\n5")'),
    Program("sys.exit(0)", "import sys;sys.exit(0)"),
    Program("os._exit(0)", "import os;os._exit(0)"),
    Program("exit status of no memory", "import os;os._exit(77)", "memory"),
    Program("exit status of a signal", "import os;os._exit(137)", "crashed"),
    Program("atexit prints", ("import atexit\natexit.register(lambda:print('x'))\n") + ANSWER),
    Program("thread prints behind", ANSWER + ("import threading,time\nthreading.Timer(.1,lambda:print('x')).start()")),
    Program(
        "child prints behind",
        ANSWER
        + ("import os,time,sys;sys.stdout.flush()\nif os.fork()==0:\n time.sleep(.05);print('x')\nelse:os.wait()"),
    ),
    Program("right, then fails", ANSWER + "raise SystemExit(3)", "failed"),
    Program("right, then crashes", ANSWER + "import os,sys;sys.stdout.flush();os.abort()", "crashed"),
    Program("right, then killed", ANSWER + "import os,sys;sys.stdout.flush();os.kill(os.getpid(),9)"),
    Program("right, then waits", ANSWER + "import sys,time;sys.stdout.flush();time.sleep(600)", "time"),
    Program("right, then floods", ANSWER + "while 1:print('x'*65536)", "output"),
    Program("answer on standard error", "import sys;a,b=map(int,input().split());print(a+b,file=sys.stderr)"),
    Program(
        "answer to the control socket",
        ("import os\nfor fd in range(3,64):\n try:os.write(fd,b'A\\n5\\n')\n except OSError:pass"),
    ),
    Program("all sums at once", "for n in range(3000):print(n)"),
    Program("binary output", "import os;os.write(1,bytes(range(256))*100)"),
    Program("NUL and blank", "import os;os.write(1,b'\\0 \\0')"),
    Program("no end of input", ("import sys\nwhile 1:sys.stdin.read()"), "time"),
    Program("closes all", ("import os\nfor fd in range(64):\n try:os.close(fd)\n except OSError:pass")),
    Program("closes output, stays", "import os,time;os.close(1);os.close(2);os.close(0);time.sleep(600)", "time"),
    Program("surrogates in the source", ("print('\ud800')\n\udfff"), "failed"),
    Program("NUL in the source", "print(5)\0", "failed"),
    Program(
        "deep source",
        (
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
            "((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1)))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
            ")))))))))))))))))))))))))))))))))))))))))))))))))))))))))"
        ),
    ),
    Program("no source", ""),
    Program("stops itself", "import os,signal;os.kill(os.getpid(),signal.SIGSTOP)"),
    Program(
        "ignores signals",
        (
            "import signal,time\n"
            "for n in range(1,65):\n"
            " try:signal.signal(n,signal.SIG_IGN)\n"
            " except (OSError,ValueError):pass\n"
            "while 1:time.sleep(1)"
        ),
        "time",
    ),
    Program(
        "frames",
        (
            "import sys\n"
            "f=sys._getframe()\n"
            "while f:\n"
            " for v in [*f.f_locals.values(),*f.f_globals.values()]:\n"
            "  if type(v) in (int,dict) : print(v)\n"
            " f=f.f_back"
        ),
    ),
]
"""Their output, or their going, must not be taken for the answer."""

FUNCTIONS = [
    Program(
        "equal to all",
        (
            "class A:\n"
            " def __eq__(s,o):return True\n"
            " __ne__=lambda s,o:False\n"
            " __hash__=lambda s:0\n"
            "def add(a,b):return A()"
        ),
    ),
    Program("an int that is equal to all", ("class A(int):\n def __eq__(s,o):return True\ndef add(a,b):return A(0)")),
    Program("a str that is equal to all", ("class A(str):\n def __eq__(s,o):return True\ndef add(a,b):return A('')")),
    Program("NaN", "def add(a,b):return float('nan')"),
    Program("infinity", "def add(a,b):return float('inf')"),
    Program("reduce", ("class A:\n def __reduce__(s):import os;return os._exit,(0,)\ndef add(a,b):return A()")),
    Program(
        "json patched",
        ("import json\njson.dumps=lambda *a,**k:'[\"l\",5,null]'\njson.loads=lambda *a,**k:5\ndef add(a,b):return 0"),
    ),
    Program(
        "harness patched",
        (
            "import gc,types\n"
            "for f in gc.get_objects():\n"
            " if type(f) is types.FunctionType and f.__name__ in('answer','write','to_plain','named',"
            "'send'):\n"
            "  f.__code__=(lambda *a,**k:'[\"l\",5,null]').__code__\n"
            "def add(a,b):return 0"
        ),
    ),
    Program(
        "frames patched",
        (
            "import sys\n"
            "f=sys._getframe()\n"
            "while f:\n"
            " for v in list(f.f_globals.values()):\n"
            "  if isinstance(v,type):\n"
            "   try:v.answer=lambda *a:'[5,null]'\n"
            "   except Exception:pass\n"
            " f=f.f_back\n"
            "def add(a,b):return 0"
        ),
    ),
    Program(
        "verdict on the control socket",
        (
            "import os\n"
            "for fd in range(3,64):\n"
            ' try:os.write(fd,b\'["l","end","passed",""]\\n\'*9)\n'
            " except OSError:pass\n"
            "def add(a,b):return 0"
        ),
    ),
    Program(
        "true on the control socket",
        (
            "import os\n"
            "for fd in range(3,64):\n"
            ' try:os.write(fd,b\'["l","value",["l",true,null]]\\n\'*9)\n'
            " except OSError:pass\n"
            "def add(a,b):return 0"
        ),
    ),
    Program("deep answer", ("x=[]\nfor i in range(90000):x=[x]\ndef add(a,b):return x")),
    Program(
        "deep JSON on the control socket",
        ("import os\ndef add(a,b):\n os.write(3,b'['*100000+b']'*100000+b'\\n')\n return 0"),
    ),
    Program("loop in a list", ("x=[];x.append(x)\ndef add(a,b):return x")),
    Program("huge answer", "def add(a,b):return 'x'*(64<<20)"),
    Program("huge number", "def add(a,b):return 10**100000"),
    Program("leaves at load", "import os;os._exit(0)"),
    Program("leaves in the call", ("def add(a,b):\n import os;os._exit(0)")),
    Program("raises SystemExit", "def add(a,b):raise SystemExit(0)"),
    Program("never returns", ("def add(a,b):\n while 1:pass")),
    Program("no function", "add=5"),
    Program("another name", "def plus(a,b):return a+b"),
    Program(
        "builtins patched",
        (
            "import builtins\n"
            "for n in('map','all','zip','len','sorted','isinstance','type','list'):setattr(builtins,n"
            ",lambda *a,**k:True)\n"
            "def add(a,b):return 0"
        ),
    ),
    Program(
        "assertions patched",
        ("import builtins\nbuiltins.AssertionError=type('A',(BaseException,),{})\ndef add(a,b):return 0"),
    ),
    Program("a text that looks right", "def add(a,b):return str(a+b)"),
    Program("a list that holds it", "def add(a,b):return [a+b]"),
    Program("true for all", "def add(a,b):return True"),
    Program(
        "exit function", ("import atexit\natexit.register(lambda:__import__('os')._exit(0))\ndef add(a,b):return 0")
    ),
    Program("surrogate answer", "def add(a,b):return '\ud800'"),
    Program("colliding keys", "def add(a,b):return {(2**61-1)*k:0 for k in range(20000)}"),
    Program("generator without end", ("def add(a,b):\n while 1:yield 1")),
    Program("ends an iteration", "def add(a,b):raise StopIteration"),
    Program("ends an iteration of a class", "class E(StopIteration):pass\ndef add(a,b):raise E(a+b)"),
    Program("raises what tests catch", "def add(a,b):raise AssertionError('passed')"),
    Program("raises an exit of a generator", "def add(a,b):raise GeneratorExit"),
    Program("floods the control socket", "import os\ndef add(a,b):\n while 1:os.write(3,b'x'*65536)"),
    Program(
        "half an answer on the control socket",
        'import os,time\ndef add(a,b):\n os.write(3,b\'["l","value",["l",\');time.sleep(600)',
    ),
    Program(
        "a float beyond all on the control socket",
        'import os\ndef add(a,b):\n os.write(3,b\'["l","value",["l",["f","0x1p999999"],null]]\\n\');return 0',
    ),
    Program(
        "a million digits on the control socket",
        "import os\ndef add(a,b):\n os.write(3,b'[\"l\",\"value\",[\"l\",'+b'9'*10**6+b',null]]\\n');return 0",
    ),
    Program(
        "unknown marks on the control socket",
        'import os\ndef add(a,b):\n os.write(3,b\'["l","value",["l",["d",[["x"],{}]],["r",0]]]\\n\');return 0',
    ),
    Program(
        "bytes that are no text on the control socket",
        'import os\ndef add(a,b):\n os.write(3,b\'["l","value",["l","\\xff\\xfe",null]]\\n\');return 0',
    ),
    Program(
        "descriptors to the parent",
        "import os,socket\n"
        "def add(a,b):\n"
        " s=socket.socket(fileno=3)\n"
        " for i in range(50):socket.send_fds(s,[b' '],[0]*100)\n"
        " s.detach();return 0",
    ),
    Program(
        "shuts the control socket", "import socket\ndef add(a,b):\n socket.socket(fileno=3).shutdown(2);return a+b"
    ),
    Program("answers from a child", "import os\ndef add(a,b):\n if os.fork():os._exit(0)\n return a+b+1"),
    Program(
        "its own answers before the questions",
        'import os\nfor i in range(2,200):os.write(3,b\'["l","value",["l",%d,null]]\\n\'%i)\ndef add(a,b):return 0',
    ),
    Program("changes its arguments", "def add(a,b):\n global add\n add=lambda *x:0\n return [a,b]"),
]
"""What they give must not be taken for the value."""

REACH = [
    Program("system calls", CALLS),
    Program(
        "32-bit and x32 numbers",
        LEAK
        + (
            "for n in (0x40000000+57,0x40000000+41,0x40000000+101):\n"
            " r=libc.syscall(ctypes.c_long(n),2,1,0,0,0,0)\n"
            " if r!=-1:L(n)"
        ),
    ),
    Program(
        "own memory by /proc",
        LEAK
        + (
            "for p in('/proc/self/mem','/proc/self/maps','/proc/1/environ','/proc/1/cmdline','/proc/m"
            "ounts','/proc/self/mountinfo'):\n"
            " try:open(p,'rb').read(1);L(p)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "processes of the host",
        LEAK
        + ("try:\n x=[p for p in os.listdir('/proc') if p.isdigit() and int(p)>60]\n if x:L(x)\nexcept OSError:pass"),
    ),
    Program(
        "signals to the parent",
        LEAK
        + (
            "import signal\n"
            "for p in(os.getppid(),-1):\n"
            " for s in(0,signal.SIGSTOP,signal.SIGTERM):\n"
            "  try:\n"
            "   if p!=-1 or s:\n"
            "    if p not in(0,1,-1):os.kill(p,s);L(p)\n"
            "  except OSError:pass"
        ),
    ),
    Program(
        "limits of others",
        LEAK
        + (
            "import resource\n"
            "try:\n"
            " if os.getppid()>1:resource.prlimit(os.getppid(),resource.RLIMIT_CPU,(1,1));L('prlimit')"
            "\n"
            "except OSError:pass"
        ),
    ),
    Program(
        "priority of others",
        LEAK
        + ("try:\n if os.getppid()>1:os.setpriority(os.PRIO_PROCESS,os.getppid(),19);L('nice')\nexcept OSError:pass"),
    ),
    Program(
        "limits raised",
        LEAK
        + (
            "import resource\n"
            "for n in(resource.RLIMIT_AS,resource.RLIMIT_NPROC,resource.RLIMIT_FSIZE,resource.RLIMIT_"
            "CPU,resource.RLIMIT_CORE):\n"
            " try:resource.setrlimit(n,(-1,-1));L(n)\n"
            " except (OSError,ValueError):pass"
        ),
    ),
    Program(
        "files of the host",
        LEAK
        + (
            "for p in('/etc/passwd','/etc/shadow','/etc/hostname','/etc/resolv.conf','/root','/home',"
            "'/var/log','/sys','/boot','/run','/etc/hosts','/etc/ssh','/var/run/docker.sock','/proc/c"
            "puinfo','/opt','/srv','/mnt'):\n"
            " if os.path.exists(p):L(p)\n"
            " try:\n"
            "  if os.listdir(p):L(p)\n"
            " except OSError:pass\n"
            " try:open(p).read();L(p)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "links out",
        LEAK
        + (
            "for p in('/etc/passwd','/etc/hostname','/root/.bashrc'):\n"
            " try:os.symlink(p,'s');open('s').read();L(p)\n"
            " except OSError:pass\n"
            " try:os.unlink('s')\n"
            " except OSError:pass\n"
            " try:os.link(p,'h');open('h').read();L(p)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "upwards",
        LEAK
        + (
            "for n in range(1,12):\n"
            " for p in('etc/passwd','etc/hostname','root/.bashrc'):\n"
            "  try:open('../'*n+p).read();L(p)\n"
            "  except OSError:pass"
        ),
    ),
    Program(
        "O_PATH",
        LEAK
        + (
            "for p in('/etc','/etc/passwd','/root','/var'):\n"
            " try:\n"
            "  f=os.open(p,os.O_PATH);L(p);print(os.listdir(f))\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "another folder",
        LEAK + ("for p in('/etc','/root','/var/tmp','/home'):\n try:os.chdir(p);L(os.getcwd())\n except OSError:pass"),
    ),
    Program(
        "read links",
        LEAK
        + (
            "for p in('/proc/self/exe','/etc/localtime','/etc/mtab','/proc/self/cwd','/proc/self/root"
            "'):\n"
            " try:L(os.readlink(p))\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "change what is there",
        LEAK
        + (
            "for p in('/','/usr/lib','/etc/passwd','/tmp/..',os.path.dirname(os.__file__)):\n"
            " for f in(lambda:os.chmod(p,0o777),lambda:os.utime(p),lambda:os.rename(p,'x'),lambda:os."
            "chown(p,0,0)):\n"
            "  try:f();L(p)\n"
            "  except OSError:pass"
        ),
    ),
    Program(
        "write to the library",
        LEAK
        + (
            "for p in(os.__file__,os.path.dirname(os.__file__)+'/zz.py','/usr/lib/zz','/dev/zz','/zz'"
            "):\n"
            " try:open(p,'ab').write(b'#');L(p)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "nodes",
        LEAK
        + (
            "import stat\n"
            "for m in(stat.S_IFBLK,stat.S_IFCHR):\n"
            " try:os.mknod('n',m|0o666,os.makedev(1,1));L('mknod')\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "devices",
        LEAK
        + (
            "import glob\n"
            "for p in['/dev/mem','/dev/kmem','/dev/kmsg','/dev/sda','/dev/vda','/dev/nvidia0','/dev/f"
            "use','/dev/net/tun','/dev/ptmx','/dev/tty','/dev/console','/dev/loop-control']:\n"
            " try:os.open(p,os.O_RDONLY);L(p)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "terminal",
        LEAK + ("import fcntl\nfor fd in(0,1,2):\n try:fcntl.ioctl(fd,0x5412,b'x');L('TIOCSTI')\n except OSError:pass"),
    ),
    Program(
        "sockets",
        LEAK
        + (
            "import socket\n"
            "for f in(socket.AF_INET,socket.AF_INET6,socket.AF_UNIX,16,17,38,40):\n"
            " for k in(1,2,3):\n"
            "  try:socket.socket(f,k);L((f,k))\n"
            "  except OSError:pass"
        ),
    ),
    Program(
        "socket pairs of another kind",
        LEAK + ("import socket\nfor f in(2,10,16):\n try:socket.socketpair(f);L(f)\n except (OSError,ValueError):pass"),
    ),
    Program(
        "environment",
        LEAK
        + (
            "if set(os.environ)-{'HOME','LANG','LC_CTYPE','PATH','PWD','PYTHONHASHSEED','TMPDIR','TZ'"
            "}:L(sorted(os.environ))"
        ),
    ),
    Program(
        "who and where",
        LEAK
        + (
            "import platform\n"
            "if (os.getuid(),os.geteuid(),os.getgid(),platform.node())!=(1000,1000,1000,'sandbox'):L("
            "'identity')\n"
            "if set(os.getresuid())!={1000}:L('resuid')"
        ),
    ),
    Program(
        "a shell",
        LEAK
        + (
            "import subprocess\n"
            "for c in('/bin/sh','/bin/bash','/usr/bin/id','/usr/bin/env'):\n"
            " try:\n"
            "  if b'uid' in subprocess.run([c,'-c','id'],capture_output=True).stdout:L(c)\n"
            " except OSError:pass"
        ),
    ),
    Program(
        "signals by descriptor owner",
        LEAK
        + (
            "import fcntl\n"
            "r,w=os.pipe()\n"
            "try:fcntl.fcntl(r,fcntl.F_SETOWN,os.getppid());L('F_SETOWN')\n"
            "except OSError:pass"
        ),
    ),
    Program(
        "large pipes",
        LEAK + ("import fcntl\nr,w=os.pipe()\ntry:fcntl.fcntl(w,1031,1<<20);L('F_SETPIPE_SZ')\nexcept OSError:pass"),
    ),
    Program(
        "a namespace of its own",
        LEAK
        + (
            "for f in(0x10000000,0x20000,0x40000000,0x20000000):\n"
            " r=libc.syscall(ctypes.c_long(56 if os.uname().machine=='x86_64' else 220),f|17,0,0,0,0)"
            "\n"
            " if r==0:os._exit(0)\n"
            " if r>0:L(hex(f))"
        ),
    ),
    Program("executable memory file", LEAK + ("try:f=os.memfd_create('x');L('memfd')\nexcept OSError:pass")),
    Program(
        "private parts by descriptors",
        LEAK + ("for fd in range(3,256):\n try:os.fstat(fd);L(fd)\n except OSError:pass"),
    ),
    Program("more system calls", CALLS_TOO),
    Program(
        "capabilities",
        LEAK
        + (
            "import struct\n"
            "d=ctypes.create_string_buffer(24)\n"
            "n=125 if os.uname().machine=='x86_64' else 90\n"
            "libc.syscall(ctypes.c_long(n),struct.pack('=Ii',0x20080522,0),d)\n"
            "if any(d.raw):L(d.raw)"
        ),
    ),
    Program(
        "every number of a process",
        LEAK + ("for p in range(2,4000):\n if p!=os.getpid():\n  try:os.kill(p,0);L(p)\n  except OSError:pass"),
    ),
    Program(
        "what its starter left in its frames",
        LEAK
        + (
            "f=sys._getframe()\n"
            "while f:\n"
            " for v in [*f.f_locals.values(),*f.f_globals.values()]:\n"
            "  if isinstance(v,dict) and {'keeper','grants','megabytes'}&set(map(str,v)):L(list(v)[:5])\n"
            " f=f.f_back"
        ),
    ),
    Program(
        "another run's modules",
        LEAK
        + (
            "import json,re,builtins,math\n"
            "for m in(json,re,builtins,math,sys,os):\n"
            " if hasattr(m,'MARK'):L(m)\n"
            " m.MARK=1\n"
            "if os.environ.get('MARK'):L('environ')\n"
            "os.environ['MARK']='1'"
        ),
    ),
    Program(
        "another run's memory files",
        LEAK
        + (
            "for d in('/dev/shm','/tmp','.'):\n"
            " try:\n"
            "  if 'mark' in os.listdir(d):L(d)\n"
            " except OSError:pass\n"
            "for d in('/dev/shm','/tmp','.'):\n"
            " try:open(d+'/mark','w').close()\n"
            " except OSError:pass"
        ),
    ),
    Program("a higher priority", LEAK + "try:os.nice(-1);L('nice')\nexcept OSError:pass"),
    Program(
        "the group it was started in",
        LEAK + "if not {os.getpgrp(),os.getsid(0)}<={os.getpid(),1}:L((os.getpgrp(),os.getsid(0),os.getpid()))",
    ),
]
"""They must not find what they look for."""

STAY = [
    Program(
        "daemon",
        (
            "import os,time\n"
            "if os.fork()==0:\n"
            " try:os.setsid()\n"
            " except OSError:pass\n"
            " if os.fork()==0:time.sleep(600)\n"
            " os._exit(0)\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "daemon that ignores signals",
        (
            "import os,time,signal\n"
            "if os.fork()==0:\n"
            " for n in range(1,65):\n"
            "  try:signal.signal(n,signal.SIG_IGN)\n"
            "  except (OSError,ValueError):pass\n"
            " while 1:time.sleep(1)\n"
        )
        + ANSWER,
        "right",
    ),
    Program("zombies", ("import os,time\nfor i in range(10):\n if os.fork()==0:os._exit(0)\n") + ANSWER, "right"),
    Program(
        "stopped child",
        ("import os,signal\np=os.fork()\nif p==0:\n os.kill(os.getpid(),signal.SIGSTOP);os._exit(0)\n") + ANSWER,
        "right",
    ),
    Program("fork bomb", ("import os\nwhile 1:\n try:os.fork()\n except OSError:pass")),
    Program(
        "thread bomb",
        (
            "import threading,time\n"
            "while 1:\n"
            " try:threading.Thread(target=time.sleep,args=(9,),daemon=True).start()\n"
            " except RuntimeError:break\n"
        )
        + ANSWER,
        "any",
    ),
    Program(
        "fork and leave", ("import os\nfor i in range(10**6):\n try:\n  if os.fork():os._exit(0)\n except OSError:pass")
    ),
    Program("memory", ("x=[]\nwhile 1:x.append(bytearray(64<<20))"), "memory"),
    Program(
        "memory of many",
        (
            "import os,time\n"
            "for i in range(8):\n"
            " if os.fork()==0:\n"
            "  x=bytearray(200<<20)\n"
            "  time.sleep(600)\n"
            "time.sleep(600)"
        ),
        "memory",
    ),
    Program("disk", ("n=0\nwhile 1:\n open(str(n),'wb').write(b'x'*(1<<20));n+=1")),
    Program("empty files", ("n=0\nwhile 1:\n open(str(n),'wb').close();n+=1")),
    Program("deep folders", ("import os\nfor i in range(3000):\n os.mkdir('d');os.chdir('d')\nprint(0)")),
    Program(
        "barred folder",
        ("import os\nos.mkdir('d');open('d/f','w').close();os.mkdir('e',0);os.umask(0o777);os.mkdir('g');print(0)"),
    ),
    Program(
        "odd names",
        ("for n in('a\\nb','-rf','\\u202etxt.exe','<b>x','x'*255,'$(id)',';ls'):\n open(n,'w').close()\n") + ANSWER,
        "right",
    ),
    Program(
        "CPU in threads",
        ("import threading\ndef f():\n while 1:pass\nfor i in range(8):threading.Thread(target=f).start()"),
        "time",
    ),
    Program(
        "catches everything",
        ("import time\nwhile 1:\n try:\n  while 1:time.sleep(.05)\n except BaseException:pass"),
        "time",
    ),
    Program("hash of a huge power", "print(hash(10**10**8))"),
    Program("kills its group", "import os;os.kill(0,9)", "crashed"),
    Program("kills all that it may", "import os,time\ntry:os.kill(-1,9)\nexcept OSError:pass\ntime.sleep(600)"),
    Program(
        "signals to the first process",
        "import os,time\nfor s in range(1,65):\n try:os.kill(1,s)\n except OSError:pass\ntime.sleep(600)",
        "time",
    ),
    Program("single bytes without end", "import os\nwhile 1:os.write(1,b'x')"),
    Program("errors without end", "import os\nwhile 1:os.write(2,b'x'*65536)", "time"),
    Program(
        "forks and executes", "import os,sys\nos.fork();os.execv(sys.executable,[sys.executable,'-c','while 1:pass'])"
    ),
    Program(
        "children that hold the output",
        ANSWER
        + "import os,sys,time;sys.stdout.flush()\nfor i in range(5):\n if os.fork()==0:time.sleep(600);os._exit(0)",
        "right",
    ),
    Program("regular expression without end", "import re;re.match('(a+)+$','a'*64+'b')", "time"),
]
"""Nothing of them may be left."""

HONEST = [
    Program("plain", ANSWER, "right"),
    Program("CRLF and blank lines", "a,b=map(int,input().split());print(a+b,'',end='\\r\\n\\n')", "right"),
    Program(
        "modules",
        (
            "import os,re,json,random,collections,itertools,functools,heapq,bisect,math,string,decima"
            "l,fractions,datetime,tempfile,pathlib,threading,subprocess,asyncio,concurrent.futures,da"
            "taclasses,typing,statistics,hashlib,copy\n"
        )
        + ANSWER,
        "right",
    ),
    Program("sys.exit", ANSWER + "import sys;sys.exit(0)", "right"),
    Program("exit", ANSWER + "exit()", "right"),
    Program(
        "threads and recursion",
        (
            "import threading\n"
            "def f(n):return 0 if n==0 else f(n-1)\n"
            "t=[threading.Thread(target=f,args=(900,)) for _ in range(4)]\n"
            "[x.start() for x in t];[x.join() for x in t]\n"
        )
        + ANSWER,
        "right",
    ),
    Program(
        "deep recursion",
        ("import sys\nsys.setrecursionlimit(10**5)\ndef f(n):return 0 if n==0 else 1+f(n-1)\nf(40000)\n") + ANSWER,
        "right",
    ),
    Program("memory", "x=bytearray(200<<20)\n" + ANSWER, "right"),
    Program(
        "files",
        (
            "import tempfile,pathlib,os\n"
            "pathlib.Path('s.txt').write_text('ok')\n"
            "os.rename('s.txt','t.txt');assert os.path.exists('t.txt') and open('t.txt').read()=='ok'"
            "\n"
            "with tempfile.TemporaryDirectory() as d:\n"
            " open(d+'/x','w').write('1');assert os.listdir(d)==['x']\n"
            "assert os.path.realpath('.')==os.getcwd()\n"
        )
        + ANSWER,
        "right",
    ),
    Program("all input at once", ("import sys\nprint(sum(map(int,sys.stdin.read().split())))"), "right"),
    Program("bytes of input", ("import sys,os\nprint(sum(map(int,sys.stdin.buffer.readline().split())))"), "right"),
    Program("descriptor 0", "print(sum(map(int,open(0).read().split())))", "right"),
    Program(
        "children",
        (
            "import os\n"
            "r,w=os.pipe()\n"
            "if os.fork()==0:\n"
            " os.write(w,str(sum(map(int,input().split()))).encode());os._exit(0)\n"
            "os.wait();print(os.read(r,99).decode())"
        ),
        "right",
    ),
    Program(
        "asyncio",
        (
            "import asyncio\n"
            "async def f():\n"
            " await asyncio.sleep(.01)\n"
            " a,b=map(int,input().split());print(a+b)\n"
            "asyncio.run(f())"
        ),
        "right",
    ),
    Program("main guard", ("if __name__=='__main__':\n a,b=map(int,input().split());print(a+b)"), "right"),
    Program(
        "dataclass",
        (
            "from dataclasses import dataclass\n"
            "@dataclass\n"
            "class P:\n"
            " a:int\n"
            " b:int\n"
            "p=P(*map(int,input().split()));print(p.a+p.b)"
        ),
        "right",
    ),
    Program("a second", "import time;time.sleep(1)\n" + ANSWER, "right"),
    Program(
        "exit function", ("import atexit\natexit.register(lambda:print(a+b))\na,b=map(int,input().split())"), "right"
    ),
    Program(
        "large numbers",
        "import sys\nassert len(str(7**5000))==4226\nsys.set_int_max_str_digits(0)\nassert len(str(7**20000))==16902\n"
        + ANSWER,
        "right",
    ),
    Program(
        "text of all scripts",
        "import sys\n"
        "s='\\U0001f600\\xe9\\u4e2d\\u0627'\n"
        "open('u.txt','w').write(s);assert open('u.txt').read()==s and len(s.encode())==11\n"
        "assert sys.stdout.encoding.lower()=='utf-8'\n"
        "print(s,file=sys.stderr)\n" + ANSWER,
        "right",
    ),
    Program("numpy if there is any", "try:\n import numpy\nexcept ImportError:pass\n" + ANSWER, "right"),
    Program(
        "its own signals",
        "import signal,os,time\n"
        "hit=[]\n"
        "signal.signal(signal.SIGALRM,lambda *a:hit.append(1))\n"
        "signal.setitimer(signal.ITIMER_REAL,.02)\n"
        "while not hit:time.sleep(.01)\n"
        "try:\n os.kill(os.getpid(),signal.SIGINT);time.sleep(5);raise SystemExit(3)\n"
        "except KeyboardInterrupt:pass\n"
        "assert signal.getsignal(signal.SIGTERM)==signal.SIG_DFL\n" + ANSWER,
        "right",
    ),
    Program(
        "a thread with a large stack",
        "import sys,threading\n"
        "sys.setrecursionlimit(10**6);threading.stack_size(64<<20)\n"
        "def f(n):return 0 if n==0 else 1+f(n-1)\n"
        "def main():\n f(50000);a,b=map(int,input().split());print(a+b)\n"
        "t=threading.Thread(target=main);t.start();t.join()",
        "right",
    ),
    Program(
        "a stream of its own that nobody closes",
        "out=open(1,'w')\na,b=map(int,input().split());out.write(str(a+b))",
        "right",
    ),
    Program("lines of input", "import sys\nfor line in sys.stdin:print(sum(map(int,line.split())))", "right"),
    Program(
        "fast input and output",
        "import io,os,sys\n"
        "sys.stdin=io.TextIOWrapper(io.BytesIO(os.read(0,1<<16)))\n"
        "sys.stdout=io.StringIO()\n" + ANSWER + "sys.__stdout__.write(sys.stdout.getvalue())",
        "right",
    ),
    Program(
        "errors that are caught",
        "import traceback\ntry:1/0\nexcept ZeroDivisionError:traceback.print_exc()\n" + ANSWER,
        "right",
    ),
    Program(
        "seeded numbers",
        "import random\nrandom.seed(1);assert random.random()==0.13436424411240122\n" + ANSWER,
        "right",
    ),
    Program(
        "another Python",
        "import subprocess,sys\n"
        "assert subprocess.run([sys.executable,'-S','-c','print(6*7)'],capture_output=True).stdout==b'42\\n'\n"
        + ANSWER,
        "right",
    ),
    Program("no newline", ("import os\na,b=map(int,input().split());os.write(1,str(a+b).encode())"), "right"),
]
"""They must pass."""

HONEST_FUNCTIONS = [
    Program("plain", ADD, "right"),
    Program("class", ("class Solution:\n    def add(self,a,b):return a+b"), "right"),
    Program("prints meanwhile", ("def add(a,b):\n    print('x'*100);return a+b"), "right"),
    Program("lambda", "add=lambda a,b:a+b", "right"),
    Program("main guard", ADD + "if __name__=='__main__':print(input())", "right"),
    Program("a derived int", ("class I(int):pass\ndef add(a,b):return I(a+b)"), "right"),
]
