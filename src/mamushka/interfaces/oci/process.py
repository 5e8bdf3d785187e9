"""exec: a further process in a running container."""

from __future__ import annotations

from mamushka.container.privileges import capability_set
from mamushka.errors import NotFound
from mamushka.interfaces.oci import foreground
from mamushka.interfaces.oci.arguments import UsageError
from mamushka.interfaces.oci.lifecycle import check_console, hand_over, preserved, runtime
from mamushka.runtime import Stdio
from mamushka.spec import runtime as spec
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.oci.arguments import Arguments
    from mamushka.spec.runtime import Process

_ID_MAX = (1 << 32) - 2  # the last is no id: (uid_t)-1


def exec(options: Arguments, given: Arguments, id: str, *command: str) -> int:
    """Execute a command, or the process that --process describes."""
    wall = runtime(options)
    process = _process(given, command, wall.config(id).process)
    detached = "detach" in given
    check_console(given, terminal=process.terminal, detached=detached)
    preserve, environment = preserved(given)
    process = replace(process, env=process.env + environment)
    cgroup = _cgroup(given.all("cgroup"))
    paused = "ignore-paused" in given
    started = wall.exec(id, process, Stdio(), preserve=preserve, ignore_paused=paused, cgroup=cgroup)
    hand_over(started, given, detached=detached)
    return 0 if detached else foreground.follow(started, process)


def _process(given: Arguments, command: tuple[str, ...], own: Process | None) -> Process:
    if "process" in given:
        return spec.parse_process(_read(given.get("process")))
    if not command:
        raise UsageError("exec needs a command, or --process with a file that describes one")
    process = replace(own or spec.Process(), args=command, terminal="tty" in given, console_size=None)
    changes: dict[str, object] = {"env": process.env + given.all("env")}
    if "cwd" in given:
        changes["cwd"] = given.get("cwd")
    if "user" in given or "additional-gids" in given:
        changes["user"] = _user(given, process)
    if "cap" in given:
        changes["capabilities"] = _capabilities(given.all("cap"), process)
    if "apparmor" in given:
        changes["apparmor_profile"] = given.get("apparmor")
    if "process-label" in given:
        changes["selinux_label"] = given.get("process-label")
    if "no-new-privs" in given:
        changes["no_new_privileges"] = True
    return replace(process, **changes)


def _cgroup(places: tuple[str, ...]) -> dict[str, str]:
    """PATH, or CONTROLLER[,CONTROLLER …]:PATH, below the container's own cgroup; by controller, "" for all."""
    found: dict[str, str] = {}
    for place in places:
        controllers, colon, path = place.rpartition(":")
        for name in controllers.split(",") if colon else ("",):
            if colon and not name:
                raise UsageError(f"--cgroup {place!r} names no controller before the colon")
            if name in found:
                raise UsageError(f"--cgroup places {name or 'the process'} twice")
            found[name] = path
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise NotFound(f"the process document {path} does not exist") from None


def _user(given: Arguments, process: Process) -> spec.User:
    """UID[:GID], numbers only: a name misread as a number would be another user."""
    uid, colon, gid = given.get("user", str(process.user.uid)).partition(":")
    groups = process.user.additional_gids
    for text in given.all("additional-gids"):
        groups += tuple(_id(part) for part in text.split(","))
    return replace(
        process.user,
        uid=_id(uid),
        gid=_id(gid) if colon else process.user.gid,
        additional_gids=groups,
    )


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) > _ID_MAX:
        raise UsageError(f"{text!r} is not a user or group id", hint="exec --user takes numbers: UID[:GID]")
    return int(text)


def _capabilities(names: tuple[str, ...], process: Process) -> spec.Capabilities:
    added = capability_set(names, ("ALL",))
    own = process.capabilities or spec.Capabilities()
    return replace(
        own,
        bounding=_union(own.bounding, added),
        permitted=_union(own.permitted, added),
        effective=_union(own.effective, added),
    )


def _union(left: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*left, *right)))
