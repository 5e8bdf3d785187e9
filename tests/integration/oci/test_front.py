"""The front of ``mamushka-oci``: a program that is no interpreter does what is ordinary, and cannot be told apart."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mamushka import startup
from mamushka.interfaces.oci.commands import DEFAULT_ROOT
from tests import peers

from .conftest import Oci

pytestmark = pytest.mark.root
SOURCE = Path(startup.__file__).parent / "interfaces" / "oci" / "front.c"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A front of the test's own."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    program = str(tmp_path_factory.mktemp("front") / "mamushka-oci")
    assert startup.front(program), "the front cannot be compiled"
    return program


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The same command as a program of the interpreter's."""
    path = tmp_path / "script"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {SOURCE.parent}/__main__.py "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def oci(tmp_path: Path, front: str) -> Iterator[Oci]:
    """A bundle with busybox; the command is the front."""
    peers.need_root()
    peers.need("busybox")
    bundle = tmp_path / "bundle"
    (bundle / "rootfs" / "bin").mkdir(parents=True)
    shutil.copy(peers.find("busybox"), bundle / "rootfs" / "bin" / "busybox")
    for name in ("sh", "true", "sleep", "cat", "mkdir"):
        (bundle / "rootfs" / "bin" / name).symlink_to("busybox")
    (bundle / "rootfs" / "bin" / "garbage").write_bytes(b"\x00\x01\x02")
    (bundle / "rootfs" / "bin" / "garbage").chmod(0o755)
    made = Oci(str(tmp_path / "state"), str(bundle), program=front)
    assert made("spec").returncode == 0
    made.edit("true")
    yield made
    for name in made("list", "-q").stdout.split():
        made("delete", "--force", name)


def _settled(oci: Oci, id: str) -> None:
    deadline = time.monotonic() + 10
    while json.loads(oci("state", id).stdout)["status"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _programs(oci: Oci, *arguments: str) -> list[str]:
    """What is executed by the command, in order."""
    trace = f"{oci.state}.trace"
    peers.need("strace")
    words = ["strace", "-f", "-e", "trace=execve", "-o", trace, oci.program, "--root", oci.state, *arguments]
    null = subprocess.DEVNULL
    assert subprocess.run(words, stdin=null, stdout=null, stderr=null, check=False).returncode == 0
    with open(trace) as file:
        return re.findall(r'execve\("([^"]+)"', file.read())


def test_the_default_place_is_the_same() -> None:
    assert f'"{DEFAULT_ROOT}"' in SOURCE.read_text()


@pytest.mark.peer
def test_an_ordinary_life_needs_one_interpreter(oci: Oci) -> None:
    assert oci.quietly("create", "one") == 0
    assert _programs(oci, "start", "one") == [oci.program]
    _settled(oci, "one")
    assert _programs(oci, "delete", "one") == [oci.program]
    assert not os.path.exists(f"{oci.state}/one")
    assert not [where for where, names, _ in os.walk("/sys/fs/cgroup") if "one" in names and "mamushka" in where]


def test_the_log_is_made_as_callers_expect(oci: Oci, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    assert oci.quietly("create", "one") == 0
    assert oci.quietly("--log", str(log), "--log-format=json", "start", "one") == 0
    assert log.read_text() == ""


# What is not ordinary: (what happens before, the command). Each is told as by the interpreter.
_ODD = {
    "nobody": ((), ("start", "one")),
    "nobody to delete": ((), ("delete", "one")),
    "nobody, forced": ((), ("delete", "--force", "one")),
    "a path": ((), ("delete", "../one")),
    "no id": ((), ("start",)),
    "two ids": ((("create", "one"),), ("start", "one", "two")),
    "a flag": ((("create", "one"),), ("start", "--nothing", "one")),
    "help": ((), ("delete", "--help")),
    "started twice": ((("create", "one"), ("start", "one")), ("start", "one")),
    "not started": ((("create", "one"),), ("delete", "one")),
    "not started, forced": ((("create", "one"),), ("delete", "-f", "one")),
    "running": ((("create", "long"), ("start", "long")), ("delete", "long")),
    "running, forced": ((("create", "long"), ("start", "long")), ("delete", "--force", "long")),
    "no program": ((("create", "none"),), ("start", "none")),
    "no program, again": ((("create", "none"), ("start", "none")), ("start", "none")),
    "more limits": (
        (("create", "long"), ("update", "--memory", "67108864", "long"), ("kill", "long", "9")),
        ("delete", "long"),
    ),
    "a cgroup inside": ((("create", "nest"), ("start", "nest")), ("delete", "nest")),
    "debug": ((("create", "one"),), ("--debug", "start", "one")),
    "another place": ((), ("--root", "relative", "start", "one")),
    "no log": ((("create", "one"),), ("--log", "/nowhere/log", "start", "one")),
}


def _play(oci: Oci, steps: tuple[tuple[str, ...], ...], last: tuple[str, ...]) -> tuple[Any, ...]:
    programs = {
        "one": ("true",),
        "long": ("sleep", "60"),
        "none": ("/bin/garbage",),
        "nest": ("sh", "-c", "mkdir /sys/fs/cgroup/*/inside; exit 0"),
    }
    for step in steps:
        id = next(word for word in step if word in programs)
        oci.edit(*programs[id], capabilities={}, noNewPrivileges=True)
        oci.quietly(*step)
        if (step[0] == "start" and id != "long") or step[0] == "kill":
            _settled(oci, id)
    done = oci(*last)
    left = sorted(os.listdir(oci.state)) if os.path.isdir(oci.state) else []
    for name in left:
        oci("delete", "--force", name)
    return done.returncode, done.stdout, re.sub(r"pid \d+|\d{4}-\d\d-\S+", "…", done.stderr), left


@pytest.mark.parametrize("case", _ODD)
def test_nobody_can_tell_it_from_the_interpreter(oci: Oci, front: str, script: str, case: str) -> None:
    steps, last = _ODD[case]
    by_front = _play(oci, steps, last)
    oci.program = script
    assert by_front == _play(oci, steps, last)


def test_hooks_are_the_interpreters(oci: Oci, tmp_path: Path) -> None:
    path = Path(oci.bundle) / "config.json"
    config = json.loads(path.read_text())
    told = tmp_path / "told"
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$0 $1" >>{told}\n')
    hook.chmod(0o755)
    config["hooks"] = {name: [{"path": str(hook), "args": [str(hook), name]}] for name in ("poststart", "poststop")}
    path.write_text(json.dumps(config))
    assert oci.quietly("create", "one") == 0
    assert oci.quietly("start", "one") == 0
    _settled(oci, "one")
    assert oci.quietly("delete", "one") == 0
    assert [line.split()[1] for line in told.read_text().splitlines()] == ["poststart", "poststop"]


def test_strangers_in_the_record_are_left_to_the_interpreter(oci: Oci) -> None:
    assert oci.quietly("create", "one") == 0
    assert oci.quietly("start", "one") == 0
    _settled(oci, "one")
    os.mkdir(f"{oci.state}/one/stranger")
    done = oci("delete", "one")
    assert done.returncode != 0
    assert "stranger" in done.stderr
    os.rmdir(f"{oci.state}/one/stranger")
    assert oci.quietly("delete", "--force", "one") == 0


def test_without_a_compiler_the_script_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mamushka-oci"
    program.write_text("#!python\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not startup.front(str(program))
    assert program.read_text() == "#!python\n"
