"""virtiofsd: the program that serves a directory to one machine. There are two of that name, and we start either.

    C     of QEMU up to 7.2 (Debian 12, package qemu-system-common): takes -o source=...; cannot share read-only
    Rust  of its own since (package virtiofsd): takes --shared-dir

What is shared is a copy of the directory's mount, made before the program starts and seen by it alone, in a mount
namespace of its own: so it is read-only where that was asked for, whatever the program knows, its owners can be shifted
into a user namespace, and the program has no other way to what is shared than a machine's one directory.

Both wait for their one client on a socket. It is ours before they start: it is bound to a name that the kernel chose,
has room for one connection, and that one is made at once. So nobody else can come first, and there is no file.

The program ends when the connection does, and with the thread that started it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import _socket
import errno
import os

from mamushka.errors import Denied, Unsupported
from mamushka.machine.devices.virtio.frontend import PATIENCE
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_PATHS = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/bin/virtiofsd",
          "/usr/local/bin/virtiofsd")  # fmt: skip
# QEMU's has 1 MiB, the other 5 with its symbols.
_PROGRAM_MAX = 64 << 20
# What it says when it fails is a few lines.
_SAID_MAX = 65536
_KEPT_MAX = 4096
_ATTEMPTS = 16  # somebody in this network namespace guesses names: each attempt is a new one
_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
# Each file that a guest has in its cache is a descriptor of the program's. The programs' own choice, where they may.
_FILES = 1000000


@value
class Program:
    """An installed virtiofsd."""

    path: str
    rust: bool


@value
class Share:
    """One directory for one machine. ``directory`` is a descriptor, of a path that the sharer is allowed to share.

    ``id_map`` is a user namespace: the guest's owners are those seen in it, its user 0 the one that 0 is mapped to.
    ``cache`` says how long the guest may trust what it knows: ``none``, ``auto`` (a second), ``always``.
    """

    directory: int
    read_only: bool = False
    id_map: int = -1
    cache: str = "auto"
    xattr: bool = True
    sandbox: str = "namespace"  # or ``chroot``, where it may make none of its own


_programs: dict[str, Program] = {}


def find() -> Program:
    """The program to use; found out once. Unsupported where there is none."""
    path = next((path for path in _PATHS if os.access(path, os.X_OK)), "")
    if not path:
        raise Unsupported(
            "directories are shared with machines by virtiofsd, which is not installed",
            hint="apt-get install virtiofsd (Debian 12: qemu-system-common)",
        )
    if path not in _programs:
        _programs[path] = Program(path, rust=not _is_of_qemu(path))
    return _programs[path]


def _is_of_qemu(path: str) -> bool:
    """By the help text that it has in itself: to ask for it takes the program as long as to start, 25 ms."""
    with open(path, "rb") as file:
        return b"-o source=PATH" in file.read(_PROGRAM_MAX)


def arguments(program: Program, share: Share, source: str, listening: int, files: int = _FILES) -> tuple[str, ...]:
    """The words to start it with: it serves the path ``source`` to who is connected to the socket ``listening``."""
    words = [program.path, f"--fd={listening}", f"--rlimit-nofile={files}"]
    if program.rust:
        cache = "never" if share.cache == "none" else share.cache
        words += [f"--shared-dir={source}", f"--cache={cache}", f"--sandbox={share.sandbox}", "--announce-submounts"]
        words += ["--inode-file-handles=never", *(["--xattr"] if share.xattr else [])]
        return tuple(words)
    options = [f"source={source}", f"cache={share.cache}", f"sandbox={share.sandbox}", "announce_submounts"]
    options += ["xattr" if share.xattr else "no_xattr", "log_level=warn"]
    for option in options:
        words += ["-o", option]
    return tuple(words)


def connection() -> tuple[_socket.socket, _socket.socket]:
    """(ours, listening): a socket with its one client, who is us."""
    kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
    for _ in range(_ATTEMPTS):
        listening, ours = _socket.socket(_socket.AF_UNIX, kind), _socket.socket(_socket.AF_UNIX, kind)
        try:
            listening.bind("")  # a free abstract name. unix(7), "Autobind"
            listening.listen(0)  # room for one
            ours.setblocking(False)
            ours.connect(listening.getsockname())
            ours.settimeout(PATIENCE)  # now, while the process may still do what it likes
            return ours, listening
        except BlockingIOError:  # somebody was quicker
            ours.close()
            listening.close()
        except BaseException:
            ours.close()
            listening.close()
            raise
    raise OSError(errno.EADDRINUSE, "sockets of this network namespace are taken as soon as they are made")


class Virtiofsd:
    """The running program. Start it from a thread that stays, before there are others: it is forked.

    ``socket`` is the connection to it, which whoever takes it owns (and then sets to None here). What it says on its
    standard error is kept, the last 4 KiB of it.
    """

    def __init__(self, share: Share, place: str) -> None:
        """``place`` is a path for a directory, made where missing: where the program alone sees what is shared."""
        program = find()
        tree = _tree(share)
        socket, listening = connection()
        self.socket: _socket.socket | None = socket
        self._said, said = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # a full one loses words, and holds nobody up
        self._words = b""
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _become(program, share, place, tree, listening.fileno(), said, parent)
            except BaseException as error:
                os.write(said, f"{program.path}: {error}".encode())
            finally:
                os._exit(126)
        listening.close()
        os.close(said)
        os.close(tree)

    @property
    def pid(self) -> int:
        """Its process; -1 when it is gone."""
        return self._pid

    @property
    def said(self) -> int:
        """Readable when it has said something: then ``hear`` wants to be called, or it will be lost."""
        return self._said

    def hear(self) -> str:
        """What it has said since the last time; what was last is kept for ``words``."""
        try:
            text = os.read(self._said, _SAID_MAX)
        except BlockingIOError:
            text = b""
        self._words = (self._words + text)[-_KEPT_MAX:]
        return text.decode("utf-8", "replace").strip()

    def words(self) -> str:
        """What it said last, for an error."""
        self.hear()
        return self._words.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End it."""
        if self.socket is not None:
            self.socket.close()
        pid, self._pid = self._pid, -1
        if pid > 0:
            try:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
            os.close(self._said)


