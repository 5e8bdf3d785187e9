"""Classes of service, on a directory that behaves as resctrl does: few hosts have the processor for the real one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.container import resctrl
from mamushka.errors import Conflict, Invalid, MamushkaError, NotFound, Unsupported
from mamushka.spec.runtime import IntelRdt

from .conftest import Ground

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The kernel's part: a new directory has its files, and goes with them."""
    root = tmp_path / "resctrl"

    def make(path: str) -> None:
        os.mkdir(path)
        below = Path(path)
        for name in ("tasks", "schemata"):
            (below / name).write_text("")
        if below.parent.name != "mon_groups":
            (below / "mon_groups").mkdir()

    make(str(root))
    (root / "schemata").write_text("    L3:0=fffff;1=fffff\n    MB:0=100;1=100\n")
    monkeypatch.setattr(resctrl, "mounted", lambda: str(root))
    monkeypatch.setattr(resctrl, "make", make)
    monkeypatch.setattr(resctrl, "remove", lambda path: shutil.rmtree(path, ignore_errors=True))
    yield root


def groups(tree: Path) -> list[str]:
    return sorted(path.name for path in tree.iterdir() if path.is_dir() and path.name != "mon_groups")


def test_without_resctrl_it_is_refused(ground: Ground) -> None:
    if resctrl.mounted():
        pytest.skip("this host has resctrl mounted")
    with pytest.raises(Unsupported, match="no resctrl file system is mounted"):
        ground.run(ground.config("true", linux={"intel_rdt": IntelRdt()}))
    assert not os.path.exists(ground.state)


def test_a_class_of_its_own_goes_with_the_container(ground: Ground, tree: Path) -> None:
    asked = IntelRdt("", ("L3:0=f;1=f0",), enable_monitoring=True)
    ground.create(ground.config("sleep 60", linux={"intel_rdt": asked}))
    own = tree / ground.name
    assert (own / "schemata").read_text() == "L3:0=f;1=f0\n"
    assert (own / "tasks").read_text() == "0", "the container's process itself"
    assert (own / "mon_groups" / ground.name / "tasks").read_text() == "0"
    ground.runtime.start(ground.name)
    (own / "tasks").write_text("")
    assert ground.exec("true")[0] == 0 and (own / "tasks").read_text() == "0", "exec comes into it, too"
    ground.runtime.delete(ground.name, force=True)
    assert groups(tree) == []


def test_a_named_class_is_made_once_and_stays(ground: Ground, tree: Path) -> None:
    asked = IntelRdt("shared", ("L3:0=3",), "L3:0=f;1=f\nMB:0=9", "MB:0=20;1=70", enable_monitoring=True)
    assert ground.run(ground.config("true", linux={"intel_rdt": asked}))[0] == 0
    assert groups(tree) == ["shared"]
    assert os.listdir(tree / "shared" / "mon_groups") == [], "what is the container's alone has gone"


def test_the_order_of_schemata() -> None:
    """L3 without the MB lines in it, then MB, then the free ones."""
    asked = IntelRdt("", ("L2:0=f", "MB:0=50"), "L3:0=f\nMB:0=9", "MB:0=20")
    assert resctrl.schemata(asked) == ["L3:0=f", "MB:0=20", "L2:0=f", "MB:0=50"]
    assert resctrl.schemata(IntelRdt()) == []


def test_a_class_that_is_there_is_joined_as_it_is(ground: Ground, tree: Path) -> None:
    resctrl.make(str(tree / "there"))
    (tree / "there" / "schemata").write_text("    L3:0=00ff;1=0f\n    MB:0=100\n")
    for asked in (IntelRdt("there"), IntelRdt("there", l3_cache_schema="L3:1=F")):
        assert ground.run(ground.config("true", linux={"intel_rdt": asked}))[0] == 0
        assert (tree / "there" / "tasks").read_text() == "0"
    with pytest.raises(Conflict, match="has not the schema"):
        ground.run(ground.config("true", linux={"intel_rdt": IntelRdt("there", mem_bw_schema="MB:0=10")}))
    assert (tree / "there" / "schemata").read_text() == "    L3:0=00ff;1=0f\n    MB:0=100\n"


def test_the_root_class(ground: Ground, tree: Path) -> None:
    assert ground.run(ground.config("true", linux={"intel_rdt": IntelRdt("/", enable_monitoring=True)}))[0] == 0
    assert (tree / "tasks").read_text() == "0" and os.listdir(tree / "mon_groups") == []


def test_a_failure_leaves_no_class(ground: Ground, tree: Path) -> None:
    for asked in (IntelRdt(enable_monitoring=True), IntelRdt("new", ("L3:0=f",))):
        with pytest.raises(MamushkaError, match="no such file"):
            ground.run(ground.config("/no/such/program", "x", linux={"intel_rdt": asked}))
        assert groups(tree) == [] and os.listdir(ground.state) == []


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        (IntelRdt("a/b"), Invalid, "'a/b'"),
        (IntelRdt(".."), Invalid, "'..'"),
        (IntelRdt("info"), Invalid, "'info'"),
        (IntelRdt("missing"), NotFound, "no class of service missing"),
        (IntelRdt(mem_bw_schema="L3:0=1"), Invalid, "starts with MB:"),
    ],
)
def test_wrong_classes_are_named(
    ground: Ground, tree: Path, asked: IntelRdt, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ground.run(ground.config("true", linux={"intel_rdt": asked}))
    assert not os.path.exists(ground.state)
