"""Machines on the shelf: kept, found, used up, thrown away, and never half of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mamushka.linux import lock
from mamushka.machine import state, warm
from mamushka.machine.memory import PAGE, Memory, Region, shared_region
from mamushka.machine.state import Saved, Stretch
from mamushka.machine.warm import COUNT_MAX, Shelf, Warm, key_of, stamp

SIZE = 4 << 20


def saved(**changes: object) -> Saved:
    stretches = (Stretch(0, SIZE // 2, 0, "ram"), Stretch(SIZE, SIZE // 2, SIZE // 2, "ram"))
    return Saved("kvm", "x86_64", ({"regs": b"\1"},), {}, {}, stretches, labels={"token": "00ff"}, **changes)  # type: ignore[arg-type]


def memory() -> Memory:
    """In two stretches of one file, with something at both ends and nothing between."""
    made = Memory()
    fd = os.memfd_create("ram")
    os.ftruncate(fd, SIZE)
    for start, offset in ((0, 0), (SIZE, SIZE // 2)):
        made.add(Region(start, SIZE // 2, fd=os.dup(fd), offset=offset, shared=True, name="ram"))
    os.close(fd)
    made.write(5 * PAGE, b"low")
    made.write(SIZE + SIZE // 2 - PAGE, b"high")
    return made


def keep(shelf: Shelf, key: str) -> None:
    blank, ram = shelf.begin(key), memory()
    assert blank is not None
    assert blank.fill(saved(), ram) == 2 * PAGE
    blank.close()
    ram.close()


def taken(shelf: Shelf, key: str) -> Warm:
    found = shelf.take(key)
    assert found is not None
    return found


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_kept_is_found_and_each_has_its_own_pages(tmp_path: Path, shared: bool) -> None:
    shelf = Shelf(str(tmp_path / "warm"))
    assert shelf.take("k") is None
    keep(shelf, "k")
    found = taken(shelf, "k")
    assert found.saved == saved()
    first, second = found.memory(shared=shared), found.memory(shared=shared)
    found.close()
    for each in (first, second):
        assert bytes(each.read(5 * PAGE, 4)) == b"low\0"
        assert bytes(each.read(SIZE + SIZE // 2 - PAGE, 4)) == b"high"
        assert [region.shared for region in each] == [shared, shared]
    first.write(5 * PAGE, b"own")
    assert bytes(second.read(5 * PAGE, 3)) == b"low"
    first.close()
    second.close()
    assert os.stat(tmp_path / "warm").st_mode & 0o777 == 0o700
    assert os.stat(tmp_path / "warm" / "k.memory").st_mode & 0o777 == 0o600
    assert os.stat(tmp_path / "warm" / "k.memory").st_blocks * 512 <= 8 * PAGE


def test_a_copy_and_a_look_leave_holes_as_they_are(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    keep(shelf, "k")
    found = taken(shelf, "k")
    copy = found.memory(shared=True)
    found.close()
    assert os.fstat(next(iter(copy)).fd).st_blocks * 512 <= 16 * PAGE
    target = os.memfd_create("target")
    assert state.write_memory(copy, target) == 2 * PAGE
    assert os.fstat(next(iter(copy)).fd).st_blocks * 512 <= 16 * PAGE
    os.close(target)
    copy.close()


def test_one_that_is_being_made_is_neither_found_nor_made_twice(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    blank = shelf.begin("k")
    assert blank is not None
    assert shelf.take("k") is None
    assert shelf.begin("k") is None
    assert shelf.prune() == ([], 0)
    blank.close()  # killed before it was filled
    assert shelf.take("k") is None
    keep(shelf, "k")
    taken(shelf, "k").close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 1}', b"\0" * 100])
def test_what_is_damaged_is_none_and_made_anew(tmp_path: Path, content: bytes) -> None:
    shelf = Shelf(str(tmp_path))
    keep(shelf, "k")
    (tmp_path / "k.state").write_bytes(content)
    assert shelf.take("k") is None
    keep(shelf, "k")
    taken(shelf, "k").close()
    (tmp_path / "k.memory").unlink()
    assert shelf.take("k") is None


def test_whoever_goes_on_from_one_keeps_it_when_it_is_thrown_away_or_made_anew(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    keep(shelf, "k")
    found = taken(shelf, "k")
    running = found.memory(shared=False)
    found.close()
    keep(shelf, "k")
    assert shelf.prune()[0] == ["k"]
    assert list(tmp_path.iterdir()) == []
    assert bytes(running.read(5 * PAGE, 3)) == b"low"
    running.close()


def test_a_full_disk_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, ram = Shelf(str(tmp_path)), memory()
    blank = shelf.begin("k")
    assert blank is not None

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            blank.fill(saved(), ram)
    blank.close()
    ram.close()
    assert shelf.take("k") is None
    assert os.stat(tmp_path / "k.memory").st_size == 0


def test_where_nothing_can_be_kept_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shelf = Shelf(str(tmp_path / "file" / "warm"))
    assert shelf.take("k") is None
    assert shelf.begin("k") is None


def test_those_that_were_used_last_are_kept(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    for number in range(COUNT_MAX):
        keep(shelf, f"k{number}")
        os.utime(tmp_path / f"k{number}.state", (number, number))
        os.utime(tmp_path / f"k{number}.memory", (number, number))
    taken(shelf, "k0").close()  # used now
    keep(shelf, "further")
    assert sorted(path.stem for path in tmp_path.glob("*.state")) == sorted(
        ["k0", "further", *(f"k{number}" for number in range(2, COUNT_MAX))]
    )
    assert len(list(tmp_path.iterdir())) == 2 * COUNT_MAX


def test_the_lock_is_gone_with_its_holder(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    blank = shelf.begin("k")
    assert blank is not None
    other = os.open(tmp_path / "k.state", os.O_RDWR)
    assert lock.held(other)
    blank.close()
    assert not lock.held(other)
    os.close(other)


def test_keys_follow_from_all_that_makes_a_machine(tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(b"one")
    first = key_of((stamp(str(file)), "line", "1"))
    assert first == key_of((stamp(str(file)), "line", "1"))
    assert first != key_of((stamp(str(file)), "line", "2"))
    assert key_of(("ab", "c")) != key_of(("a", "bc"))
    file.write_bytes(b"another")
    assert first != key_of((stamp(str(file)), "line", "1"))


def test_files_in_its_memory_must_be_the_same() -> None:
    parsed = state.load(state.dump(saved(files=(Stretch(1 << 38, PAGE, 0, "layer"),))))
    assert parsed.files == (Stretch(1 << 38, PAGE, 0, "layer"),)


def test_regions_that_are_not_shared_are_looked_through() -> None:
    ram = Memory((shared_region(0, SIZE), Region(SIZE, SIZE)))
    ram.write(SIZE + PAGE, b"private")
    target = os.memfd_create("target")
    assert state.write_memory(ram, target) == PAGE
    assert os.pread(target, 7, SIZE + PAGE) == b"private"
    os.close(target)
    ram.close()


def test_after_a_restart_of_the_host_nothing_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory may not have reached the disk, whatever the files' sizes are."""
    before = key_of(("line",))
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(warm, "BOOT_ID", str(tmp_path / "boot_id"))
    assert key_of(("line",)) != before
