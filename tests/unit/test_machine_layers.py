"""A root of layers as disks: what is plugged in, in which order, and what the guest is told to do with it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mamushka.errors import Invalid, NotFound
from mamushka.machine import layers, shares
from mamushka.machine.agent import words
from mamushka.machine.agent.protocol import Fields
from mamushka.runtime import Bundle, Disks, Image
from mamushka.spec.runtime import parse

MIB2 = 2 << 20


class Recorder:
    """Stands for the board and for whoever opens disks."""

    def __init__(self) -> None:
        self.mapped: list[tuple[int, int]] = []
        self.disks: list[tuple[str, bool]] = []

        self.transports: dict[str, bool] = {}
        self.length = 0

    def window(self, length: int, files: list[tuple[int, int]], *, name: str) -> Any:
        self.length = length
        for fd, size in files:
            self.mapped.append((os.fstat(fd).st_ino, size))
            os.close(fd)
        return SimpleNamespace(length=files[0][1])

    def add(self, name: str, device: Any, *, late: bool = False) -> None:
        self.transports[name] = late
        device.close()

    def open(self, path: str, writable: bool) -> Any:
        from mamushka.storage.block import open_disk

        self.disks.append((path, writable))
        return open_disk(path, "raw", writable=writable)


def made(path: Path, size: int = MIB2) -> str:
    with open(path, "wb") as file:
        file.truncate(size)
    return str(path)


def told(steps: list[bytes]) -> list[tuple[int, str, str, str, str]]:
    """(operation, target, type, source, data) of each step."""
    found = []
    for raw in steps:
        (step,) = Fields(raw).groups(words.K_STEP)
        data = step.text(words.K_DATA)
        found.append(
            (
                step.number(words.K_OP),
                step.text(words.K_TARGET),
                step.text(words.K_TYPE),
                step.text(words.K_SOURCE),
                data,
            )
        )
    return found


def test_devices_are_named_in_the_order_in_which_they_are_plugged_in(tmp_path: Path) -> None:
    kinds = (True, False, True)
    images = tuple(Image(made(tmp_path / f"{number}"), kind) for number, kind in enumerate(kinds))
    top = made(tmp_path / "top")
    board = Recorder()
    found, steps = map(told, layers.plug(board, Disks(images, top), board.open))  # type: ignore[arg-type]
    assert [inode for inode, _ in board.mapped] == [os.stat(images[place].path).st_ino for place in (0, 2)]
    assert board.disks == [(top, True), (images[1].path, False)]
    assert board.transports == {"layers": False, "disk0": False, "disk1": True} and board.length == 32 << 20
    mounts = [(target, type, source, data) for op, target, type, source, data in steps if op == words.MOUNT]
    assert mounts[:4] == [
        ("/run/l/0", "erofs", "/dev/pmem0p1", "dax=always"),
        ("/run/l/1", "erofs", "/dev/vdb", ""),
        ("/run/l/2", "erofs", "/dev/pmem0p2", "dax=always"),
        ("/run/top", "ext4", "/dev/vda", "discard,noinit_itable"),
    ]
    assert mounts[4][0] == layers.ROOT and mounts[4][3].startswith("lowerdir=/run/l/0:/run/l/1:/run/l/2,upperdir=")
    assert "redirect_dir=nofollow" in mounts[4][3] and "metacopy=off" in mounts[4][3]
    assert [(op, target) for op, target, *_ in found] == [(words.WAIT, "/dev/pmem0"), (words.WAIT, "/dev/vda")]
    assert [target for op, target, *_ in steps if op == words.PARTITION] == ["/dev/pmem0"] * 2
    assert [data for op, *_, data in steps if op == words.WRITE_FILE] == ["LNRO0005:02"]


@pytest.mark.parametrize(
    ("lengths", "window"), [((1,), 32), ((16, 16), 32), ((16, 17), 48), ((25, 24), 64), ((96,), 96), ((97,), 128)]
)
def test_windows_are_of_few_sizes(tmp_path: Path, lengths: tuple[int, ...], window: int) -> None:
    images = tuple(Image(made(tmp_path / f"{at}", size << 20), True) for at, size in enumerate(lengths))
    top = made(tmp_path / "top")
    assert layers.kind(Disks(images, top), shared=False) == (0, (f"window {window << 20}", f"top {MIB2}", "places 0"))
    assert layers.kind(Disks(images, top), shared=True)[0] == 2
    assert (
        layers.kind(Disks(tuple(Image(image.path, False) for image in images), top), shared=False)[1][0] == "window 0"
    )


def test_as_many_layers_as_a_machine_takes_fit_into_one_page_of_options(tmp_path: Path) -> None:
    image = Image(made(tmp_path / "one"), True)
    board = Recorder()
    disks = Disks((image,) * 96, made(tmp_path / "top"))
    steps = told(layers.plug(board, disks, board.open)[1])  # type: ignore[arg-type]
    assert len(steps[-1][4]) < 2048


@pytest.mark.parametrize("size", [0, 4096, MIB2 + 4096])
def test_what_is_no_image_is_not_mapped(tmp_path: Path, size: int) -> None:
    image = Image(made(tmp_path / "one", size), True)
    with pytest.raises(Invalid, match="no layer's image"):
        layers.plug(Recorder(), Disks((image,), ""), Recorder().open)  # type: ignore[arg-type]


def test_a_link_and_nothing_are_not_mapped(tmp_path: Path) -> None:
    os.symlink(made(tmp_path / "one"), tmp_path / "link")
    with pytest.raises(OSError):
        layers.plug(Recorder(), Disks((Image(str(tmp_path / "link"), True),), ""), Recorder().open)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        layers.plug(Recorder(), Disks((Image(str(tmp_path / "no"), True),), ""), Recorder().open)  # type: ignore[arg-type]


def bundle(path: Path, *mounts: tuple[str, str], disks: bool = True) -> Bundle:
    binds = [{"destination": to, "source": source, "type": "bind", "options": ["rbind"]} for to, source in mounts]
    config = parse(f'{{"ociVersion": "1.0.0", "mounts": {str(binds).replace(chr(39), chr(34))}}}'.encode())
    return Bundle(str(path), config, Disks((Image("x", True),), "y") if disks else Disks())


def test_only_small_files_of_the_bundles_own_are_told_and_the_rest_is_shared(tmp_path: Path) -> None:
    own = tmp_path / "bundle"
    own.mkdir()
    (own / "hosts").write_text("names")
    (own / "large").write_bytes(bytes((64 << 10) + 1))
    (own / "directory").mkdir()
    (own / "link").symlink_to("/etc/shadow")
    (tmp_path / "another").write_text("live")
    hosts = ("/etc/hosts", f"{own}/hosts")
    only = bundle(own, hosts)
    assert shares.copied(only) == {"/etc/hosts": f"{own}/hosts"} and not shares.shared(only)
    steps, sources = layers.files(only)
    assert told(steps) == [(words.WRITE_FILE, "/run/files/0", "", "", "names")]
    assert sources == {"/etc/hosts": "/run/files/0"}
    for source in (own / "large", own / "directory", own / "link", tmp_path / "another"):
        both = bundle(own, hosts, ("/x", str(source)))
        assert list(shares.copied(both)) == ["/etc/hosts"] and shares.shared(both)
    assert shares.shared(bundle(own, hosts, disks=False)) and not shares.copied(bundle(own, hosts, disks=False))


def test_no_word_of_a_bundle_names_a_disk(tmp_path: Path) -> None:
    """Whoever writes config.json chooses no file of the host's for a guest."""
    text = b'{"ociVersion": "1.0.0", "disks": {"images": [{"path": "/etc/shadow", "mapped": true}]}, "annotations": '
    given = Bundle(str(tmp_path), parse(text + b'{"com.mamushka.machine.root": "layers"}}'))
    assert given.disks == Disks()