def _tree(share: Share) -> int:
    """A copy of the directory's mount and of those below it, with the sharer's restrictions; detached."""
    from mamushka.linux import mount as kernel
    from mamushka.linux.fd import AT_EMPTY_PATH, AT_RECURSIVE

    flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE
    try:
        tree = kernel.open_tree(share.directory, b"", flags)
    except PermissionError as error:
        raise Denied(
            "a directory cannot be shared with a machine: this process may make no mounts",
            hint="run as root, or in a user namespace of your own, as mamushka does",
        ) from error
    wanted = kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC  # it opens no such thing
    wanted |= kernel.MOUNT_ATTR_RDONLY if share.read_only else 0
    wanted |= kernel.MOUNT_ATTR_IDMAP if share.id_map >= 0 else 0
    attr = kernel.mount_attr(attr_set=wanted, userns_fd=max(share.id_map, 0))
    try:
        kernel.mount_setattr(tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, attr, kernel.MOUNT_ATTR_SIZE)
    except OSError as error:
        os.close(tree)
        if share.id_map >= 0 and error.errno == errno.EINVAL:
            raise Unsupported(
                "a filesystem of the shared directory cannot shift owners into a user namespace",
                hint="copy what it needs to ext4, xfs, btrfs or tmpfs, or share it without a user namespace",
            ) from error
        raise
    return tree


def _become(program: Program, share: Share, place: str, tree: int, listening: int, said: int, parent: int) -> NoReturn:
    """In the child: show it the tree, and become the program."""
    from mamushka.linux.mount import MS_REC, MS_SLAVE, attach, mount
    from mamushka.linux.process import CLONE_NEWNS, end_with, unshare
    from mamushka.linux.rlimit import NUMBERS, prlimit64, rlimit64

    if not end_with(parent):
        os._exit(126)
    os.dup2(said, 1)
    os.dup2(said, 2)
    unshare(CLONE_NEWNS)
    mount(None, b"/", None, MS_REC | MS_SLAVE, None)
    os.makedirs(place, 0o700, exist_ok=True)
    attach(tree, os.fsencode(place))
    os.set_inheritable(listening, True)
    limit = rlimit64(rlim_cur=0, rlim_max=0)
    prlimit64(0, NUMBERS["RLIMIT_NOFILE"], None, limit)
    words = arguments(program, share, place, listening, min(limit.rlim_max, _FILES))
    name, _, path = _PATH.partition("=")
    os.execve(program.path, words, {name: path})
