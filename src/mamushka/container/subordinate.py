"""Becoming root of a user namespace without being root outside: whose ids it gets, and who writes them down.

Alone an ordinary user may map one id, his own. The ids that /etc/subuid and /etc/subgid grant him are written by two
programs with that right, newuidmap(1) and newgidmap(1). They write from outside: they are started before this process
leaves its namespace, and wait until it has.

A process can enter or leave a user namespace only while it has a single thread. user_namespaces(7).
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.errors import Denied, Invalid, Unsupported
from mamushka.linux.process import CLONE_NEWNS, CLONE_NEWUSER, moved, setns, threads, unshare
from mamushka.spec.runtime import IDMapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.errors import MamushkaError

_WRITERS = {"uid": "newuidmap", "gid": "newgidmap"}
_PATH = ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin", "/usr/local/sbin")
# The kernel takes 340 lines in a map, UID_GID_MAP_MAX_EXTENTS; one is the user's own id.
_RANGES_MAX = 339
# A file of grants may list every account of a university; a megabyte holds some 40,000.
_FILE_MAX = 1 << 20


def granted(kind: str, uid: int, name: str) -> list[tuple[int, int]]:
    """(first, size) of the subordinate ids of a user, by name or by number. subuid(5), subgid(5)."""
    found = []
    for line in _lines(f"/etc/sub{kind}"):
        who, _, rest = line.partition(":")
        first, colon, size = rest.partition(":")
        if who in (name, str(uid)) and colon and first.isdecimal() and size.isdecimal() and int(size):
            found.append((int(first), int(size)))
    return found[:_RANGES_MAX]


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            yield from (line.strip() for line in file.read(_FILE_MAX).split("\n"))
    except OSError:
        return


def user_name(uid: int) -> str:
    """A user's name; his number where he has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def own_maps() -> tuple[tuple[IDMapping, ...], tuple[IDMapping, ...]]:
    """(users, groups): root is this user, and from 1 on come his subordinate ids, where he has both kinds."""
    uid, gid = os.geteuid(), os.getegid()
    alone = (IDMapping(0, uid, 1),), (IDMapping(0, gid, 1),)
    missing = lacking(uid)
    if missing:
        trace.event("rootless.single", reason=missing)
        return alone
    name = user_name(uid)
    return _stacked(uid, granted("uid", uid, name)), _stacked(gid, granted("gid", uid, name))


def lacking(uid: int) -> str:
    """Why a user has one id only, and how he gets more; empty where he has what it takes."""
    name = user_name(uid)
    for kind, program in _WRITERS.items():
        if not granted(kind, uid, name):
            option = "--add-subuids" if kind == "uid" else "--add-subgids"
            return f"/etc/sub{kind} has no line for {name}: sudo usermod {option} 100000-165535 {name}"
        if not _program(program):
            return f"{program} is not installed: apt-get install uidmap, or dnf install shadow-utils"
    return ""


def _stacked(own: int, ranges: list[tuple[int, int]]) -> tuple[IDMapping, ...]:
    maps = [IDMapping(0, own, 1)]
    inside = 1
    for first, size in ranges:
        maps.append(IDMapping(inside, first, size))
        inside += size
    return tuple(maps)


def _program(name: str) -> str:
    return next((f"{place}/{name}" for place in _PATH if os.access(f"{place}/{name}", os.X_OK)), "")


def run_directory() -> str:
    """Where this user keeps what ends with his session. Denied for a directory that is somebody else's."""
    uid = os.geteuid()
    for path in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if path.startswith("/") and os.path.isdir(path) and os.stat(path).st_uid == uid:
            return path
    path = f"/tmp/mamushka-{uid}"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    # Everybody may make names in /tmp: only what lstat says of this one counts.
    found = os.lstat(path)
    if found.st_uid != uid or found.st_mode & 0o170077 != 0o040000:
        raise Denied(
            f"{path} does not belong to uid {uid} alone",
            hint="remove it, or say with XDG_RUNTIME_DIR or --run-root where the state of this session goes",
        )
    return path


# The directory of the user that this process was before it became root of a namespace; empty where it did not.
entered_from = ""
# And his number outside.
entered_as = -1


def check_threads() -> None:
    """Unsupported for a process of several threads, which the kernel does not let into a user namespace."""
    count = threads()
    if count > 1:
        raise Unsupported(
            f"an ordinary user's workloads live in a user namespace, which a process with {count} threads cannot enter",
            hint="open mamushka before the first thread starts, or start the program with: mamushka unshare PROGRAM",
        )


def make(uids: tuple[IDMapping, ...], gids: tuple[IDMapping, ...]) -> None:
    """This very process becomes root of a new user namespace with these ids, and gets mounts of its own."""
    check_threads()
    _remember()
    writers = [_Writer(kind, maps) for kind, maps in (("uid", uids), ("gid", gids)) if not _alone(maps, kind)]
    try:
        try:
            unshare(CLONE_NEWUSER)
        except OSError as error:
            raise forbidden(error) from error
        moved()
        for writer in writers:
            writer.go()
        for writer in writers:
            writer.collect()
    finally:
        for writer in writers:
            writer.close()
    written = {writer.kind for writer in writers}
    if "uid" not in written:
        _write("uid_map", uids)
    if "gid" not in written:
        _put("setgroups", b"deny")
        _write("gid_map", gids)
    settle()


