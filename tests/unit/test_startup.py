"""The bundle serves what the import system would, and never what has changed since."""

import __future__

import ast
import builtins
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mamushka import startup
from mamushka.engine import shim


def compiled(path: Path, *first: str) -> "startup.Compiled":
    now = path.stat()
    entry = str(path), now.st_mtime_ns, now.st_size, path.name == "__init__.py"
    return entry, (first, compile(path.read_text(), str(path), "exec"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "bundled_example.py"
    path.write_text("ANSWER = 41\n")
    return path


@pytest.fixture
def bundle(tmp_path: Path, source: Path) -> startup.Bundle:
    path = str(tmp_path / "bundle")
    startup.Bundle(path).rewrite({"bundled_example": compiled(source)})
    return startup.Bundle(path)


def load(bundle: startup.Bundle) -> object:
    sys.meta_path.insert(0, bundle)
    try:
        return importlib.import_module("bundled_example").ANSWER
    finally:
        sys.meta_path.remove(bundle)
        sys.modules.pop("bundled_example", None)


def test_a_module_comes_from_the_bundle(bundle: startup.Bundle) -> None:
    assert load(bundle) == 41
    assert bundle.served == {"bundled_example"}


def test_it_serves_on_after_every_descriptor_has_been_closed(bundle: startup.Bundle) -> None:
    pid = os.fork()
    if pid == 0:
        os.closerange(3, 1024)
        os._exit(load(bundle) == 41)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_a_changed_source_is_never_served(bundle: startup.Bundle, source: Path) -> None:
    source.write_text("ANSWER = 42 \n")
    assert bundle.find_spec("bundled_example") is None


def test_a_touched_source_is_never_served(bundle: startup.Bundle, source: Path) -> None:
    os.utime(source, ns=(1, 1))
    assert bundle.find_spec("bundled_example") is None


class Threads:
    """What startup knows of this process's threads; other tests may have left some."""

    def __init__(self) -> None:
        self.count = 0

    def _count(self) -> int:
        return self.count


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    made = Threads()
    monkeypatch.setattr(startup, "_thread", made)
    return made


@pytest.fixture
def pair(tmp_path: Path, threads: Threads) -> Iterator[tuple[startup.Bundle, Path, Path]]:
    """A package's module that begins with another of a package below it; each says when it is executed."""
    outer, inner = tmp_path / "bundled" / "outer.py", tmp_path / "bundled" / "below" / "inner.py"
    inner.parent.mkdir(parents=True)
    inner.write_text("import sys; sys.bundled.append(__name__)\n")
    outer.write_text("import sys; sys.bundled.append(__name__)\nimport bundled.below.inner as found\n")
    modules = {"bundled.below.inner": compiled(inner), "bundled.outer": compiled(outer, "bundled.below.inner")}
    for package in (outer.parent, inner.parent):
        (package / "__init__.py").touch()
        modules[".".join(package.relative_to(tmp_path).parts)] = compiled(package / "__init__.py")
    startup.Bundle(str(tmp_path / "bundle")).rewrite(modules)
    bundle = startup.Bundle(str(tmp_path / "bundle"))
    sys.meta_path.insert(0, bundle)
    sys.path.insert(0, str(tmp_path))
    sys.bundled = []  # type: ignore[attr-defined]
    yield bundle, outer, inner
    sys.meta_path.remove(bundle)
    sys.path.remove(str(tmp_path))
    del sys.bundled  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.partition(".")[0] == "bundled"]:
        del sys.modules[name]


def executed() -> list[str]:
    return sys.bundled  # type: ignore[attr-defined, no-any-return]


def test_what_a_module_begins_with_is_executed_before_it_without_the_import_system(
    pair: tuple[startup.Bundle, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _, _ = pair
    asked: list[str] = []
    usual = bundle.create_module
    monkeypatch.setattr(bundle, "create_module", lambda spec: (asked.append(spec.name), usual(spec))[1])
    outer = importlib.import_module("bundled.outer")
    assert executed() == ["bundled.below.inner", "bundled.outer"]
    assert asked == ["bundled", "bundled.outer"]
    inner = sys.modules["bundled.below.inner"]
    assert outer.found is inner and sys.modules["bundled.below"].inner is inner  # type: ignore[attr-defined]
    assert sys.modules["bundled"].below is sys.modules["bundled.below"]  # type: ignore[attr-defined]
    monkeypatch.undo()
    for module in (inner, sys.modules["bundled.below"]):
        made = {name: getattr(module, name, None) for name in ("__name__", "__package__", "__file__", "__path__")}
        assert module.__spec__ is not None and module.__spec__.loader is module.__loader__ is bundle
        for name in ("bundled.below.inner", "bundled.below"):
            sys.modules.pop(name, None)
        again = importlib.import_module(module.__name__)  # by the import system
        assert made == {name: getattr(again, name, None) for name in made}


def test_where_there_are_threads_the_import_system_does_it_all(
    pair: tuple[startup.Bundle, Path, Path], threads: Threads
) -> None:
    threads.count = 1
    importlib.import_module("bundled.outer")
    assert executed() == ["bundled.outer", "bundled.below.inner"]


def test_a_beginning_that_has_changed_is_read_anew(pair: tuple[startup.Bundle, Path, Path]) -> None:
    _, _, inner = pair
    inner.write_text("import sys; sys.bundled.append('changed')\n")
    importlib.import_module("bundled.outer")
    assert executed() == ["bundled.outer", "changed"]


def test_a_beginning_that_fails_leaves_nothing_half_done(
    pair: tuple[startup.Bundle, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _, inner = pair
    inner.write_text("raise LookupError('first')\n")
    bundle.rewrite({"bundled.below.inner": compiled(inner)})
    with monkeypatch.context() as patched, pytest.raises(LookupError, match="first"):
        patched.setattr(sys, "meta_path", [startup.Bundle(bundle.path), *sys.meta_path[1:]])
        importlib.import_module("bundled.outer")
    assert "bundled.outer" not in sys.modules and "bundled.below.inner" not in sys.modules


def test_only_what_is_imported_whatever_happens_is_begun_with(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "from a import b, other\nimport c\nif late:\n    import d\ntry:\n    import e\nexcept ImportError:\n    pass\n"
        "def f():\n    import g\n"
    )
    assert startup._begins(ast.parse(source.read_text()), set("abcdeg") | {"a.b"}) == ("a", "a.b", "c")


@pytest.mark.parametrize(
    "decorator", ("from mamushka.values import value", "from mamushka.linux.abi import struct, u32")
)
def test_a_class_that_is_made_anew_is_made_once(tmp_path: Path, decorator: str) -> None:
    name = decorator.rpartition("import ")[2].partition(",")[0]
    kind = "u32" if name == "struct" else "int"
    source = tmp_path / "source.py"
    source.write_text(f"{decorator}\n@{name}\nclass Once:\n    field: {kind} = 3\n    other: {kind} = 0\n")
    made: list[str] = []
    real = builtins.__build_class__

    def build(function: Any, label: str, *bases: Any, **keywords: Any) -> Any:
        made.append(str(keywords))
        return real(function, label, *bases, **keywords)

    space: dict[str, Any] = {"__name__": __name__, "__builtins__": {**vars(builtins), "__build_class__": build}}
    exec(startup._compile(ast.parse(source.read_text()), str(source), declares=True), space)
    assert len(made) == 1 and "metaclass" in made[0]
    plain: dict[str, Any] = {"__name__": __name__}
    exec(compile(source.read_text(), str(source), "exec", flags=__future__.annotations.compiler_flag), plain)
    once, usual = space["Once"], plain["Once"]
    assert once(other=4).field == usual(other=4).field == 3 and once(other=4).other == 4
    assert once.__name__ == usual.__name__ and once.__bases__ == usual.__bases__
    assert once.__module__ == usual.__module__ == __name__
    assert set(vars(once)) - {"__qualname__"} == set(vars(usual)) - {"__qualname__"}


def test_rewriting_keeps_what_is_valid_and_drops_what_is_not(bundle: startup.Bundle, source: Path) -> None:
    other = source.with_name("bundled_other.py")
    other.write_text("pass\n")
    bundle.rewrite({"bundled_other": compiled(other)})
    assert set(startup.Bundle(bundle.path).index) == {"bundled_example", "bundled_other"}
    source.unlink()
    startup.Bundle(bundle.path).rewrite({})
    assert set(startup.Bundle(bundle.path).index) == {"bundled_other"}


@pytest.mark.parametrize("content", [b"", b"nonsense", startup._MAGIC, startup._MAGIC + b"\x08" + bytes(15)])
def test_a_damaged_bundle_is_no_bundle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(content)
    assert startup.Bundle(str(path)).find_spec("bundled_example") is None


def test_the_whole_package_builds_and_runs_from_its_bundle() -> None:
    script = (
        "import sys; from mamushka import startup; startup.build(); startup.use();"
        "import mamushka.errors; print(mamushka.errors.__spec__.loader is startup._bundle, startup._bundle.served)"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed == "True {'mamushka.errors'}\n"


def test_a_shim_that_wakes_comes_from_the_bundle() -> None:
    startup.build()
    *interpreter, code, package, _ = map(os.fsdecode, shim.wake_command("unused"))
    woken = code.rpartition(";")[0] + "; print(type(sys.modules['mamushka.engine.shim'].__spec__.loader).__name__)"
    done = subprocess.run([*interpreter, woken, package], capture_output=True, text=True, check=True, cwd="/", env={})
    assert done.stdout == "Bundle\n"
