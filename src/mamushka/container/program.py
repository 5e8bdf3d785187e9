"""The last steps before the program: its descriptors, its directory, its file, its privileges, execve.

By now the process sees the container's root and nothing else. Two things of the host could still leak: an open
descriptor, so all but the program's own are closed before any path is used (CVE-2024-21626), and an executable as
``/proc/self/exe``. That is the script's own sealed memory file and nothing of the host's (CVE-2019-5736).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from errno import EACCES, EEXIST, EISDIR, ENOENT, ENOTDIR

from mamushka.container import channel
from mamushka.container.channel import ACCOUNTS, descriptor_packet, listen
from mamushka.container.defaults import PATH
from mamushka.container.operation import (
    BACK,
    CONFINEMENT,
    CONSOLE,
    CURRENT,
    DIRECTORY,
    FILE,
    GATE,
    HOST_PROC,
    LABEL,
    OPENED,
    OUTCOME,
    PROGRAM,
    RESULT,
    TARGET,
    Inside,
    open_in_proc,
)
from mamushka.container.rootfs import MODE, S_IFDIR, S_IFMT, S_IFREG, about, components, look
from mamushka.linux.abi import sizeof
from mamushka.linux.fd import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    F_DUPFD_CLOEXEC,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    open_how,
    openat2,
)
from mamushka.linux.process import PR_SET_DUMPABLE, PR_SET_NAME
from mamushka.linux.script import ANSWER, ANSWER_SIZE, ANY, CHANNEL, NEXT, ROOM, ROOM_SIZE, Label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mamushka.container.cgroups.cgroup import Entrance
    from mamushka.container.privileges import Privileges
    from mamushka.linux.script import Script, Variable
    from mamushka.runtime import Stdio
    from mamushka.spec.runtime import Process

# A passwd file of a real distribution has a few KiB; the image's might be anything.
_PASSWD_MAX = 1 << 20
_UMASK = 0o022
_SIG_SETMASK = 2
_SIGSET_SIZE = 8
# glibc keeps two signals for itself, and its posix_spawn leaves them ignored in every program it starts.
_GLIBC_SIGNALS = (32, 33)


class Prepare(Inside):
    """As the caller still: hide the process from the container, and enter the cgroup.

    ``writes`` are what only the caller's own user may write, and where; none, if a forked child has written it.
    ``proc`` is a descriptor of the host's procfs, if something is to be written there.
    """

    __slots__ = ("privileges", "proc", "writes")
    settled = True

    def __init__(self, privileges: Privileges, writes: Sequence[tuple[int | bytes, bytes]], proc: int) -> None:
        self.privileges, self.writes, self.proc = privileges, writes, proc

    def names(self) -> Sequence[bytes]:
        return [self.privileges.keyring] if self.privileges.keyring else ()

    def hangs_on(self) -> object:
        return self.privileges.key(), [text if isinstance(place, int) else (place, text) for place, text in self.writes]

    def describe(self) -> str:
        return "make the process undumpable and enter its cgroup"

    def write(self, script: Script) -> None:
        script.call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
        script.call("prctl", PR_SET_NAME, b"mamushka-init", 0, 0, 0)
        if self.proc >= 0:
            script.descriptor(self.proc, HOST_PROC)
        self.privileges.early(script)
        for place, text in self.writes:
            if isinstance(place, int):
                script.call("write", script.descriptor(place), text, len(text))
                continue
            open_in_proc(script, place, OPENED)
            script.call("write", OPENED, text, len(text), about=f": {text.decode()!r}{about(b'/proc/' + place)}")
            script.call("close", OPENED)
        script.call("umask", 0)


def first_writes(privileges: Privileges, entrance: Entrance) -> list[tuple[int | bytes, bytes]]:
    """What is written before anything else, to a descriptor or below the host's /proc.

    Into the cgroup, and who is to be killed first when memory runs out.
    """
    writes: list[tuple[int | bytes, bytes]] = [(door, b"0") for door in entrance.doors]
    if privileges.oom_score:
        writes.append((b"self/oom_score_adj", privileges.oom_score))
    return writes


class ArrangeDescriptors(Inside):
    """Standard streams as 0, 1, 2, preserved descriptors as 3, 4, …; everything else is closed or will be."""

    __slots__ = ("ours", "preserve", "stdio", "terminal")
    settled = True

    def __init__(self, stdio: Stdio, preserve: tuple[int, ...], *, terminal: bool, gated: bool, labelled: bool) -> None:
        self.stdio, self.preserve, self.terminal = stdio, preserve, terminal
        # What later operations need; all of it is closed when the program is executed.
        self.ours = (CHANNEL, *((GATE, OUTCOME) if gated else ()), *((LABEL,) if labelled else ()))

    def describe(self) -> str:
        more = f" and {len(self.preserve)} preserved ones" if self.preserve else ""
        return f"close all descriptors but the standard streams{more}"

    def write(self, script: Script) -> None:
        given = (self.stdio.stdin, self.stdio.stdout, self.stdio.stderr) if not self.terminal else ()
        wanted = [*map(script.descriptor, given), *(() if given else (CONSOLE,) * 3)]
        wanted += map(script.descriptor, self.preserve)
        count = len(wanted) + len(self.ours)
        # All are lifted above their places before any place is taken: one might be another's place.
        lifted = [script.variable() for _ in range(count)]
        for descriptor, high in zip((*wanted, *self.ours), lifted, strict=True):
            script.call("fcntl", descriptor, F_DUPFD_CLOEXEC, count, into=high)
        for place, high in enumerate(lifted[: len(wanted)]):
            script.call("dup3", high, place, 0)
        for place, (high, kept) in enumerate(zip(lifted[len(wanted) :], self.ours, strict=True), len(wanted)):
            script.call("dup3", high, place, os.O_CLOEXEC, into=kept)
        script.call("close_range", count, -1, 0)
        script.call("setsid")
        if self.terminal:
            script.ioctl("TIOCSCTTY", 0, 0)


class EnterDirectory(Inside):
    """chdir, and make sure that it led to somewhere inside. ``make`` makes the directory where it is missing."""

    __slots__ = ("cwd", "gid", "make", "uid")
    about = DIRECTORY
    settled = True

    def __init__(self, process: Process, *, make: bool) -> None:
        self.make = make
        self.cwd, self.uid, self.gid = os.fsencode(process.cwd), process.user.uid, process.user.gid

    def describe(self) -> str:
        return f"chdir {os.fsdecode(self.cwd)}"

    def write(self, script: Script) -> None:
        missing, there, outside, inside = Label(), Label(), Label(), Label()
        if self.make:
            _open_directory(script, self.cwd, CURRENT, {ENOENT: missing})
            script.jump(there)
            script.mark(missing)
            self._make(script)
        _open_directory(script, self.cwd, CURRENT)
        script.mark(there)
        script.call("fchdir", CURRENT, about=self.cwd)
        script.call("close", CURRENT)
        # getcwd answers "(unreachable)/…", ENOENT or anything but an absolute path where the root is not above it.
        script.call("getcwd", ROOM, ROOM_SIZE, about=self.cwd)
        script.compare(ROOM, 0xFF, ord("/"), outside)
        script.jump(inside)
        script.mark(outside)
        script.fail(EACCES, f"=the working directory is outside the container{about(self.cwd)}")
        script.mark(inside)

    def _make(self, script: Script) -> None:
        """mkdir -p, in directories that are held open; what is the user's is the last, if it is really ours."""
        others = Label()
        so_far, names = b"/", components(self.cwd)
        for place, name in enumerate(names, 1):
            last = place == len(names)
            _open_directory(script, so_far, CURRENT)
            script.call("mkdirat", CURRENT, name, 0o755, on={EEXIST: others if last else NEXT}, about=self.cwd)
            if last:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                script.call("openat", CURRENT, name, flags, 0, into=TARGET, about=self.cwd)
                script.call("fchownat", TARGET, b"", self.uid, self.gid, AT_EMPTY_PATH, about=self.cwd)
                script.call("close", TARGET)
                script.mark(others)
            script.call("close", CURRENT)
            so_far += b"/" + name


