"""Which system calls each kind of a monitor's threads may make, each with its reason. Anything else ends the process.

The lists are data to be reviewed. What stands in them was found by tracing a machine at work and by reading the
interpreter; what the interpreter needs at any time, in any thread, stands once. Some are
allowed with certain arguments only: see ``_rules``.

None of them opens a file, makes a network socket or a process, executes a program, changes ids, namespaces or mounts,
signals another process, or makes memory executable.
"""

from __future__ import annotations

import os
from errno import ENOSYS

from mamushka.linux.filter import EQ, MASKED_EQ, Comparison, Rule, compile
from mamushka.linux.libseccomp import ARCHITECTURES
from mamushka.linux.seccomp import SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, Filter
from mamushka.machine.machine import CONTROL, DEBUGGER, DEVICES, VCPU

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Calls = Mapping[str, str]

INTERPRETER: Calls = {
    "futex": "the interpreter's lock is handed over with it",
    "mmap": "objects are allocated in arenas; never executable",
    "munmap": "and given back",
    "mprotect": "the C library grows a thread's heap by making it accessible; never executable",
    "mremap": "a large buffer grows",
    "madvise": "an allocator gives pages back",
    "brk": "the C library's own heap",
    "clock_gettime": "waiting for the interpreter's lock has a limit; without a vDSO it is a call",
    "rt_sigreturn": "a signal was handled",
    "rt_sigprocmask": "the C library masks signals while a thread ends or aborts",
    "clock_nanosleep": "a short wait between two looks",
    "sched_yield": "what the C library does between two attempts at a lock",
    "restart_syscall": "a wait with a limit goes on after the process was stopped or frozen",
    "getpid": "the C library asks before it signals a thread of its own",
    "gettid": "and which one it is",
    "tgkill": "a virtual CPU is made to leave the guest; this process's own threads alone",
    "exit": "the thread ends",
    "exit_group": "the process ends",
}

KICKED: Calls = {
    "ioctl": "KVM_RUN and what belongs to a virtual CPU or the machine; REQUESTS says which",
    "write": "a doorbell is rung for a device",
    "read": "a count is taken from a doorbell",
}

SERVING: Calls = {
    "epoll_wait": "waiting for descriptors",
    "epoll_pwait": "the same, on machines that have no other",
    "epoll_ctl": "which ones, and for what",
    "poll": "whether a stream takes something",
    "ppoll": "the same, on machines that have no other",
    "read": "streams, doorbells, packets of a tap",
    "write": "the same, the other way",
    "close": "a stream or a connection has ended",
    "recvmsg": "sockets, with descriptors beside what is said",
    "sendmsg": "the same, the other way",
    "recvfrom": "sockets, without",
    "sendto": "the same, the other way",
    "shutdown": "one direction of a connection has ended",
    "getsockname": "the interpreter looks at each socket that it is handed",
    "fstat": "what came with a message",
    "newfstatat": "the same, by newer C libraries: of a descriptor, of no path",
    "lseek": "how long a file is, and where it has holes",
    "getrandom": "the interpreter's tables of a new kind; a device that hands out entropy",
}

OF_DEVICES: Calls = {
    "ioctl": "interrupt routes, doorbells, memory slots, vhost's rings, a tap's offloads",
    "readv": "packets and blocks straight into guest memory",
    "writev": "and out of it",
    "preadv": "blocks of a disk",
    "pwritev": "the same",
    "pread64": "the same, one buffer",
    "pwrite64": "the same",
    "preadv2": "the same, with flags",
    "pwritev2": "the same, with flags",
    "fdatasync": "a guest flushes its disk",
    "fsync": "the same, with what describes the file",
    "fallocate": "a guest gives blocks of a disk, or pages, back",
    "ftruncate": "a disk in a file grows",
    "eventfd2": "a doorbell for a queue that the driver has just set up",
    "socket": "a stream to a server of the host's, where one was named; Unix sockets alone",
    "connect": "the same, by the paths that are held open; and to who answers for names, by sockets made before",
    "accept4": "somebody connects to a port of the guest's",
    "getsockopt": "whether a connection was made, and who it is",
    "setsockopt": "how much it may hold",
    "fcntl": "a descriptor that came is made non-blocking",
    "timerfd_settime": "a device's timer",
}

