"""A kernel's modules: which files the wanted ones need, each after what it needs itself.

The guest has no udev and no modprobe: it is given the files in the order in which they must be inserted. What modules
need is in ``modules.dep``, what is built in in ``modules.builtin``, both written by depmod(8); what they ask for only
when they run (a checksum by its name, say) they declare as soft dependencies, often by an alias.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid, NotFound
from mamushka.machine.boot import compressed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SUFFIXES = (".xz", ".zst", ".gz")
# A module with all its debugging symbols has tens of MB.
_MODULE_MAX = 256 << 20


def module_name(path: str) -> str:
    """How the kernel calls the module in a file: without directory and suffixes, with underscores."""
    name = path.rsplit("/", 1)[-1]
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name.removesuffix(".ko").replace("-", "_")


class Modules:
    """A directory of modules, ``/lib/modules/VERSION`` or one like it. NotFound where it is none."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._paths: dict[str, str] = {}
        self._needs: dict[str, tuple[str, ...]] = {}
        self._soft: dict[str, tuple[str, ...]] | None = None
        try:
            rows = list(_lines(f"{directory}/modules.dep"))
        except FileNotFoundError as error:
            raise NotFound(
                f"{directory} has no modules.dep", hint=f"depmod(8) writes it: depmod {os.path.basename(directory)}"
            ) from error
        for row in rows:
            path, colon, needs = row.partition(":")
            if not colon:
                raise Invalid(f"{directory}/modules.dep has a line without a colon: {row[:80]!r}")
            self._paths[module_name(path)] = path
            self._needs[path] = tuple(needs.split())
        self.builtin = frozenset(module_name(path) for path in _lines(f"{directory}/modules.builtin", missing=True))

    def has(self, name: str) -> bool:
        """Whether the kernel has it, built in or as a file."""
        name = module_name(name)
        return name in self.builtin or name in self._paths

    def order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Files below the directory that make these modules work, in the order of insertion. NotFound without one."""
        found: dict[str, None] = {}
        for name in names:
            name = module_name(name)
            if name in self._paths:
                self._add(self._paths[name], found, ())
            elif name not in self.builtin:
                raise NotFound(f"this kernel has no module {name}: neither built in nor in {self.directory}")
        return tuple(found)

    def read(self, path: str) -> bytes | memoryview:
        """A module as the kernel takes it, unpacked. ``path`` is one that ``order`` gave."""
        with open(os.path.join(self.directory, path), "rb") as file:
            return compressed.unpack(file.read(_MODULE_MAX), path, _MODULE_MAX)

    def _add(self, path: str, found: dict[str, None], above: tuple[str, ...]) -> None:
        if path in found or path in above:
            return
        if path not in self._needs:
            raise Invalid(f"{self.directory}/modules.dep needs {path}, which it does not list")
        above = (*above, path)
        # depmod lists what is needed with the nearest first; any order is right that goes down to the end.
        for further in (*self._softly(module_name(path)), *self._needs[path]):
            self._add(further, found, above)
        found[path] = None

    def _softly(self, name: str) -> Iterator[str]:
        """Files of what a module says that it wants before it."""
        if self._soft is None:
            self._soft = dict(_soft(_lines(f"{self.directory}/modules.softdep", missing=True)))
        for wanted in self._soft.get(name, ()):
            if module_name(wanted) in self._paths:
                yield self._paths[module_name(wanted)]
            elif module_name(wanted) not in self.builtin:
                yield from self._called(wanted)

    def _called(self, alias: str) -> Iterator[str]:
        """Files of the modules with this alias: the generic one suffices, as it works on every processor."""
        if f"{module_name(alias)}_generic" in self.builtin:
            return
        rows = (row.split() for row in _lines(f"{self.directory}/modules.alias", missing=True))
        wanted = alias.replace("-", "_")
        names = {row[2] for row in rows if len(row) == 3 and row[0] == "alias" and row[1].replace("-", "_") == wanted}
        generic = sorted(name for name in names if name.endswith("_generic")) or sorted(names)
        yield from (self._paths[name] for name in generic if name in self._paths)


def _soft(rows: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """``softdep NAME pre: A B post: C``: what is wanted before, and what is said without saying when."""
    for row in rows:
        word, _, rest = row.partition(" ")
        if word != "softdep":
            continue
        name, _, rest = rest.partition(" ")
        yield module_name(name), tuple(rest.partition("post:")[0].replace("pre:", " ").split())


def _lines(path: str, *, missing: bool = False) -> Iterator[str]:
    """A file's lines without empty ones; none where it is ``missing`` and may be."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            yield from (line.rstrip("\n") for line in file if line.strip())
    except FileNotFoundError:
        if not missing:
            raise
