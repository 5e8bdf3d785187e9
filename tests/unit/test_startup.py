"""The bundle serves what the import system would, and never what has changed since."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mamushka import startup
from mamushka.engine import shim


def compiled(path: Path) -> "startup.Compiled":
    now = path.stat()
    entry = str(path), now.st_mtime_ns, now.st_size, path.name == "__init__.py"
    return entry, compile(path.read_text(), str(path), "exec")


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
