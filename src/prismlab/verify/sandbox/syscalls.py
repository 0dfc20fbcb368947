"""Numbers of system calls on x86_64 and aarch64, sorted by what a confined program may do with them.

A program may use what a Python program without network needs; all else does not exist for it (ENOSYS), so that a call
that a later kernel adds is refused too.
"""

from __future__ import annotations


def _table(text: str) -> dict[str, tuple[int, int | None]]:
    """``name x86_64 aarch64`` entries, parted by commas; ``-`` where an architecture lacks the call."""
    entries = (entry.split() for entry in text.split(","))
    return {name: (int(x86), None if arm == "-" else int(arm)) for name, x86, arm in entries}


PLAIN = _table(
    """
    read 0 63, write 1 64, close 3 57, fstat 5 80, poll 7 -, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215,
    brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68,
    readv 19 65, writev 20 66, pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227,
    mincore 27 232, madvise 28 233, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102,
    alarm 37 -, setitimer 38 103, getpid 39 172, sendfile 40 71, sendto 44 206, recvfrom 45 207, sendmsg 46 211,
    recvmsg 47 212, shutdown 48 210, getsockname 51 204, getpeername 52 205, setsockopt 54 208, getsockopt 55 209,
    fork 57 -, vfork 58 -, exit 60 93, wait4 61 260, flock 73 32, fsync 74 82, fdatasync 75 83,
    ftruncate 77 46, getdents 78 -, getcwd 79 17, fchdir 81 50, umask 95 166, gettimeofday 96 169, getrlimit 97 163,
    getrusage 98 165, times 100 153, getppid 110 173, getpgrp 111 -, getgroups 115 158, capget 125 90,
    rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132,
    sched_get_priority_max 146 125, sched_get_priority_min 147 126, arch_prctl 158 -, setrlimit 160 164,
    gettid 186 178, time 201 -, futex 202 98, epoll_create 213 -, getdents64 217 61,
    set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223, timer_create 222 107, timer_settime 223 110,
    timer_gettime 224 108, timer_delete 226 111, clock_gettime 228 113, clock_getres 229 114,
    clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21, waitid 247 95, pselect6 270 72,
    ppoll 271 73, set_robust_list 273 99, epoll_pwait 281 22, eventfd 284 -,
    fallocate 285 47, eventfd2 290 19, epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69,
    pwritev 296 70, getcpu 309 168, getrandom 318 278, membarrier 324 283, copy_file_range 326 285, rseq 334 293,
    close_range 436 436
    """
)
"""Allowed at every level with any arguments."""

PATHS = _table(
    """
    open 2 -, stat 4 -, lstat 6 -, access 21 -, execve 59 221, chdir 80 49, rename 82 -, mkdir 83 -, rmdir 84 -,
    creat 85 -, unlink 87 -, readlink 89 -, openat 257 56, mkdirat 258 34, newfstatat 262 79, unlinkat 263 35,
    renameat 264 38, readlinkat 267 78, faccessat 269 48, renameat2 316 276, statx 332 291, faccessat2 439 439
    """
)
"""Take a path: allowed at level A, whose file system holds nothing else; asked of the keeper at level B."""

IDENTITY = _table(
    """
    uname 63 160, getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177, getresuid 118 148,
    getresgid 120 150
    """
)
"""Tell who and where: answered by the namespaces at level A, by the keeper at level B."""

SESSION = _table(
    """
    setpgid 109 154, setsid 112 157
    """
)
"""Leave a process group: allowed at level A; refused at level B, where the group is what gets killed."""

SIGNALS = _table(
    """
    kill 62 129, tkill 200 130, tgkill 234 131
    """
)
"""Send a signal: only to the program itself where nothing else keeps it from strangers."""

OF_A_PROCESS = _table(
    """
    getpgid 121 155, getsid 124 156, sched_getparam 143 121, sched_getscheduler 145 120, sched_getaffinity 204 123,
    get_robust_list 274 100
    """
)
"""Tell something of the process that is the first argument: at level B of the caller alone, since the host's processes
have their numbers there and a program could learn which there are."""

FILES = _table(
    """
    truncate 76 45, link 86 -, symlink 88 -, chmod 90 -, fchmod 91 52, utime 132 -, statfs 137 43, fstatfs 138 44,
    utimes 235 -, futimesat 261 -, linkat 265 37, symlinkat 266 36, fchmodat 268 53, utimensat 280 88
    """
)
"""Change a file in ways that Landlock does not see: allowed at level A, refused at level B."""

CHECKED = _table(
    """
    ioctl 16 29, socket 41 198, socketpair 53 199, clone 56 220, fcntl 72 25, setpriority 141 140, prctl 157 167,
    prlimit64 302 261, getpriority 140 141
    """
)
"""Allowed with some arguments, see ``bpf``."""
