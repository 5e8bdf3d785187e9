"""Making processes and asking about them: clone3, namespaces, pidfds, prctl."""

from __future__ import annotations

import os

from mamushka.linux import foreign
from mamushka.linux.abi import DECLARED, address_of, failure, s32, sizeof, struct, syscall, u64

CLONE_NEWTIME = 0x00000080
CLONE_VM = 0x00000100
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

_SIGKILL = 9


@struct
class clone_args:
    """What clone3 is asked for. include/uapi/linux/sched.h."""

    flags: u64 = 0
    pidfd: u64 = 0
    child_tid: u64 = 0
    parent_tid: u64 = 0
    exit_signal: u64 = 0
    stack: u64 = 0
    stack_size: u64 = 0
    tls: u64 = 0
    set_tid: u64 = 0
    set_tid_size: u64 = 0
    cgroup: u64 = 0


@syscall(x86_64=272, aarch64=97, riscv64=97)
def unshare(flags: int) -> None:
    """Leave shared namespaces for new ones. unshare(2)."""


@syscall(x86_64=308, aarch64=268, riscv64=268)
def setns(fd: int, kind: int) -> None:
    """Enter a namespace by its file, or several of a process by its pidfd. setns(2)."""


@syscall(x86_64=157, aarch64=167, riscv64=167)
def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Operations on the calling process. prctl(2)."""
    raise NotImplementedError


@syscall(x86_64=170, aarch64=161, riscv64=161)
def sethostname(name: bytes, length: int) -> None:
    """Set this uts namespace's host name. sethostname(2)."""


@syscall(x86_64=171, aarch64=162, riscv64=162)
def setdomainname(name: bytes, length: int) -> None:
    """Set this uts namespace's NIS domain name. setdomainname(2)."""


@syscall(x86_64=234, aarch64=131, riscv64=131)
def tgkill(process: int, thread: int, signal: int) -> None:
    """Signal one thread, by its kernel's number; ESRCH once it has ended. tgkill(2)."""


@syscall(x86_64=438, aarch64=438, riscv64=438)
def pidfd_getfd(pidfd: int, target: int, flags: int) -> int:
    """A copy of another process's descriptor. Linux 5.6."""
    raise NotImplementedError


_CLONE3 = {"x86_64": 435, "aarch64": 435, "riscv64": 435}.get(os.uname().machine, -1)
DECLARED["clone3"] = ("syscall", _CLONE3)

# The GIL stays held across the call: a child that came back without it could wait for a thread that it
# does not have. PyOS_*Fork do for a raw clone what os.fork does: locks, GIL, thread state.
_interpreter = foreign.Library(None, hold=True)
_before_fork = _interpreter.function("PyOS_BeforeFork", None, [])
_after_fork_child = _interpreter.function("PyOS_AfterFork_Child", None, [])
_after_fork_parent = _interpreter.function("PyOS_AfterFork_Parent", None, [])
_clone3 = _interpreter.function("syscall", foreign.c_long, [foreign.c_long, foreign.c_void_p, foreign.c_size_t])


@struct
class _pidfd_out:
    fd: s32 = -1


DECLARED.pop("_pidfd_out")


def clone3(flags: int, *, exit_signal: int = 17, cgroup: int = -1) -> tuple[int, int]:
    """A child in new namespaces: (pid, pidfd) in the parent, (0, -1) in the child. clone3(2), Linux 5.3.

    ``cgroup`` is a descriptor of the cgroup v2 directory to be born in (Linux 5.7). Call it from a process
    with one thread: locks inside the C library that another thread holds would stay locked in the child.
    """
    out = _pidfd_out()
    arguments = clone_args(flags=flags | CLONE_PIDFD, pidfd=address_of(out), exit_signal=exit_signal)
    if cgroup >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    if flags & CLONE_PARENT:  # the new sibling inherits the signal; clone3 refuses another
        arguments.exit_signal = 0
    _before_fork()
    pid = _clone3(_CLONE3, address_of(arguments), sizeof(arguments))
    if pid == 0:
        _after_fork_child()
        return 0, -1
    error = failure("clone3") if pid == -1 else None
    _after_fork_parent()
    if error is not None:
        raise error
    return pid, out.fd


def end_with(parent: int) -> bool:
    """Be killed when the thread that forked this process ends; False where ``parent``, its process, has ended already.

    A change of credentials takes it away again. PR_SET_PDEATHSIG(2const).
    """
    prctl(PR_SET_PDEATHSIG, _SIGKILL)
    return os.getppid() == parent


# What the map of the host's own user namespace says: everybody is who he is. user_namespaces(7).
_EVERYBODY = b"0 0 4294967295"
_initial: bool | None = None


def initial() -> bool:
    """Whether this process is in the host's own user namespace, as far as the map tells; asked once."""
    global _initial
    if _initial is None:
        try:
            with open("/proc/self/uid_map", "rb", buffering=0) as file:
                _initial = b" ".join(file.read(64).split()) == _EVERYBODY
        except FileNotFoundError:  # a kernel without user namespaces
            _initial = True
    return _initial


def moved() -> None:
    """Ask again: this process has entered another user namespace."""
    global _initial
    _initial = None


def threads() -> int:
    """How many threads this process has: the links of the directory that has one directory for each."""
    return os.stat("/proc/self/task").st_nlink - 2
