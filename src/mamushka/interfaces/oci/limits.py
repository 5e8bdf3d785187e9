"""update: changing a running container's limits."""

from __future__ import annotations

import sys

from mamushka.interfaces.oci.arguments import UsageError
from mamushka.interfaces.oci.lifecycle import runtime
from mamushka.spec import runtime as spec
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.oci.arguments import Arguments

_SUFFIXES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_CPU = {
    "cpu-period": "period", "cpu-quota": "quota", "cpu-burst": "burst", "cpu-share": "shares", "cpu-idle": "idle",
    "cpu-rt-period": "realtime_period", "cpu-rt-runtime": "realtime_runtime",
}  # fmt: skip
_MEMORY = {
    "memory": "limit", "memory-reservation": "reservation", "memory-swap": "swap", "kernel-memory": "kernel",
    "kernel-memory-tcp": "kernel_tcp",
}  # fmt: skip


def update(options: Arguments, given: Arguments, id: str) -> None:
    """Apply a resources document, or single flags."""
    if "l3-cache-schema" in given or "mem-bw-schema" in given:
        raise UsageError("Intel RDT is not supported yet")
    resources = _document(given.get("resources")) if "resources" in given else _flags(given)
    runtime(options).update(id, resources)


def _document(path: str) -> spec.Resources:
    if path == "-":
        return spec.parse_resources(sys.stdin.buffer.read())
    with open(path, "rb") as file:
        return spec.parse_resources(file.read())


def _flags(given: Arguments) -> spec.Resources:
    cpu = {field: given.number(flag) for flag, field in _CPU.items() if flag in given}
    memory = {field: _bytes(given.get(flag), flag) for flag, field in _MEMORY.items() if flag in given}
    resources = spec.Resources()
    if cpu or "cpuset-cpus" in given or "cpuset-mems" in given:
        wanted = spec.CPU(cpus=given.get("cpuset-cpus"), mems=given.get("cpuset-mems"))
        resources = replace(resources, cpu=replace(wanted, **cpu))
    if memory:
        resources = replace(resources, memory=replace(spec.Memory(), **memory))
    if "pids-limit" in given:
        resources = replace(resources, pids=spec.Pids(given.number("pids-limit")))
    if "blkio-weight" in given:
        resources = replace(resources, block_io=spec.BlockIO(weight=given.number("blkio-weight")))
    return resources


def _bytes(text: str, flag: str) -> int:
    digits = text.lower().removesuffix("ib").rstrip("bkmgt")
    suffix = text.lower()[len(digits) :].removesuffix("ib")
    suffix = suffix[:1] if suffix in (f"{letter}b" for letter in "kmgt") else suffix
    try:
        return int(digits) * _SUFFIXES[suffix]
    except (KeyError, ValueError):
        raise UsageError(f"--{flag} takes bytes, as 512m, not {text!r}") from None