OF_THREADS: Calls = {
    "clone": "a disk has a thread of its own once its driver is there, as confined; threads alone, no process",
    "clone3": "the same; unknown here, since a filter cannot see what it asks for: the C library asks by clone then",
    "set_robust_list": "the C library's, in each new thread",
    "rseq": "the same",
    "epoll_create1": "what that thread waits with",
    "timerfd_create": "and what wakes it when a limit allows more",
}

OF_CONTROL: Calls = {
    "accept4": "somebody calls",
    "getsockopt": "who it is",
    "fcntl": "the lock by which others see that the machine is paused",
    "rt_sigaction": "the end by the program's signal restores its default",
    "ioctl": "a terminal's size; state of virtual CPUs that stand still",
    "pread64": "the document that came with a call",
    "kill": "the end by the program's signal; this process alone",
    "memfd_create": "memory of a copy of the machine",
    "ftruncate": "the same",
    "pwrite64": "a state is written to the file that was handed over",
    "eventfd2": "a doorbell of a copy",
    "fdatasync": "a bare machine's disks are complete when it has ended",
    "fsync": "the same, with what describes the file",
}

OF_DEBUGGER: Calls = {
    "ioctl": "registers, breakpoints and page tables of virtual CPUs that stand still; its socket is made to wait",
    "poll": "waiting for the debugger, or for a virtual CPU that stops",
    "ppoll": "the same, on machines that have no other",
    "accept4": "a debugger connects to the socket that was made before",
    "recvfrom": "what it wants",
    "sendto": "and what it is told",
    "getsockname": "the interpreter looks at each socket that it is handed",
    "getsockopt": "the same",
    "read": "a virtual CPU has stopped",
    "write": "one stops another",
    "close": "the debugger has gone",
    "getrandom": "the interpreter's tables of a new kind",
}

LISTS: Mapping[str, tuple[Calls, ...]] = {
    VCPU: (INTERPRETER, KICKED),
    DEVICES: (INTERPRETER, SERVING, OF_DEVICES, OF_THREADS),
    CONTROL: (INTERPRETER, SERVING, OF_CONTROL),
    DEBUGGER: (INTERPRETER, OF_DEBUGGER),
}

# Requests on descriptors, in groups by the byte that says whose they are; and single ones. All others are refused: some
# make a descriptor's owner be signalled (FIOSETOWN, SIOCSPGRP), put bytes into a terminal's input (TIOCSTI), or change
# links and mounts. Documentation/userspace-api/ioctl/ioctl-number.rst.
REQUEST_GROUPS: Mapping[int, str] = {
    0xAE: "KVM: virtual CPUs, memory slots, interrupt routes, state",
    0xAF: "vhost: rings that the kernel serves",
}
# Of those groups, what nobody needs once a machine is made, and what much of the kernel stands behind.
REFUSED: Mapping[int, str] = {
    0xAE01: "KVM_CREATE_VM",
    0xAE41: "KVM_CREATE_VCPU",
    0xC00CAEE0: "KVM_CREATE_DEVICE",
}
REQUESTS: Mapping[int, str] = {
    0x400454D0: "TUNSETOFFLOAD: what the driver takes unfinished",
    0x5401: "TCGETS: whether something is a terminal",
    0x5402: "TCSETS: a caller's terminal as it was, where the caller was killed",
    0x802C542A: "TCGETS2: the same, of newer C libraries",
    0x402C542B: "TCSETS2: the same",
    0x5413: "TIOCGWINSZ: a terminal's size",
    0x5421: "FIONBIO: the interpreter makes sockets non-blocking by it",
    0x5450: "FIONCLEX: and inheritable",
    0x5451: "FIOCLEX: or not",
}
# Commands on descriptors, fcntl(2). None makes anybody its owner or chooses a signal (F_SETOWN, F_SETSIG): the kernel
# sends those in the name of who asked, and to anybody of the same user, which may be root.
COMMANDS: Mapping[int, str] = {
    1: "F_GETFD: whether it is inherited",
    3: "F_GETFL: whether it is non-blocking",
    4: "F_SETFL: make it so",
    36: "F_OFD_GETLK: who holds a lock",
    37: "F_OFD_SETLK: the lock by which others see that the machine is paused",
    1030: "F_DUPFD_CLOEXEC: a copy of a stream's, to be watched by itself",
}

