"""The last steps before the program: its descriptors, its directory, its file, its privileges, execve.

By now the process sees the container's root and nothing else. Two things of the host could still leak: an open
descriptor, so all but the program's own are closed before any path is used (CVE-2024-21626), and the interpreter
itself as ``/proc/self/exe``, so the process is not dumpable and a program must not be reached through procfs'
magic links (CVE-2019-5736).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from errno import EACCES, EISDIR, ENOENT, ENOTDIR

from mamushka.container.defaults import PATH
from mamushka.container.operation import DIRECTORY, PROGRAM, Inside
from mamushka.linux.abi import sizeof
from mamushka.linux.fd import (
    AT_FDCWD,
    F_DUPFD_CLOEXEC,
    RESOLVE_NO_MAGICLINKS,
    close_range,
    fcntl,
    open_how,
    open_in_root,
    openat2,
)
from mamushka.linux.process import PR_SET_DUMPABLE, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.cgroups.cgroup import Entrance
    from mamushka.container.operation import Site
    from mamushka.container.privileges import Privileges
    from mamushka.runtime import Stdio
    from mamushka.spec.runtime import Process

_FD_MAX = (1 << 32) - 1
# A passwd file of a real distribution has a few KiB; the image's might be anything.
_PASSWD_MAX = 1 << 20
_UMASK = 0o022
_SHEBANG_MAX = 256  # the kernel reads no more of a script's first line: BINPRM_BUF_SIZE


class Prepare(Inside):
    """As the caller still: hide the interpreter from the container, and enter the cgroup."""

    __slots__ = ("entrance", "privileges")

    def __init__(self, privileges: Privileges, entrance: Entrance) -> None:
        self.privileges, self.entrance = privileges, entrance

    def describe(self) -> str:
        return "make the process undumpable and enter its cgroup"

    def execute(self) -> None:
        prctl(PR_SET_DUMPABLE, 0)
        self.privileges.early()
        self.entrance.enter()


class ArrangeDescriptors(Inside):
    """Standard streams as 0, 1, 2, preserved descriptors as 3, 4, …; everything else is closed or will be."""

    __slots__ = ("preserve", "site", "stdio")

    def __init__(self, site: Site, stdio: Stdio, preserve: tuple[int, ...]) -> None:
        self.site, self.stdio, self.preserve = site, stdio, preserve

    def describe(self) -> str:
        more = f" and {len(self.preserve)} preserved ones" if self.preserve else ""
        return f"close all descriptors but the standard streams{more}"

    def execute(self) -> None:
        site, console = self.site, self.site.console
        streams = (self.stdio.stdin, self.stdio.stdout, self.stdio.stderr) if console < 0 else (console,) * 3
        wanted = (*streams, *self.preserve)
        count = len(wanted)
        # All are lifted above their places before any place is taken: one might be another's place.
        lifted = [fcntl(descriptor, F_DUPFD_CLOEXEC, count) for descriptor in wanted]
        ours = []
        for name in ("channel", "gate", "status"):
            descriptor = getattr(site, name)
            if descriptor >= 0:
                descriptor = descriptor if descriptor >= count else fcntl(descriptor, F_DUPFD_CLOEXEC, count)
                setattr(site, name, descriptor)
                ours.append(descriptor)
        for place, descriptor in enumerate(lifted):
            os.dup2(descriptor, place, inheritable=True)
        first = count
        for descriptor in sorted(ours):
            if first < descriptor:
                close_range(first, descriptor - 1, 0)
            first = descriptor + 1
        close_range(first, _FD_MAX, 0)
        site.root = site.proc = site.devpts = site.empty = site.console = -1
        os.setsid()
        if console >= 0:
            site.control(0, 0)


class EnterDirectory(Inside):
    """chdir, and make sure that it led to somewhere inside."""

    __slots__ = ("cwd", "gid", "uid")
    about = DIRECTORY

    def __init__(self, process: Process) -> None:
        self.cwd, self.uid, self.gid = process.cwd, process.user.uid, process.user.gid

    def describe(self) -> str:
        return f"chdir {self.cwd}"

    def execute(self) -> None:
        try:
            os.chdir(self.cwd)
        except FileNotFoundError:
            os.makedirs(self.cwd, 0o755, exist_ok=True)
            os.chown(self.cwd, self.uid, self.gid)
            os.chdir(self.cwd)
        # getcwd answers "(unreachable)/…", ENOENT or anything but an absolute path where the root is not above it.
        if not os.getcwdb().startswith(b"/"):
            raise OSError(EACCES, "the working directory is outside the container", self.cwd)


class FindProgram(Inside):
    """Look the program up as the user who will run it, so that ``create`` can tell what ``start`` would meet."""

    __slots__ = ("environment", "name", "path", "search", "uid")
    about = PROGRAM

    def __init__(self, process: Process) -> None:
        self.name = os.fsencode(process.args[0])
        self.uid = process.user.uid
        self.environment = {
            os.fsencode(name): os.fsencode(text)
            for name, equals, text in (e.partition("=") for e in process.env)
            if equals
        }
        self.search = self.environment.get(b"PATH", PATH.encode()).split(b":")
        self.path = b""

    def describe(self) -> str:
        return f"find the program {os.fsdecode(self.name)}"

    def execute(self) -> None:
        if b"HOME" not in self.environment:
            self.environment[b"HOME"] = _home(self.uid)
        if b"/" in self.name:
            check_executable(self.name)
            self.path = self.name
            return
        denied: OSError | None = None
        for directory in self.search:
            candidate = (directory or b".") + b"/" + self.name
            try:
                check_executable(candidate)
            except OSError as error:
                if error.errno not in (ENOENT, ENOTDIR):
                    denied = denied or error
            else:
                self.path = candidate
                return
        raise denied or OSError(ENOENT, "executable file not found in $PATH", os.fsdecode(self.name))


def check_executable(path: bytes) -> None:
    """Raise OSError unless this is a regular file that may be executed and is not reached by a magic link.

    The same holds for a script's interpreter: ``#!/proc/self/exe`` would execute the host's Python in here.
    """
    found = _open_program(path, os.O_PATH)
    try:
        mode = os.fstat(found).st_mode
    finally:
        os.close(found)
    if mode & 0o170000 == 0o040000:
        raise OSError(EISDIR, "is a directory", os.fsdecode(path))
    if mode & 0o170000 != 0o100000 or not mode & 0o111:
        raise OSError(EACCES, "permission denied", os.fsdecode(path))
    interpreter = _interpreter(path)
    if interpreter:
        os.close(_open_program(interpreter, os.O_PATH))


def _open_program(path: bytes, flags: int) -> int:
    how = open_how(flags=flags | os.O_CLOEXEC, resolve=RESOLVE_NO_MAGICLINKS)
    try:
        return openat2(AT_FDCWD, path, how, sizeof(how))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), os.fsdecode(path)) from None


def _interpreter(path: bytes) -> bytes:
    """What a script's first line names; nothing for other programs, or one that cannot be read."""
    try:
        program = _open_program(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    head = os.read(program, _SHEBANG_MAX)
    os.close(program)
    words = head[2:].split(b"\n", 1)[0].split(None, 1) if head[:2] == b"#!" else []
    return words[0] if words else b""


def _home(uid: int) -> bytes:
    """The user's home directory by the image's passwd file; "/" where it tells none."""
    try:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        passwd = open_in_root(root, b"etc/passwd", os.O_RDONLY | os.O_NONBLOCK)
        os.close(root)
        raw = os.read(passwd, _PASSWD_MAX)
        os.close(passwd)
    except OSError:
        raw = b""
    for line in raw.splitlines():
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == b"%d" % uid:
            return fields[5] or b"/"
    return b"/root" if uid == 0 and not raw else b"/"


class ResetSignals(Inside):
    """Signals as a new program expects them, whatever the interpreter or its caller ignored or blocked."""

    __slots__ = ()

    def describe(self) -> str:
        return "reset signals"

    def execute(self) -> None:
        for number in range(1, _signal.NSIG):
            if _signal.getsignal(number) == _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


class Confine(Inside):
    """Limits, groups, capabilities, ids, no_new_privs and the system call filter."""

    __slots__ = ("privileges", "summary")

    def __init__(self, privileges: Privileges, summary: str) -> None:
        self.privileges, self.summary = privileges, summary

    def describe(self) -> str:
        return self.summary

    def execute(self) -> None:
        os.umask(_UMASK)  # unless the process asks for another
        self.privileges.apply()


class Execute(Inside):
    """Become the program."""

    __slots__ = ("arguments", "find")
    about = PROGRAM

    def __init__(self, find: FindProgram, arguments: tuple[str, ...]) -> None:
        self.find = find
        self.arguments = tuple(os.fsencode(argument) for argument in arguments)

    def describe(self) -> str:
        return f"execve {' '.join(map(os.fsdecode, self.arguments))}"

    def execute(self) -> None:
        os.execve(self.find.path, self.arguments, self.find.environment)
