"""What a machine says its disk has, laid out for comparison: nothing leads out, and there is an end to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mamushka.engine import machine_files
from mamushka.errors import GuestFault
from mamushka.machine.agent.tree import Entry


def entry(name: str, mode: int, link: str = "", size: int = 0) -> Entry:
    return Entry(name.encode(), mode, os.getuid(), os.getgid(), size, 10**18, 0, link.encode(), (), ())


def directory(name: str) -> Entry:
    return entry(name, stat.S_IFDIR | 0o750)


def test_a_tree_has_names_and_sizes(tmp_path: Path) -> None:
    tree = [directory("a"), entry("a/big", stat.S_IFREG | 0o604, size=1 << 40), entry("l", stat.S_IFLNK, "/etc")]
    machine_files._show(iter([entry("", stat.S_IFDIR), b"content", *tree]), str(tmp_path))
    found = os.stat(tmp_path / "a/big")
    assert (found.st_size, found.st_blocks, stat.S_IMODE(found.st_mode), found.st_mtime) == (1 << 40, 0, 0o604, 1e9)
    assert os.stat(tmp_path / "a").st_mtime == 1e9 and os.readlink(tmp_path / "l") == "/etc"


@pytest.mark.parametrize(
    "tree",
    [
        [entry("out", stat.S_IFLNK, "/tmp"), entry("out/x", stat.S_IFREG)],
        [entry("a", stat.S_IFREG), entry("a/x", stat.S_IFREG)],
        [directory("a"), directory("a")],
        [entry("nowhere/x", stat.S_IFREG)],
        [entry("n" * 256, stat.S_IFREG)],
        [directory("x"), entry("x/../../y", stat.S_IFREG)],
    ],
)
def test_no_tree_leads_out(tmp_path: Path, tree: list[Entry]) -> None:
    (tmp_path / "top").mkdir()
    with pytest.raises(GuestFault, match="cannot be"):
        machine_files._show(iter(tree), str(tmp_path / "top"))
    assert os.listdir(tmp_path) == ["top"]


def test_there_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_files, "_ENTRIES_MAX", 3)
    with pytest.raises(GuestFault, match="more than 3"):
        machine_files._show((entry(f"{number}", stat.S_IFREG) for number in range(1 << 40)), str(tmp_path))
    assert len(os.listdir(tmp_path)) == 3