_F_SETFL, _O_ASYNC = 4, 0x2000
_PROT_EXEC = 4
# CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID and CHILD_CLEARTID: what a thread is made with.
_THREAD = 0x3D0F00
_AF_UNIX = 1
_AT_EMPTY_PATH = 0x1000
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64", "riscv64": "SCMP_ARCH_RISCV64"}


def calls(kind: str) -> dict[str, str]:
    """The names and reasons of a kind of threads."""
    return {name: reason for group in LISTS[kind] for name, reason in group.items()}


def program(kind: str, pid: int) -> Filter:
    """The filter of a kind of threads in the process ``pid``."""
    rules = [rule for name in calls(kind) for rule in _known(name, pid)]
    token = ARCHITECTURES[_ARCHITECTURES[os.uname().machine]]
    return Filter(compile(SECCOMP_RET_KILL_PROCESS, (token,), rules, newest_nosys=False))


_made: dict[tuple[str, int], list[Rule]] = {}


def _known(name: str, pid: int) -> list[Rule]:
    """``_rules``, made once for all kinds."""
    if (name, pid) not in _made:
        _made[name, pid] = _rules(name, pid)
    return _made[name, pid]


def _rules(name: str, pid: int) -> list[Rule]:
    if name == "clone3":
        return [Rule(name, SECCOMP_RET_ERRNO | ENOSYS)]
    own: dict[str, tuple[int, str, int, int]] = {
        "clone": (0, EQ, _THREAD, 0),
        "mmap": (2, MASKED_EQ, 0, _PROT_EXEC),
        "mprotect": (2, MASKED_EQ, 0, _PROT_EXEC),
        "tgkill": (0, EQ, pid, 0),
        "kill": (0, EQ, pid, 0),
        "socket": (0, EQ, _AF_UNIX, 0),
        "newfstatat": (3, EQ, _AT_EMPTY_PATH, 0),
    }
    if name == "ioctl":
        return _requests()
    if name == "fcntl":
        return _commands()
    test = own.get(name)
    return [Rule(name, SECCOMP_RET_ALLOW, (Comparison(*test),) if test else ())]


def _requests() -> list[Rule]:
    """The kernel looks at 32 bits of a request; what stands above them is the caller's sign extension."""
    groups = [Comparison(1, MASKED_EQ, group << 8, 0xFF00) for group in REQUEST_GROUPS]
    single = [Comparison(1, MASKED_EQ, request, 0xFFFFFFFF) for request in REQUESTS]
    refused = [Comparison(1, MASKED_EQ, request, 0xFFFFFFFF) for request in REFUSED]
    no = [Rule("ioctl", SECCOMP_RET_KILL_PROCESS, (test,)) for test in refused]  # the earlier rule counts
    return [*no, *(Rule("ioctl", SECCOMP_RET_ALLOW, (test,)) for test in (*groups, *single))]


def _commands() -> list[Rule]:
    tests = [(Comparison(1, MASKED_EQ, command, 0xFFFFFFFF),) for command in COMMANDS if command != _F_SETFL]
    quietly = Comparison(1, MASKED_EQ, _F_SETFL, 0xFFFFFFFF), Comparison(2, MASKED_EQ, 0, _O_ASYNC)
    return [Rule("fcntl", SECCOMP_RET_ALLOW, test) for test in (*tests, quietly)]
