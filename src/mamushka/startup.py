"""Modules from one file: half of what importing a hundred small ones costs.

The import system lists directories, stats and opens each module; for the ninety modules behind
``mamushka run`` that is as much work as executing them. So the programs keep their compiled modules side by
side in one file in this package's ``__pycache__``: an index, then the code objects, each read when it is
wanted and only if its source still has the size and time that the index names. Anything else (a module that
is missing, changed, or an unreadable bundle) goes the usual way, and ``finish`` adds it for the next time.

With a module's code stands which others its first lines import. Those are executed before it, one after the other,
without what the import system does for each of them: locks, finders, the search for parents. It does that for the
first alone; where there are further threads, who need the locks, for all.
See docs/decisions/0021-startup-bundle.md.
"""

from __future__ import annotations

import _thread
import gc
import marshal
import mmap
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Iterator
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

    # source path, its st_mtime_ns and st_size, whether it is a package, where its code lies
    Entry = tuple[str, int, int, bool, int, int]
    # the modules that it imports first, and its own
    Code = tuple[tuple[str, ...], CodeType]
    Compiled = tuple[tuple[str, int, int, bool], Code]
else:
    ModuleSpec, ModuleType = type(sys.__spec__), type(sys)

_PACKAGE = "mamushka"
_MAGIC = b"mamushka bundle 2 %s\n" % sys.version.encode()
_HERE = os.path.dirname(os.path.abspath(__file__))
_HEAD = len(_MAGIC) + 8
# values.value and linux.abi.struct, alone.
_ANEW = (["value"], ["struct"])
# Of the standard library, what machines need and is not in the interpreter's own binary.
_STANDARD = (
    "collections", "functools", "keyword", "operator", "reprlib", "struct", "threading", "types", "_weakrefset",
)  # fmt: skip


def _path() -> str:
    return os.path.join(_HERE, "__pycache__", f"bundle.{sys.implementation.cache_tag}")


class Bundle:
    """A finder and loader of the import system over one file. See importlib's MetaPathFinder and Loader."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.index: dict[str, Entry] = {}
        self.content = memoryview(b"")
        self.served: set[str] = set()
        try:
            # Mapped, not kept open: a shim closes every descriptor that it does not know, and imports afterwards.
            with open(path, "rb") as stream:
                self.content = memoryview(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ))
            head = self.content[:_HEAD]
            if head[:-8] == _MAGIC:
                length = int.from_bytes(head[-8:], "little")
                self.index = marshal.loads(self.content[_HEAD : _HEAD + length])
        except (OSError, EOFError, ValueError, TypeError):
            self.index = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's place in the bundle, or None where its source has changed since."""
        entry = self.index.get(name)
        if entry is None:
            return None
        source, mtime, size, package, _, _ = entry
        try:
            now = os.stat(source)
        except OSError:
            return None
        if now.st_mtime_ns != mtime or now.st_size != size:
            return None
        self.served.add(name)
        # Without a location: the import system would work out where a .pyc might lie, which takes as long as the rest.
        spec = ModuleSpec(name, self, origin=source, is_package=package)  # type: ignore[arg-type]
        if package:
            spec.submodule_search_locations = [os.path.dirname(source)]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """The import system's own kind of module will do."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code in it, after that of the modules that it begins with."""
        name = module.__name__
        module.__file__ = self.index[name][0]
        first, code = self.code(name)
        self._import(first)
        exec(code, module.__dict__)

    def _import(self, names: tuple[str, ...]) -> None:
        """Import those that are not there yet, while no other thread could meet one of them half done."""
        if not _thread._count():
            for name in names:
                if name not in sys.modules:
                    self._load(name)

    def _load(self, name: str) -> None:
        """Make a module as the import system would; one that the bundle cannot serve is left to that."""
        spec = self.find_spec(name)
        parent, _, child = name.rpartition(".")
        if spec is None:
            return
        if parent and parent not in sys.modules:
            self._load(parent)
            if parent not in sys.modules:
                return
        module = ModuleType(name)
        module.__spec__, module.__loader__ = spec, self  # type: ignore[assignment]
        module.__package__ = spec.parent
        if spec.submodule_search_locations:
            module.__path__ = spec.submodule_search_locations
        sys.modules[name] = module
        try:
            self.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        if parent:
            setattr(sys.modules[parent], child, module)

    def code(self, name: str) -> Code:
        """The modules that a module begins with, and its compiled self."""
        *_, offset, length = self.index[name]
        result: Code = marshal.loads(self.content[offset : offset + length])
        return result

    def rewrite(self, compiled: dict[str, Compiled]) -> None:
        """Add modules, keep what is still valid, replace the file at once."""
        known = {name: (self.index[name][:4], self.code(name)) for name in self.index if self.find_spec(name)}
        known.update(compiled)
        entries = {name: entry for name, (entry, _) in known.items()}
        blobs = {name: marshal.dumps(code) for name, (_, code) in known.items()}
        _replace(self.path, _layout(entries, blobs))


