"""state, list, ps, events, spec, features: what only tells."""

from __future__ import annotations

import os
import sys
import time

from mamushka import document
from mamushka.container import defaults
from mamushka.errors import Conflict, NotFound
from mamushka.interfaces.oci.arguments import UsageError
from mamushka.interfaces.oci.lifecycle import runtime
from mamushka.runtime import STOPPED
from mamushka.spec import runtime as spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.interfaces.oci.arguments import Arguments
    from mamushka.runtime import State, Stats


def state(options: Arguments, given: Arguments, id: str) -> None:
    """The state document. runtime.md#state, with what runc adds."""
    _show(_state(runtime(options).state(id)))


def _state(found: State) -> dict[str, Any]:
    return {
        "ociVersion": spec.VERSION,
        "id": found.id,
        "pid": found.pid,
        "status": found.status,
        "bundle": found.bundle,
        "rootfs": os.path.join(found.bundle, "rootfs"),
        "created": _stamp(found.created),
        "annotations": dict(found.annotations),
        "owner": "",
    }


def _stamp(seconds: float) -> str:
    fraction = f"{seconds % 1:.9f}"[1:]
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def list_(options: Arguments, given: Arguments) -> None:
    """All containers."""
    found = [*runtime(options).list()]
    if "quiet" in given:
        sys.stdout.write("".join(f"{item.id}\n" for item in found))
    elif given.get("format", "table") == "json":
        _show([_state(item) for item in found])
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        rows += [(i.id, str(i.pid), i.status, i.bundle, _stamp(i.created), "root") for i in found]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write(line.rstrip() + "\n")


def ps(options: Arguments, given: Arguments, id: str, *words: str) -> None:
    """The processes inside: pids as JSON, or the lines of ps(1) that are theirs."""
    wall = runtime(options)
    if wall.state(id).status == STOPPED:
        raise Conflict("container not running")
    pids = wall.processes(id)
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


def events(options: Arguments, given: Arguments, id: str) -> None:
    """Resource use, once with --stats, or again and again."""
    wall = runtime(options)
    if wall.state(id).status == STOPPED:
        raise Conflict("container not running")
    while True:
        document_ = {"type": "stats", "id": id, "data": _stats(wall.stats(id))}
        sys.stdout.write(document.dump(document_).decode() + "\n")
        sys.stdout.flush()
        if "stats" in given:
            return
        time.sleep(_seconds(given.get("interval", "5s")))
        if wall.state(id).status == STOPPED:
            return


def _seconds(text: str) -> float:
    try:
        return float(text.removesuffix("s"))
    except ValueError:
        raise UsageError(f"--interval takes seconds, not {text!r}") from None


def _stats(found: Stats) -> dict[str, Any]:
    """In runc's shape: cpu in nanoseconds, the rest in bytes and counts."""
    nano = 1_000_000_000
    return {
        "cpu": {
            "usage": {
                "total": int(found.cpu * nano),
                "kernel": int(found.cpu_system * nano),
                "user": int(found.cpu_user * nano),
            },
            "throttling": {"throttledTime": int(found.cpu_throttled * nano)},
        },
        "memory": {
            "cache": found.memory_cache,
            "usage": {"limit": found.memory_limit, "usage": found.memory, "max": found.memory_peak},
        },
        "pids": {"current": found.pids, "limit": found.pids_limit},
        "blkio": {
            "ioServiceBytesRecursive": [
                {"op": "Read", "value": found.io_read},
                {"op": "Write", "value": found.io_written},
            ]
        },
    }


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
    config = spec.Config(
        spec.VERSION, process, spec.Root("rootfs", readonly=True), "mamushka", mounts=defaults.MOUNTS, linux=linux
    )
    return spec.dump(config)


def spec_(options: Arguments, given: Arguments) -> None:
    """Write config.json; never over one that is there."""
    name = os.path.join(given.get("bundle", "."), "config.json")
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