def _open_directory(script: Script, path: bytes, into: Variable, on: Mapping[int, Label | int] | None = None) -> None:
    """As chdir finds it, but not through procfs' magic links: beside this process others are being made, as whose
    /proc/PID/root or /proc/PID/cwd a link of the container's would lead to the host (CVE-2024-21626)."""
    how = open_how(flags=os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, resolve=RESOLVE_NO_MAGICLINKS)
    script.call("openat2", AT_FDCWD, path, how, sizeof(how), into=into, on=on, about=path)


class FindHome(Inside):
    """Have the user's home directory looked up in the image's accounts, by the builder."""

    __slots__ = ()
    settled = True

    def describe(self) -> str:
        return "look up the home directory"

    def write(self, script: Script) -> None:
        absent, sent = Label(), Label()
        packet, accounts = descriptor_packet(script, ACCOUNTS)
        how = open_how(flags=os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, resolve=RESOLVE_NO_MAGICLINKS)
        script.call("openat2", AT_FDCWD, b"/etc/passwd", how, sizeof(how), into=accounts, on={ANY: absent})
        script.call("sendmsg", CHANNEL, packet, 0)
        script.call("close", accounts)
        script.jump(sent)
        script.mark(absent)
        script.call("write", CHANNEL, ACCOUNTS, 1)
        script.mark(sent)
        listen(script, ANSWER, ANSWER_SIZE, channel.ANSWER)