def _cached(module: ModuleType) -> Compiled | None:
    """What the usual way has left of a module: the code of its ``.pyc``, if that belongs to the source."""
    source, cached = module.__file__, getattr(module, "__cached__", None)
    if source is None or cached is None:
        return None
    try:
        now = os.stat(source)
        with open(cached, "rb") as stream:
            raw = stream.read()
    except OSError:
        return None
    # PEP 552: magic, flags 0, mtime and size as 32 bits
    want = bytes(4) + (int(now.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little") + now.st_size.to_bytes(4, "little")
    if raw[4:16] != want:
        return None
    return (source, now.st_mtime_ns, now.st_size, hasattr(module, "__path__")), ((), marshal.loads(raw[16:]))


def _layout(entries: dict[str, tuple[str, int, int, bool]], blobs: dict[str, bytes]) -> bytes:
    """Index before code; the offsets in the index depend on its length, and marshal's ints have a fixed one."""

    def index(start: int) -> bytes:
        result = {}
        for name, entry in entries.items():
            result[name] = (*entry, start, len(blobs[name]))
            start += len(blobs[name])
        return marshal.dumps(result, 2)  # version 2 has no references, so equal numbers cost the same

    length = len(index(0))
    body = index(_HEAD + length)
    return b"".join([_MAGIC, length.to_bytes(8, "little"), body, *blobs.values()])


def _replace(path: str, content: bytes) -> None:
    staged = f"{path}.{os.getpid()}"
    with open(staged, "wb") as stream:
        stream.write(content)
    os.replace(staged, path)


_bundle: Bundle | None = None


def use() -> None:
    """Serve this package's modules from the bundle, where there is one."""
    global _bundle
    # A command makes many objects, keeps them and ends: collections at the usual pace, every 700, find nothing. The
    # longest start makes 40,000, and each look through them took three milliseconds.
    gc.set_threshold(100_000)
    _bundle = Bundle(_path())
    sys.meta_path.insert(0, _bundle)


def finish(status: int | None) -> None:
    """End the program at once: flush, teach the bundle what it did not know, skip the interpreter's teardown."""
    code = status or 0
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    if _bundle is not None and not sys.dont_write_bytecode:
        try:
            _learn(_bundle)
        except (OSError, ValueError):
            pass  # the next program tries again; without a bundle everything works, only slower
    os._exit(code)


def _learn(bundle: Bundle) -> None:
    usual = [name for name in sys.modules if name.startswith(f"{_PACKAGE}.") and name not in bundle.served]
    usual.remove(__name__)
    if usual and os.access(os.path.dirname(bundle.path), os.W_OK):
        found = {name: _cached(sys.modules[name]) for name in usual}
        bundle.rewrite({name: compiled for name, compiled in found.items() if compiled is not None})


def _compile(tree: ast.Module, source: str, *, declares: bool) -> CodeType:
    """A module without what only its readers and its type checker want: docstrings, and annotations of functions.

    Where functions declare by their annotations, these stay. Decorators that make a class anew (``_ANEW``) get what the
    statement describes instead of a class, which would be thrown away.
    """
    import __future__

    import ast

    # Compiled so that annotations are not evaluated, without the import that says so.
    tree.body = [part for part in tree.body if getattr(part, "module", "") != "__future__"]
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.copy_location(ast.Pass(), node.body[0])]
        if isinstance(node, ast.ClassDef) and [getattr(item, "id", "") for item in node.decorator_list] in _ANEW:
            maker = ast.Attribute(node.decorator_list.pop(), "of", ast.Load())
            node.keywords.append(ast.keyword("metaclass", maker))
            ast.fix_missing_locations(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not declares:
            node.returns = None
        if isinstance(node, ast.arg) and not declares:
            node.annotation = None
    code: CodeType = compile(tree, source, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
    return code


def _begins(tree: ast.Module, known: set[str]) -> tuple[str, ...]:
    """Those of ``known`` that a module imports whatever happens, in order: not what it tries, or on a condition."""
    import ast

    found: dict[str, None] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            found.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found[node.module] = None
            found.update(dict.fromkeys(f"{node.module}.{alias.name}" for alias in node.names))
    return tuple(name for name in found if name in known)


def _sources() -> Iterator[tuple[str, str]]:
    """(name, path) of each module that is kept."""
    for folder, _, files in os.walk(_HERE):
        for file in files:
            if file.endswith(".py"):
                source = os.path.join(folder, file)
                parts = os.path.relpath(source, os.path.dirname(_HERE))[:-3].split(os.sep)
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), source
    standard = os.path.dirname(os.__file__)
    for name in _STANDARD:
        source = os.path.join(standard, name)
        yield name, f"{source}/__init__.py" if os.path.isdir(source) else f"{source}.py"


def build() -> None:
    """Compile every module of this package into its bundle, and those of the standard library that machines need.

    Under ``-X no_debug_ranges``, which leaves out where in a line a traceback's arrow would point, it is a
    sixth shorter.
    """
    import ast

    everything: dict[str, Compiled] = {}
    sources = dict(_sources())
    for name, source in sources.items():
        now = os.stat(source)
        with open(source, "rb") as stream:
            tree = ast.parse(stream.read(), source)
        if name.partition(".")[0] == _PACKAGE:
            first = _begins(tree, set(sources))
            code = _compile(tree, source, declares=name.startswith(f"{_PACKAGE}.linux"))
        else:
            first, code = (), compile(tree, source, "exec", dont_inherit=True)
        entry = source, now.st_mtime_ns, now.st_size, os.path.basename(source) == "__init__.py"
        everything[name] = entry, (first, code)
    os.makedirs(os.path.dirname(_path()), exist_ok=True)
    Bundle(_path()).rewrite(everything)

    import py_compile

    for file in ("__init__.py", "startup.py"):  # what runs before there is a bundle
        py_compile.compile(os.path.join(_HERE, file), doraise=True)


def front(program: str) -> bool:
    """Put the front of ``mamushka-oci`` in place of its script (interfaces/oci/front.c); False without a compiler.

    It knows this interpreter and this package by their paths: after either was moved it must be made again.
    """
    import shutil
    import subprocess

    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return False
    folder = os.path.join(_HERE, "interfaces", "oci")
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    given = {"PYTHON": python, "MAIN": os.path.join(folder, "__main__.py")}
    options = [f'-D{name}="{text}"' for name, text in given.items()]
    staged = f"{program}.{os.getpid()}"
    words = [compiler, "-O2", "-static", *options, "-o", staged, os.path.join(folder, "front.c")]
    if subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        return False
    os.replace(staged, program)
    return True


if __name__ == "__main__":
    build()
    _script = os.path.join(os.path.dirname(sys.executable), "mamushka-oci")
    if os.path.exists(_script):
        front(_script)
