"""Filters for system calls: the default one, profiles in Docker's format, and their way to the kernel.

Compiling a filter takes libseccomp and a few milliseconds; loading a compiled one takes microseconds. So what was
compiled is kept in a cache, by the rules' digest and the identity of the library's file, and a start that finds its
filter there never loads the library.
"""

from __future__ import annotations

import errno
import os
from _blake2 import blake2b
from binascii import crc32

from mamushka import trace
from mamushka.errors import Invalid, Unsupported
from mamushka.linux.abi import MACHINE
from mamushka.linux.libraries import LIBSECCOMP
from mamushka.linux.process import initial
from mamushka.linux.seccomp import (
    INSTRUCTION_SIZE,
    INSTRUCTIONS_MAX,
    SECCOMP_FILTER_FLAG_LOG,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    SECCOMP_FILTER_FLAG_TSYNC,
    SECCOMP_FILTER_FLAG_TSYNC_ESRCH,
    SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS,
    SECCOMP_RET_KILL_THREAD,
    SECCOMP_RET_LOG,
    SECCOMP_RET_TRACE,
    SECCOMP_RET_TRAP,
    SECCOMP_RET_USER_NOTIF,
    Filter,
    action_available,
)
from mamushka.spec.runtime import Seccomp, SyscallArg, SyscallRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.linux.filter import Comparison, Rule

CACHE = "/run/mamushka/seccomp"

ACTIONS = {
    "SCMP_ACT_KILL": SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": SECCOMP_RET_KILL_PROCESS,
    "SCMP_ACT_TRAP": SECCOMP_RET_TRAP,
    "SCMP_ACT_ERRNO": SECCOMP_RET_ERRNO,
    "SCMP_ACT_NOTIFY": SECCOMP_RET_USER_NOTIF,
    "SCMP_ACT_TRACE": SECCOMP_RET_TRACE,
    "SCMP_ACT_LOG": SECCOMP_RET_LOG,
    "SCMP_ACT_ALLOW": SECCOMP_RET_ALLOW,
}
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": SECCOMP_FILTER_FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}


# From profile to kernel


def filter(seccomp: Seccomp, *, cache: str | None = None) -> Filter:
    """The filter ready to be installed; call it before the clone.

    A bundle that names no flags gets SPEC_ALLOW: without it a filter turns on a processor mitigation that makes
    interpreters run at half speed, for a gain that later kernels no longer see either.
    """
    flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW if not seccomp.flags else 0
    for name in seccomp.flags:
        if name not in FLAGS:
            raise Invalid(f"{name!r} is not a seccomp flag", hint=f"one of {', '.join(FLAGS)}")
        flags |= FLAGS[name]
    if seccomp.listener_metadata and not seccomp.listener_path:
        raise Invalid("linux.seccomp has listenerMetadata and no listenerPath")
    if listens(seccomp):
        if not seccomp.listener_path.startswith("/"):
            raise Invalid(
                f"the seccomp filter asks a listener, and its listenerPath is {seccomp.listener_path!r}",
                hint="linux.seccomp.listenerPath is the absolute path of a unix socket",
            )
        flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER
        if flags & SECCOMP_FILTER_FLAG_TSYNC:
            flags |= SECCOMP_FILTER_FLAG_TSYNC_ESRCH
    return Filter(compile(seccomp, cache=cache), flags)


def listens(seccomp: Seccomp) -> bool:
    """Whether some call is answered by a process that listens, so that installing gives a descriptor."""
    return any(rule.action == "SCMP_ACT_NOTIFY" for rule in seccomp.syscalls)


def compile(seccomp: Seccomp, *, cache: str | None = None) -> bytes:
    """The program for the kernel: the last one made, from the cache, or compiled. Unsupported without libseccomp."""
    global _last
    if _last is not None and _last[0] is seccomp:
        return _last[1]
    cache = _place() if cache is None else cache
    path = f"{cache}/{_key(seccomp)}" if cache else ""
    program = _cached(path) if path else b""
    if not program:
        program = _compile(seccomp)
        if path:
            _keep(path, program)
    _last = seccomp, program
    return program