def known_home(root: int, uid: int) -> bytes:
    """The user's home directory by what lies in a root filesystem that nothing is mounted in yet.

    Empty where it is not certain that the container will see the same: there is a link in the way.
    """
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
    how = open_how(flags=os.O_PATH | os.O_CLOEXEC, resolve=resolve)
    accounts = -1
    try:
        found = openat2(root, b"etc/passwd", how, sizeof(how))
        try:
            if os.fstat(found).st_mode & S_IFMT == S_IFREG:  # the image's device is not for this process to open
                accounts = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
    except FileNotFoundError:
        pass
    except OSError:
        return b""
    return home(accounts, uid)[len(channel.ANSWER + b"HOME=") : -1]


def home(accounts: int, uid: int) -> bytes:
    """The answer to FindHome: the user's by a passwd file, which is closed; "/" where it tells none."""
    raw = b""
    if accounts >= 0:
        try:
            raw = os.read(accounts, _PASSWD_MAX)
        except OSError:
            pass
        finally:
            os.close(accounts)
    found = b"/root" if uid == 0 and not raw else b"/"
    for line in raw.splitlines():
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == b"%d" % uid:
            found = fields[5] or b"/"
            break
    return channel.ANSWER + b"HOME=" + found[: ANSWER_SIZE - 8] + b"\0"


class FindProgram(Inside):
    """Look the program up, so that ``create`` can tell what ``start`` would meet."""

    __slots__ = ("environment", "name", "search")
    about = PROGRAM
    settled = True

    def __init__(self, process: Process) -> None:
        self.name = os.fsencode(process.args[0])
        self.environment = {
            os.fsencode(name): os.fsencode(text)
            for name, equals, text in (e.partition("=") for e in process.env)
            if equals
        }
        self.search = self.environment.get(b"PATH", PATH.encode()).split(b":")

    def describe(self) -> str:
        return f"find the program {os.fsdecode(self.name)}"

    def write(self, script: Script) -> None:
        if b"/" in self.name:
            self._named(script)
            return
        found, check, none, absent = Label(), Label(), Label(), Label()
        how = _how()
        script.store(0, RESULT)
        for directory in self.search:
            further, denied = Label(), Label()
            candidate = (directory or b".") + b"/" + self.name
            on = {ENOENT: further, ENOTDIR: further, ANY: denied}
            script.call("openat2", AT_FDCWD, candidate, how, sizeof(how), into=OPENED, on=on)
            script.store(script.text(candidate), FILE)
            script.jump(check, BACK)
            script.mark(denied)
            script.store(1, RESULT)
            script.mark(further)
        script.jump(none)
        script.mark(check)
        no = Label()
        _check(script, no, no)
        script.jump(found)
        script.mark(no)
        script.leap(BACK)
        script.mark(none)
        script.compare(RESULT, -1, 1, absent)
        script.fail(EACCES, about(self.name))
        script.mark(absent)
        script.fail(ENOENT, f"=executable file not found in $PATH{about(self.name)}")
        script.mark(found)

    def _named(self, script: Script) -> None:
        special, directory, fine = Label(), Label(), Label()
        how = _how()
        script.call("openat2", AT_FDCWD, self.name, how, sizeof(how), into=OPENED, about=self.name)
        _check(script, special, directory)
        script.jump(fine)
        script.mark(directory)
        script.compare(MODE, S_IFMT, S_IFDIR, special)
        script.fail(EISDIR, about(self.name))
        script.mark(special)
        script.fail(EACCES, about(self.name))
        script.mark(fine)
        script.store(script.text(self.name), FILE)


