"""Layers stacked by the kernel, without a trace in the host's mount table."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mamushka.errors import Invalid, Unsupported
from mamushka.linux.process import CLONE_NEWUSER, unshare
from mamushka.storage import overlay, overlay_page
from tests import peers

pytestmark = [pytest.mark.root, pytest.mark.lab]


@pytest.fixture(autouse=True)
def mount_table():  # type: ignore[no-untyped-def]
    peers.need_root()
    before = Path("/proc/self/mountinfo").read_text()
    yield
    assert Path("/proc/self/mountinfo").read_text() == before


def stack(where: Path, count: int) -> tuple[list[str], str, str]:
    lowers = []
    for number in range(count):
        lower = where / f"layer-{number}"
        lower.mkdir()
        (lower / f"only-{number}").write_text(str(number))
        (lower / "all").write_text(str(number))
        lowers.append(str(lower))
    for name in ("upper", "work"):
        (where / name).mkdir()
    return lowers, str(where / "upper"), str(where / "work")


def read(fd: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY, dir_fd=fd)) as file:
        return file.read()


@pytest.mark.parametrize("count", [1, 2, 60, 200, 500])
@pytest.mark.parametrize("way", ["descriptors", "page"])
def test_a_stack_shows_the_uppermost_and_writes_into_the_top(tmp_path: Path, count: int, way: str) -> None:
    lowers, upper, work = stack(tmp_path, count)
    if way == "descriptors":
        mounted = overlay.mount(lowers, upper=upper, work=work)
    else:
        options = overlay._options(upper, work, volatile=False, userxattr=False)
        mounted = overlay_page.mount_by_page(lowers, options, 0)
    try:
        fd = os.open(".", os.O_RDONLY, dir_fd=mounted)
        assert len(os.listdir(fd)) == count + 1
        assert read(fd, "all") == "0" and read(fd, f"only-{count - 1}") == str(count - 1)
        os.unlink("all", dir_fd=fd)
        os.close(os.open("new", os.O_CREAT, dir_fd=fd))
        os.close(fd)
    finally:
        os.close(mounted)
    assert sorted(os.listdir(upper)) == ["all", "new"]


@pytest.mark.parametrize("count", [1, 2])
def test_without_a_top_it_is_read_only(tmp_path: Path, count: int) -> None:
    lowers, _, _ = stack(tmp_path, count)
    mounted = overlay.mount(lowers)
    with pytest.raises(OSError, match="Read-only"):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=mounted)
    assert read(mounted, "all") == "0"
    os.close(mounted)


def test_a_layer_may_stand_twice_in_an_image(tmp_path: Path) -> None:
    lowers, upper, work = stack(tmp_path, 3)
    mounted = overlay.mount([lowers[1], lowers[0], lowers[1], lowers[2]], upper=upper, work=work)
    assert read(mounted, "all") == "1"
    os.close(mounted)


@pytest.fixture
def id_map():  # type: ignore[no-untyped-def]
    """A user namespace in which 0 is 100000 outside."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        unshare(CLONE_NEWUSER)
        os.write(writing, b"x")
        signal.pause()
    assert os.read(reading, 1) == b"x"
    for kind in ("uid", "gid"):
        Path(f"/proc/{pid}/{kind}_map").write_text("0 100000 65536")
    fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    yield fd
    for end in (fd, reading, writing):
        os.close(end)


def test_owners_can_be_mapped_and_layers_keep_their_own(tmp_path: Path, id_map: int) -> None:
    lowers, upper, work = stack(tmp_path, 3)
    os.chown(f"{lowers[2]}/only-2", 7, 7)
    try:
        mounted = overlay.mount(lowers, upper=upper, work=work, id_map=id_map)
    except Unsupported as error:
        pytest.skip(str(error))
    fd = os.open(".", os.O_RDONLY, dir_fd=mounted)
    assert os.stat("only-2", dir_fd=fd).st_uid == 100007
    os.chmod("all", 0o600, dir_fd=fd)
    assert os.stat("all", dir_fd=fd).st_uid == os.stat(".", dir_fd=fd).st_uid == 100000
    os.close(fd)
    os.close(mounted)
    assert os.stat(f"{upper}/all").st_uid == 100000 and os.stat(f"{lowers[0]}/all").st_uid == 0
    single = overlay.mount(lowers[2:], id_map=id_map)
    assert os.stat("only-2", dir_fd=single).st_uid == 100007
    os.close(single)


def test_paths_longer_than_an_option_may_be(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(4):
        deep = deep / ("d" * 100)
        deep.mkdir()
    lowers, upper, work = stack(deep, 3)
    mounted = overlay.mount(lowers, upper=upper, work=work)
    assert read(mounted, "only-2") == "2"
    os.close(mounted)


def test_a_volatile_top_can_be_mounted_again_either_way(tmp_path: Path) -> None:
    lowers, upper, work = stack(tmp_path, 2)
    for volatile in (True, True, False, True):
        os.close(overlay.mount(lowers, upper=upper, work=work, volatile=volatile))


def test_what_the_kernel_refuses_is_an_error(tmp_path: Path) -> None:
    lowers, upper, work = stack(tmp_path, 2)
    with pytest.raises(FileNotFoundError):
        overlay.mount([*lowers, str(tmp_path / "none")], upper=upper, work=work)
    with pytest.raises(Unsupported, match="cannot stack the layers"):
        overlay.mount(lowers, upper=upper, work=upper)
    with pytest.raises(Invalid):
        overlay.mount([])
    with pytest.raises(Invalid):
        overlay.mount([f"{lowers[0]}/{number}" for number in range(501)])
    with pytest.raises(Invalid):
        overlay.mount(lowers, upper=upper)


def test_attributes_in_a_layer_are_not_believed(tmp_path: Path) -> None:
    lowers, upper, work = stack(tmp_path, 2)
    (tmp_path / "layer-1/secret").write_text("of the lower layer")
    (tmp_path / "layer-0/bait").mkdir()
    (tmp_path / "layer-1/hidden").mkdir()
    (tmp_path / "layer-1/hidden/inside").write_text("x")
    os.setxattr(tmp_path / "layer-0/bait", "trusted.overlay.redirect", b"/hidden")
    mounted = overlay.mount(lowers, upper=upper, work=work)
    fd = os.open(".", os.O_RDONLY, dir_fd=mounted)
    try:
        listed = os.listdir(os.open("bait", os.O_RDONLY, dir_fd=fd))
    except PermissionError:  # what the kernel answers where it refuses to follow
        listed = []
    os.close(fd)
    os.close(mounted)
    assert listed == []


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    lowers, upper, work = stack(tmp_path, 3)
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        overlay.mount(lowers, upper=upper, work=work)
        os.write(told, b"x")
        signal.pause()
    assert os.read(ready, 1) == b"x"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(told)
    os.close(overlay.mount(lowers, upper=upper, work=work))