def _place() -> str:
    """Where the cache is: the host's, or an ordinary user's own."""
    if initial():
        return CACHE
    from mamushka.container import subordinate

    return f"{subordinate.entered_from}/mamushka/seccomp" if subordinate.entered_from else CACHE


# A process that starts many containers mostly asks for one filter, and default_profile gives the same value again.
_last: tuple[Seccomp, bytes] | None = None


def _compile(seccomp: Seccomp) -> bytes:
    from mamushka.linux.filter import compile
    from mamushka.linux.libseccomp import ARCHITECTURES, seccomp_arch_native

    default = _action(seccomp.default_action, seccomp.default_errno_ret)
    if seccomp.default_action == "SCMP_ACT_NOTIFY":
        raise Invalid("SCMP_ACT_NOTIFY cannot be the default action: the listener's own calls would wait for it")
    tokens = []
    for name in seccomp.architectures:
        if name not in ARCHITECTURES:
            raise Invalid(f"{name!r} is not an architecture that seccomp knows", hint="e.g. SCMP_ARCH_X86_64")
        tokens.append(ARCHITECTURES[name])
    rules = [item for rule in seccomp.syscalls for item in _rules(rule)]
    denies = default not in (SECCOMP_RET_ALLOW, SECCOMP_RET_LOG, SECCOMP_RET_ERRNO | errno.ENOSYS)
    program = compile(default, tokens or [seccomp_arch_native()], rules, newest_nosys=denies)
    trace.event("seccomp.compiled", rules=len(rules), instructions=len(program) // INSTRUCTION_SIZE)
    return program


def _rules(rule: SyscallRule) -> Iterator[Rule]:
    """A bundle's rule by call. Several comparisons with one argument are alternatives, as every runtime reads them."""
    from mamushka.linux.filter import Rule

    if not rule.names:
        raise Invalid(f"a seccomp rule with {rule.action} names no system call")

    action = _action(rule.action, rule.errno_ret)
    tests = tuple(_comparison(arg, rule) for arg in rule.args)
    together = len({test.argument for test in tests}) == len(tests)
    for name in rule.names:
        if together:
            yield Rule(name, action, tests)
        else:
            for test in tests:
                yield Rule(name, action, (test,))


def _comparison(arg: SyscallArg, rule: SyscallRule) -> Comparison:
    from mamushka.linux.filter import EQ, GE, GT, LE, LT, MASKED_EQ, NE, Comparison

    operation = arg.op.removeprefix("SCMP_CMP_")
    if operation not in (NE, LT, LE, EQ, GE, GT, MASKED_EQ) or operation == arg.op or arg.index > 5:
        raise Invalid(f"the comparison {arg.op!r} with argument {arg.index} of {', '.join(rule.names)} is not valid")
    if operation == MASKED_EQ:
        return Comparison(arg.index, operation, arg.value_two, arg.value)
    return Comparison(arg.index, operation, arg.value)


def _action(name: str, number: int | None) -> int:
    """An action with its errno, or for a tracer its message, in the low 16 bits."""
    if name not in ACTIONS:
        raise Invalid(f"{name!r} is not a seccomp action", hint=f"one of {', '.join(ACTIONS)}")
    if name not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        if number is not None:
            raise Invalid(f"{name} has no errnoRet", hint="SCMP_ACT_ERRNO and SCMP_ACT_TRACE have")
        return ACTIONS[name]
    low = errno.EPERM if number is None else number
    if low > 0xFFFF:
        raise Invalid(f"errnoRet {low} does not fit into 16 bits")
    return ACTIONS[name] | low


# The cache: one file a filter, the program behind a magic word and a checksum.

_MAGIC = b"mamushka-bpf\n"
_HEAD = len(_MAGIC) + 4
_FILE_MAX = _HEAD + INSTRUCTIONS_MAX * INSTRUCTION_SIZE


def _key(seccomp: Seccomp) -> str:
    """All that the program depends on, as a file's name: rules, machine, this compiler, libseccomp's file."""
    library = LIBSECCOMP.file()
    identity = (library.st_dev, library.st_ino, library.st_size, library.st_mtime_ns) if library else _version()
    text = repr((_COMPILER, MACHINE, identity, seccomp))
    return blake2b(text.encode(), digest_size=20).hexdigest()


# Raise it when the same rules begin to compile to another program.
_COMPILER = 1


def _version() -> str:
    from mamushka.linux.libseccomp import version

    return version()


def _cached(path: str) -> bytes:
    """The program in a cache file; empty when there is none, or it is broken, or not certainly our own."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022 or found.st_size > _FILE_MAX:
            trace.event("seccomp.cache_refused", path=path, uid=found.st_uid, mode=found.st_mode)
            return b""
        raw = os.read(fd, _FILE_MAX)
    finally:
        os.close(fd)
    program = raw[_HEAD:]
    if not program or raw[:_HEAD] != _MAGIC + crc32(program).to_bytes(4, "big"):
        trace.event("seccomp.cache_broken", path=path)
        return b""
    return program


def _keep(path: str, program: bytes) -> None:
    """Make a cache file, whole or not at all; a cache that cannot be written is none.

    The file has no name until it is written: whoever is killed meanwhile leaves nothing.
    """
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, _MAGIC + crc32(program).to_bytes(4, "big") + program)
            try:
                _name(fd, path)
            except FileExistsError:  # broken, or another process was faster
                os.unlink(path)
                _name(fd, path)
        finally:
            os.close(fd)
    except OSError as error:
        trace.event("seccomp.cache_unwritable", path=path, error=str(error))


def _name(fd: int, path: str) -> None:
    # The directory descriptor makes it linkat(2) with AT_SYMLINK_FOLLOW, as open(2) describes for O_TMPFILE.
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


# The default profile


def default_profile(capabilities: Iterable[str], machine: str = MACHINE) -> Seccomp:
    """The default filter for a process with these capabilities; equal in effect to Docker's. One value for one set."""
    from mamushka.container.profiles import calls

    key = machine, frozenset(capabilities).intersection(calls.BY_CAPABILITY)
    if key not in _defaults:
        _defaults[key] = _default_profile(*key)
    return _defaults[key]


_defaults: dict[tuple[str, frozenset[str]], Seccomp] = {}


def _default_profile(machine: str, held: frozenset[str]) -> Seccomp:
    from mamushka.container.profiles import calls

    always = " ".join((calls.FILES, calls.WAITING, calls.MEMORY, calls.PROCESSES, calls.SIGNALS, calls.TIME,
                       calls.TALKING, calls.SYSTEM, calls.BY_MACHINE.get(machine, "")))  # fmt: skip
    rules = [_allow(always)]
    if kernel() >= calls.TRACING[0]:
        rules.append(_allow(calls.TRACING[1]))
    rules.append(_allow("socket", SyscallArg(0, calls.FAMILIES_BELOW, "SCMP_CMP_LT")))
    rules += [_allow("socket", SyscallArg(0, family, "SCMP_CMP_EQ")) for family in calls.FAMILIES]
    rules += [_allow("personality", SyscallArg(0, item, "SCMP_CMP_EQ")) for item in calls.PERSONALITIES]
    rules += [_allow(names) for capability, names in calls.BY_CAPABILITY.items() if capability in held]
    if "CAP_SYS_ADMIN" not in held:
        rules.append(_allow("clone", SyscallArg(0, calls.CLONE_NAMESPACES, "SCMP_CMP_MASKED_EQ")))
        rules.append(SyscallRule(("clone3",), "SCMP_ACT_ERRNO", errno.ENOSYS))
    architectures = calls.ARCHITECTURES.get(machine, ())
    return Seccomp("SCMP_ACT_ERRNO", errno.EPERM, architectures, syscalls=tuple(rules))


def _allow(names: str, *args: SyscallArg) -> SyscallRule:
    return SyscallRule(tuple(names.split()), "SCMP_ACT_ALLOW", args=args)


def kernel() -> tuple[int, int]:
    """The running kernel's major and minor version."""
    major, minor, *_ = os.uname().release.split(".")
    digits = ""
    for letter in minor:
        if not letter.isdigit():
            break
        digits += letter
    return int(major), int(digits or 0)


def describe() -> tuple[bool, str]:
    """For ``doctor``: whether filters can be made and installed here, and why or why not."""
    if not action_available(SECCOMP_RET_ERRNO):
        return False, "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)"
    try:
        return True, f"libseccomp {_version()}"
    except Unsupported as error:
        return False, f"{error}; {error.hint}"
