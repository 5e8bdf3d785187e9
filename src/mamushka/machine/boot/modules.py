"""A kernel's modules: which files the wanted ones need, each after what it needs itself.

The guest has no udev and no modprobe: it is given the files in the order in which they must be inserted. What modules
need is in ``modules.dep``, which depmod(8) writes when a kernel is installed; a package that was only unpacked has
none, and then the modules themselves are asked (their section ``.modinfo``). What is built in is in
``modules.builtin``. What modules ask for only when they run (a checksum by its name, say) they declare as soft
dependencies, often by an alias.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid, NotFound
from mamushka.machine.boot import compressed, elf

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
        self._soft: dict[str, tuple[str, ...]] = {}
        self._index = _text(f"{directory}/modules.dep")
        self._indexed, self._read = bool(self._index), False
        if not self._indexed:
            self._paths = {module_name(path): path for path in _files(directory)}
        self.builtin = frozenset(module_name(path) for path in _lines(f"{directory}/modules.builtin"))
        if not self._paths and not self.builtin and not self._indexed:
            raise NotFound(f"{directory} is no directory of kernel modules: there is neither modules.dep nor a module")

    def has(self, name: str) -> bool:
        """Whether the kernel has it, built in or as a file."""
        name = module_name(name)
        if name in self.builtin:
            return True
        # Nearly always it is called so in the list, at the beginning of a line or behind what needs it: a search, where
        # to take some thousand lines apart takes milliseconds.
        if any(f"/{said}.ko" in self._index for said in (name, name.replace("_", "-"))):
            return True
        self._read_index()
        return name in self._paths

    def order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Files below the directory that make these modules work, in the order of insertion. NotFound without one."""
        found: dict[str, None] = {}
        self._read_index()
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
        above = (*above, path)
        needs, soft = self._wants(path)
        for further in (*self._found(soft), *needs):
            self._add(further, found, above)
        found[path] = None

    def _wants(self, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Files that a module needs, and names that it says it wants before it."""
        if not self._indexed and path not in self._needs:
            self._ask(path)
        if path not in self._needs:
            raise Invalid(f"{self.directory}/modules.dep names {path} as needed, and does not list it")
        return self._needs[path], self._soft.get(module_name(path), ())

    def _read_index(self) -> None:
        """What depmod wrote; once."""
        if self._read or not self._indexed:
            return
        self._read = True
        for row in _lines(f"{self.directory}/modules.dep"):
            path, colon, needs = row.partition(":")
            if not colon:
                raise Invalid(f"{self.directory}/modules.dep has a line without a colon: {row[:80]!r}")
            self._paths[module_name(path)] = self._below(path)
            self._needs[path] = tuple(needs.split())
        for row in _lines(f"{self.directory}/modules.softdep"):
            word, _, rest = row.partition(" ")
            name, _, rest = rest.partition(" ")
            if word == "softdep":
                self._soft[module_name(name)] = _before(rest)

    def _below(self, path: str) -> str:
        """A path that stays below the directory: a kernel's own files may be a stranger's, and its guest's later."""
        if path.startswith("/") or ".." in path.split("/"):
            raise Invalid(f"{self.directory}/modules.dep leads out of its directory: {path[:200]!r}")
        return path

    def _ask(self, path: str) -> None:
        """What the module says of itself: words of KEY=VALUE with a NUL behind each."""
        try:
            raw = bytes(elf.section(memoryview(self.read(path)), b".modinfo"))
        except Invalid as error:
            raise Invalid(f"{self.directory}/{path} is no kernel module: {error}") from error
        words = [word.partition("=")[::2] for word in raw.decode(errors="replace").split("\0")]
        names = [name for key, value in words if key == "depends" for name in value.split(",") if name]
        absent = [name for name in names if not self.has(name)]
        if absent:
            raise NotFound(f"{self.directory}/{path} needs the module {absent[0]}, which is not there")
        self._needs[path] = tuple(self._found(names))
        self._soft[module_name(path)] = tuple(
            name for key, value in words if key == "softdep" for name in _before(value)
        )

    def _found(self, names: Iterable[str]) -> Iterator[str]:
        """Files of what is called so, without what is built in and what is nowhere."""
        for name in map(module_name, names):
            if name in self._paths:
                yield self._paths[name]
            elif name not in self.builtin:
                yield from self._called(name)

    def _called(self, alias: str) -> Iterator[str]:
        """Files of the modules with this alias; the generic one suffices, as it works on every processor."""
        generic = f"{alias.removeprefix('crypto_')}_generic"
        if generic in self.builtin:
            return
        if generic in self._paths:
            yield self._paths[generic]
            return
        rows = (row.split() for row in _lines(f"{self.directory}/modules.alias"))
        names = {row[2] for row in rows if len(row) == 3 and row[1].replace("-", "_") == alias}
        yield from (self._paths[name] for name in sorted(names) if name in self._paths)


def _before(text: str) -> tuple[str, ...]:
    """Of ``pre: A B post: C`` what is wanted before, which is also what is named without saying when."""
    return tuple(text.partition("post:")[0].replace("pre:", " ").split())


def _files(directory: str) -> Iterator[str]:
    """Every module below, as a path relative to the directory."""
    for where, _, names in os.walk(directory):
        for name in names:
            if name.endswith((".ko", *(f".ko{suffix}" for suffix in _SUFFIXES))):
                yield os.path.relpath(f"{where}/{name}", directory)


def _text(path: str) -> str:
    """A file's content; nothing where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _lines(path: str) -> Iterator[str]:
    """A file's lines without empty ones and comments; none where there is no file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            yield from (line.rstrip("\n") for line in file if line.strip() and line[0] != "#")
    except FileNotFoundError:
        return