def _how() -> open_how:
    """What procfs leads to by a magic link is no program of the image's."""
    return open_how(flags=os.O_PATH | os.O_CLOEXEC, resolve=RESOLVE_NO_MAGICLINKS)


def _check(script: Script, special: Label, directory: Label) -> None:
    """Close OPENED and go on if it is a regular file that somebody may execute; else one of the labels leads on."""
    executable = Label()
    look(script, OPENED, b"")
    script.call("close", OPENED)
    script.compare(MODE, S_IFMT, S_IFREG, directory)
    script.compare(MODE, 0o111, 0, executable)
    script.jump(special)
    script.mark(executable)


class ResetSignals(Inside):
    """Signals as a new program expects them, whatever the caller ignored or blocked."""

    __slots__ = ()
    settled = True

    def hangs_on(self) -> object:
        return _ignored()

    def describe(self) -> str:
        return "reset signals"

    def write(self, script: Script) -> None:
        default = script.room(32)  # a struct sigaction: SIG_DFL, no flag, nothing blocked
        for number in {*_ignored(), *_GLIBC_SIGNALS}:
            script.call("rt_sigaction", number, default, 0, _SIGSET_SIZE)
        script.call("rt_sigprocmask", _SIG_SETMASK, default, 0, _SIGSET_SIZE)


def _ignored() -> list[int]:
    """The signals that a program started now would ignore."""
    return [number for number in range(1, _signal.NSIG) if _signal.getsignal(number) == _signal.SIG_IGN]


class Confine(Inside):
    """Limits, groups, capabilities, ids, no_new_privs and the system call filter."""

    __slots__ = ("gated", "privileges", "summary")
    settled = True
    about = CONFINEMENT

    def __init__(self, privileges: Privileges, summary: str, *, gated: bool) -> None:
        self.privileges, self.summary, self.gated = privileges, summary, gated

    def describe(self) -> str:
        return self.summary

    def write(self, script: Script) -> None:
        script.call("umask", _UMASK)  # unless the process asks for another
        # Behind the gate nobody reads the channel: whoever opened it looks by itself.
        self.privileges.apply(script, told=not self.gated)


class Execute(Inside):
    """Become the program."""

    __slots__ = ("arguments", "find")
    about = PROGRAM
    settled = True

    def __init__(self, find: FindProgram, arguments: tuple[str, ...]) -> None:
        self.find = find
        self.arguments = tuple(os.fsencode(argument) for argument in arguments)

    def hangs_on(self) -> object:
        return self.find.environment.get(b"HOME")

    def describe(self) -> str:
        return f"execve {' '.join(map(os.fsdecode, self.arguments))}"

    def write(self, script: Script) -> None:
        environment = self.find.environment
        entries = [script.text(name + b"=" + text) for name, text in environment.items()]
        if b"HOME" not in environment:
            entries.append(ANSWER + len(channel.ANSWER))
        script.call(
            "execve",
            FILE,
            script.vector([script.text(argument) for argument in self.arguments]),
            script.vector(entries),
            about=self.find.name,
        )
