"""state, list, ps, spec, features: what only tells."""

from __future__ import annotations

import os
import sys
import time

from mamushka import document
from mamushka.container import defaults
from mamushka.errors import Conflict, NotFound
from mamushka.interfaces.oci.arguments import UsageError
from mamushka.interfaces.oci.lifecycle import runtime
from mamushka.spec import runtime as spec
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.interfaces.oci.arguments import Arguments
    from mamushka.runtime import State


def state(options: Arguments, given: Arguments, id: str) -> None:
    """The state document. runtime.md#state, with what runc adds."""
    _show(_state(runtime(options).state(id)))


def _state(found: State, owner: str = "") -> dict[str, Any]:
    return {
        "ociVersion": spec.VERSION,
        "id": found.id,
        "pid": found.pid,
        "status": found.status,
        "bundle": found.bundle,
        "rootfs": os.path.join(found.bundle, "rootfs"),
        "created": _stamp(found.created),
        "annotations": dict(found.annotations),
        "owner": owner,
    }


def _stamp(seconds: float) -> str:
    fraction = f"{seconds % 1:.9f}"[1:]
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def list_(options: Arguments, given: Arguments) -> None:
    """All containers."""
    wall = runtime(options)
    found = [*wall.list()]
    kind = given.get("format", "table")
    if kind not in ("table", "json"):
        raise UsageError("--format is table or json")
    if "quiet" in given:
        sys.stdout.write("".join(f"{item.id}\n" for item in found))
    elif kind == "json":
        _show([_state(item, _owner(f"{wall.root}/{item.id}")) for item in found])
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        for item in found:
            owner = _owner(f"{wall.root}/{item.id}")
            rows.append((item.id, str(item.pid), item.status, item.bundle, _stamp(item.created), owner))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write(line.rstrip() + "\n")


def _owner(path: str) -> str:
    """Whose container it is: the user of its directory, by name or as #UID; runc has it so."""
    import pwd

    try:
        uid = os.stat(path).st_uid
    except FileNotFoundError:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def ps(options: Arguments, given: Arguments, id: str, *words: str) -> None:
    """The processes inside: pids as JSON, or the lines of ps(1) that are theirs."""
    wall = runtime(options)
    wall.state(id)  # NotFound
    pids = wall.processes(id)  # of a stopped container too: it may share its pid namespace
    kind = given.get("format", "table")
    if kind == "json":
        _show([*pids])
    elif kind == "table":
        _ps_lines({str(pid) for pid in pids}, words or ("-ef",))
    else:
        raise UsageError("--format is table or json")


def _ps_lines(pids: set[str], words: tuple[str, ...]) -> None:
    from subprocess import PIPE, run

    try:
        done = run(["ps", *words], stdout=PIPE, check=True, text=True)
    except FileNotFoundError as error:
        raise NotFound("this machine has no ps", hint="install the package procps, or use --format json") from error
    head, *lines = done.stdout.splitlines()
    if "PID" not in head.split():
        raise UsageError("these options of ps show no column PID")
    column = head.split().index("PID")
    shown = [line for line in lines if len(line.split()) > column and line.split()[column] in pids]
    sys.stdout.write("\n".join([head, *shown]) + "\n")


def features(options: Arguments, given: Arguments) -> None:
    """features.md."""
    _show(runtime(options).features())


def spec_document(*, rootless: bool) -> bytes:
    """A config.json to begin with: a shell on a terminal, behind the default wall."""
    namespaces = defaults.NAMESPACES
    linux = spec.Linux(
        namespaces=namespaces,
        masked_paths=defaults.MASKED_PATHS,
        readonly_paths=defaults.READONLY_PATHS,
        resources=spec.Resources(devices=(spec.DeviceRule(allow=False, access="rwm"),)),
    )
    if rootless:
        linux = spec.Linux(
            namespaces=(*(n for n in namespaces if n.type != "network"), spec.Namespace("user")),
            uid_mappings=(spec.IDMapping(0, os.getuid(), 1),),
            gid_mappings=(spec.IDMapping(0, os.getgid(), 1),),
            masked_paths=defaults.MASKED_PATHS,
            readonly_paths=defaults.READONLY_PATHS,
        )
    process = spec.Process(
        terminal=True,
        args=("sh",),
        env=(f"PATH={defaults.PATH}", "TERM=xterm"),
        capabilities=defaults.CAPABILITIES,
        no_new_privileges=True,
        rlimits=(spec.Rlimit("RLIMIT_NOFILE", 1024, 1024),),
    )
    mounts = _rootless_mounts() if rootless else defaults.MOUNTS
    config = spec.Config(
        spec.VERSION, process, spec.Root("rootfs", readonly=True), "mamushka", mounts=mounts, linux=linux
    )
    return spec.dump(config)


def _rootless_mounts() -> tuple[spec.Mount, ...]:
    """As runc writes it: the network is the host's, so /sys is bound; and one id has no group for terminals."""
    words = ("rbind", "nosuid", "noexec", "nodev", "ro")
    mounts = [
        replace(mount, options=tuple(word for word in mount.options if not word.startswith("gid=")))
        for mount in defaults.MOUNTS
        if not mount.destination.startswith("/sys")
    ]
    return (*mounts, spec.Mount("/sys", "none", "/sys", words))


def spec_(options: Arguments, given: Arguments) -> None:
    """Write config.json; never over one that is there."""
    name = os.path.join(given.get("bundle", "."), given.get("file", "config.json"))
    pretty = _pretty(document.parse(spec_document(rootless="rootless" in given), name), "")
    try:
        with open(name, "x", encoding="utf-8") as file:
            file.write(pretty + "\n")
    except FileExistsError:
        raise Conflict(f"file {name} exists; remove it first") from None


def _show(item: object) -> None:
    sys.stdout.write(_pretty(item, "") + "\n")


def _pretty(item: Any, indent: str) -> str:
    """JSON with two spaces a level; short of scalars only."""
    deeper = indent + "  "
    if hasattr(item, "keys") and item:
        inside = [f"{deeper}{_scalar(key)}: {_pretty(item[key], deeper)}" for key in item]
        return "{\n" + ",\n".join(inside) + f"\n{indent}}}"
    if isinstance(item, tuple | list) and item:
        return "[\n" + ",\n".join(deeper + _pretty(entry, deeper) for entry in item) + f"\n{indent}]"
    return _scalar(item)


def _scalar(item: object) -> str:
    return document.dump(item).decode()
