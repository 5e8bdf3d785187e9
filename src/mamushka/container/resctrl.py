"""Shares of the processor's caches and memory bandwidth: a class of service of Intel RDT, a directory of resctrl.

runtime-spec, config-linux.md#intelrdt; Documentation/arch/x86/resctrl.rst. A class that the bundle names is perhaps
other people's too: it is made where it is missing, never changed where it is there, and stays. One that is called like
the container, and every group for monitoring, are its own and go with it.
"""

from __future__ import annotations

import os
from errno import ENOSPC

from mamushka.errors import Conflict, Invalid, NotFound, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.spec.runtime import IntelRdt

# Directories that the kernel has there itself.
_RESERVED = ("info", "mon_data", "mon_groups", ".", "..", "")


class Group:
    """The directory of one container's class, and perhaps one below it in which it is measured."""

    __slots__ = ("_made", "_named", "_schemata", "monitor", "own", "path")

    def __init__(self, asked: IntelRdt, id: str) -> None:
        """Unsupported where resctrl is not mounted, Invalid for what can be no class."""
        root = mounted()
        if not root:
            raise Unsupported(
                "cannot give the container a class of service (linux.intelRdt): no resctrl file system is mounted",
                hint="mount -t resctrl resctrl /sys/fs/resctrl, on a processor with Intel RDT or AMD PQoS",
            )
        self._named = asked.clos_id
        if asked.clos_id != "/" and ("/" in asked.clos_id or (asked.clos_id and asked.clos_id in _RESERVED)):
            raise Invalid(f"linux.intelRdt.closID {asked.clos_id!r} is not the name of a class")
        self.path = root if asked.clos_id == "/" else f"{root}/{asked.clos_id or id}"
        self.monitor = f"{self.path}/mon_groups/{id}" if asked.enable_monitoring else ""
        self._schemata = schemata(asked)
        # What goes with the container; the innermost first.
        self.own = [path for path in (self.monitor, "" if self._named else self.path) if path]
        self._made: list[str] = []

    def doors(self) -> tuple[int, ...]:
        """Files into which a process writes 0 to come in; the caller's to close. The class goes first."""
        flags = os.O_WRONLY | os.O_CLOEXEC
        return tuple(os.open(f"{path}/tasks", flags) for path in (self.path, self.monitor) if path)

    def check(self) -> None:
        """Conflict or NotFound where the class cannot be had as asked; before anything is made."""
        if not self._named:
            return
        if os.path.isdir(self.path):
            there = {part for line in _read(f"{self.path}/schemata").splitlines() for part in _parts(line)}
            for line in self._schemata:
                if not _parts(line) <= there:
                    raise Conflict(
                        f"the class of service {self._named} has not the schema {line!r}",
                        hint="it is there already and may be others' too: name another, or leave the schema out",
                    )
        elif not self._schemata:
            raise NotFound(
                f"there is no class of service {self._named} in {os.path.dirname(self.path)}",
                hint="a closID without any schema names a class that exists",
            )

    def make(self) -> None:
        """Make what is missing. Nothing stays after an error, once ``unmake`` was called."""
        if not os.path.isdir(self.path):
            self._mkdir(self.path)
            for line in self._schemata:
                self._write(f"{self.path}/schemata", line + "\n")
        if self.monitor:
            if not os.path.isdir(os.path.dirname(self.monitor)):
                raise Unsupported("cannot measure the container's class of service: the processor has no monitoring")
            self._mkdir(self.monitor)

    def unmake(self) -> None:
        """Remove what ``make`` has made."""
        for path in reversed(self._made):
            remove(path)
        self._made = []

    def _mkdir(self, path: str) -> None:
        try:
            make(path)
        except FileExistsError as error:
            raise Conflict(f"the group {path} is there already") from error
        except OSError as error:
            why = "the processor has no more of them" if error.errno == ENOSPC else error.strerror
            raise Unsupported(f"cannot make the group {path}: {why}") from error
        self._made.append(path)

    def _write(self, path: str, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        except OSError as error:
            why = _read(f"{os.path.dirname(self.path)}/info/last_cmd_status").strip() or error.strerror
            raise Invalid(f"the schema {text.strip()!r} is refused: {why}") from error
        finally:
            os.close(descriptor)


def schemata(asked: IntelRdt) -> list[str]:
    """The lines to write, in order: L3 and MB by their own fields first, the free ones last."""
    cache = [line for line in asked.l3_cache_schema.split("\n") if line]
    if asked.mem_bw_schema:
        if not asked.mem_bw_schema.startswith("MB:") or "\n" in asked.mem_bw_schema:
            raise Invalid(f"linux.intelRdt.memBwSchema {asked.mem_bw_schema!r} is no line that starts with MB:")
        cache = [line for line in cache if not line.startswith("MB:")]
        cache.append(asked.mem_bw_schema)
    return [*cache, *(line for entry in asked.schemata for line in entry.split("\n") if line)]


def _parts(line: str) -> set[tuple[str, str, str]]:
    """What a line says, in one spelling: "L3:0=0FF;1=f" is the kernel's "    L3:0=ff;1=f"."""
    kind, _, rest = line.strip().partition(":")
    pairs = (part.strip().partition("=") for part in rest.split(";"))
    return {(kind, domain, item.strip().lower().lstrip("0") or "0") for domain, _, item in pairs}


def mounted() -> str:
    """Where resctrl is mounted; empty where it is not. proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if right.startswith("resctrl "):
                return left.split(" ")[4]
    return ""


def measures() -> bool:
    """Whether classes can be measured here."""
    return os.path.isdir(f"{mounted()}/mon_groups")


def make(path: str) -> None:
    """Make a group; the kernel fills its directory."""
    os.mkdir(path)


def remove(path: str) -> None:
    """Remove a group with the kernel's files in it; its processes go to the group above. Harmless when it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