def enter(namespace: int) -> None:
    """The same in an existing user namespace of this user's."""
    check_threads()
    _remember()
    setns(namespace, CLONE_NEWUSER)
    moved()
    settle()


def _remember() -> None:
    global entered_from, entered_as
    entered_from, entered_as = run_directory(), os.geteuid()


def settle() -> None:
    """Root's ids, and a mount namespace in which this root may mount; what is mounted outside still arrives."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    try:
        unshare(CLONE_NEWNS)
    except OSError as error:
        raise forbidden(error) from error


def _alone(maps: tuple[IDMapping, ...], kind: str) -> bool:
    """Whether the user may write the map without help: one line about his own id."""
    own = os.geteuid() if kind == "uid" else os.getegid()
    return len(maps) == 1 and maps[0].size == 1 and maps[0].host_id == own


def _write(file: str, maps: tuple[IDMapping, ...]) -> None:
    _put(file, b"".join(b"%d %d %d\n" % (item.container_id, item.host_id, item.size) for item in maps))


def _put(file: str, content: bytes) -> None:
    try:
        descriptor = os.open(f"/proc/self/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
    except PermissionError as error:
        raise forbidden(error) from error


class _Writer:
    """A child outside the namespace that becomes newuidmap or newgidmap when it is told to."""

    def __init__(self, kind: str, maps: tuple[IDMapping, ...]) -> None:
        self.kind = kind
        self._name = _WRITERS[kind]
        program = _program(self._name)
        if not program:
            raise Unsupported(
                f"several {kind}s are to be mapped, and {self._name}, which may do that, is not installed",
                hint="apt-get install uidmap, or dnf install shadow-utils",
            )
        numbers = [str(number) for item in maps for number in (item.container_id, item.host_id, item.size)]
        self._words = [self._name, str(os.getpid()), *numbers]
        self._said, said = os.pipe()
        waiting, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.dup2(said, 2)
                if os.read(waiting, 1):
                    os.execve(program, self._words, {})
            finally:
                os._exit(126)
        os.close(said)
        os.close(waiting)

    def go(self) -> None:
        """This process is in its namespace now."""
        os.write(self._go, b"\n")

    def collect(self) -> None:
        """Wait for what it says. Denied in its own words."""
        said = os.read(self._said, 4096).decode("utf-8", "replace").strip()
        pid, self._pid = self._pid, 0
        _, status = os.waitpid(pid, 0)
        if status:
            raise Denied(
                f"{self._name} refuses the ids of the user namespace: {said or f'status {status}'}",
                hint=f"/etc/sub{self.kind} grants them; {self._name} must be set-uid root, or have its capability",
            )

    def close(self) -> None:
        """It ends where it was not told to go on."""
        for descriptor in (self._go, self._said):
            os.close(descriptor)
        if self._pid:
            # Killed, not left to the end of file: a later writer has inherited the other end.
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)


def forbidden(error: OSError) -> MamushkaError:
    """Why this machine lets ordinary users make no user namespace: which switch it is, and how it is turned."""
    told = switches()
    if told:
        reason, hint = told[0]
        return Denied(f"an ordinary user's workloads need a user namespace, and {reason}", hint=hint)
    return Denied(
        f"an ordinary user's workloads need a user namespace, which cannot be made: {error.strerror}",
        hint="inside another container its seccomp profile or its engine may forbid it; see mamushka doctor",
    )


def switches() -> list[tuple[str, str]]:
    """The settings of this machine that forbid user namespaces: (what is said, what to do)."""
    found = []
    if _setting("/proc/sys/user/max_user_namespaces") == "0":
        found.append(
            ("user.max_user_namespaces is 0: none may be made", "sudo sysctl -w user.max_user_namespaces=15000")
        )
    if _setting("/proc/sys/kernel/unprivileged_userns_clone") == "0":  # Debian's and Arch's own
        found.append(
            (
                "kernel.unprivileged_userns_clone is 0: only root may make one",
                "sudo sysctl -w kernel.unprivileged_userns_clone=1",
            )
        )
    if _setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":  # Ubuntu, from 23.10 on
        found.append(
            (
                "kernel.apparmor_restrict_unprivileged_userns is 1: without an AppArmor profile it has no rights",
                "give Python a profile with the rule userns, as docs/guides/rootless.md shows, or for every program: "
                "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            )
        )
    return found


def _setting(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def check_root(maps: tuple[IDMapping, ...]) -> None:
    """Invalid where the ids have no root: who is not root loses every right with the first program."""
    if not any(item.container_id == 0 and item.size for item in maps):
        raise Invalid(
            "the id mappings have no root: nobody could build the container", hint="map containerID 0 to your own id"
        )
