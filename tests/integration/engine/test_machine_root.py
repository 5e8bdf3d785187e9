"""What a workload's machine gets of its image: files that others can read, made once, gone with the image."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mamushka.engine import machine_root
from mamushka.engine import rootfs as engine_root
from mamushka.engine.engine import Engine
from mamushka.engine.settings import Attachment, Mount, Settings
from mamushka.engine.workload import Workload
from mamushka.errors import Invalid, Unsupported
from mamushka.runtime import Disks
from mamushka.storage import top
from mamushka.storage.placement import BLOCK, PMEM
from mamushka.values import replace
from tests import peers

pytestmark = [pytest.mark.root, pytest.mark.peer]
ALONE = (Attachment("none"),)


def test_the_layers_of_an_image(engine: Engine, layered_reference: str) -> None:
    list(engine.images.pull(layered_reference))
    before = engine.disk_usage()["layers_size"]
    one = engine.inspect(engine.create(Settings(image=layered_reference, networks=ALONE)))
    layers = machine_root.layers(engine, one, 256 << 20)
    assert len(layers) == 5 and {layer.kind for layer in layers} == {PMEM}
    for layer in layers:
        assert os.path.getsize(layer.path) == layer.length and layer.length % (2 << 20) == 0
        peers.run("fsck.erofs", layer.path)
    assert engine.layers.path(one.layers[-1]).rpartition("/")[0] == layers[0].path.rpartition("/")[0], "uppermost first"
    assert machine_root.layers(engine, one, 1 << 18)[0].kind == BLOCK
    two = engine.inspect(engine.create(Settings(image=layered_reference, networks=ALONE)))
    inodes = [os.stat(layer.path).st_ino for layer in layers]
    assert [os.stat(layer.path).st_ino for layer in machine_root.layers(engine, two, 256 << 20)] == inodes
    assert engine.disk_usage()["layers_size"] > before  # type: ignore[operator]
    for workload in (one, two):
        engine.remove(workload.id)
    engine.images.remove(layered_reference)
    assert not any(os.path.exists(layer.path) for layer in layers)


def test_a_directory_as_it_is_when_the_machine_starts(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "first").write_text("1")
    workload = engine.inspect(engine.create(Settings(image=str(tmp_path), rootfs=True, networks=ALONE, command=("x",))))
    (layer,) = machine_root.layers(engine, workload, 256 << 20)
    (tmp_path / "second").write_text("2")
    (again,) = machine_root.layers(engine, workload, 256 << 20)
    assert again == layer
    listed = subprocess.run(["dump.erofs", "--path=/second", layer.path], capture_output=True, check=True).stdout
    assert b"second" in listed
    home = os.path.dirname(layer.path)
    engine.remove(workload.id)
    assert not os.path.exists(home)


def test_the_image_host_is_refused_with_the_reason(engine: Engine) -> None:
    workload = engine.inspect(engine.create(Settings(image="host", command=("true",), networks=ALONE)))
    with pytest.raises(Unsupported, match="the image host cannot run in a machine"):
        machine_root.layers(engine, workload, 256 << 20)


def test_the_top_is_a_sparse_disk_that_is_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = engine.inspect(engine.create(Settings(image="host", command=("true",), networks=ALONE)))
    assert machine_root.top(engine, workload, 0) == ""
    path = machine_root.top(engine, workload)
    found = os.stat(path)
    assert found.st_size == top.SIZE and found.st_blocks * 512 < 1 << 20
    peers.run("e2fsck", "-fn", path)
    assert machine_root.top(engine, workload, 1 << 30) == path and os.stat(path).st_ino == found.st_ino
    assert not [name for name in os.listdir(os.path.dirname(path)) if name.startswith("top.ext4.")]
    monkeypatch.setattr(top, "_PATH", ("/nowhere",))
    assert machine_root.top(engine, workload) == path
    with pytest.raises(Unsupported, match=r"there is no mkfs\.ext4"):
        top.make(f"{path}-2")


@pytest.mark.parametrize("size", [1, top.SIZE_MIN - 1, top.SIZE_MAX + 1])
def test_a_size_that_no_disk_has(tmp_path: Path, size: int) -> None:
    with pytest.raises(Invalid, match="64 MiB to 16 TiB"):
        top.make(str(tmp_path / "disk"), size)


@pytest.mark.parametrize("size", [top.SIZE_MIN, 1 << 30, top.SIZE_MAX])
def test_sizes_from_end_to_end(tmp_path: Path, size: int) -> None:
    top.make(str(tmp_path / "disk"), size)
    peers.run("dumpe2fs", "-h", str(tmp_path / "disk"))
    assert os.listdir(tmp_path) == ["disk"]


def test_a_program_that_fails_leaves_nothing_and_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mkfs.ext4"
    program.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(top, "_PATH", (str(tmp_path),))
    with pytest.raises(Unsupported, match="no such luck"):
        top.make(str(tmp_path / "disk"))
    assert os.listdir(tmp_path) == ["mkfs.ext4"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kernel that is taken at its owner's word, and a configuration of the test's own."""
    (tmp_path / "vmlinuz").write_bytes(bytes(4096))
    monkeypatch.setenv("MAMUSHKA_KERNEL", str(tmp_path / "vmlinuz"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "mamushka").mkdir()
    return tmp_path


def of_machine(engine: Engine, image: str, root: str = "") -> Workload:
    """A workload that says it is a machine, whatever this host can run."""
    settings = Settings(
        image=image,
        networks=ALONE,
        command=("true",),
        annotations={machine_root.ANNOTATION: root} if root else {},
    )
    return replace(engine.inspect(engine.create(settings)), runtime="vm")


def test_who_asks_for_it_gets_its_layers_as_disks(engine: Engine, busybox_reference: str, kernel: Path) -> None:
    list(engine.images.pull(busybox_reference))
    assert machine_root.disks(engine, of_machine(engine, busybox_reference, root="shared")) == Disks()
    one = of_machine(engine, busybox_reference, root="layers")
    found = machine_root.disks(engine, one)
    assert [image.mapped for image in found.images] == [True] and os.path.exists(found.top)
    assert found.mode == os.stat(engine.layers.path(one.layers[-1])).st_mode & 0o7777
    for asked in (lambda: engine_root.open_root(engine, one), lambda: machine_root.refuse(engine, one)):
        with pytest.raises(Unsupported, match="its machine's own disk"):
            asked()
    # what its first start gave it stays, whatever is asked later
    again = replace(one, settings=replace(one.settings, annotations={}))
    assert machine_root.disks(engine, again) == found


def test_the_host_may_want_it_for_all(engine: Engine, busybox_reference: str, kernel: Path) -> None:
    list(engine.images.pull(busybox_reference))
    (kernel / "mamushka/machines.json").write_text('{"root": "layers"}')
    assert machine_root.disks(engine, of_machine(engine, busybox_reference)).images
    assert machine_root.disks(engine, of_machine(engine, busybox_reference, root="shared")) == Disks()
    (kernel / "mamushka/machines.json").write_text('{"root": "other"}')
    with pytest.raises(Invalid, match="not 'other'"):
        machine_root.disks(engine, of_machine(engine, busybox_reference))


def test_what_was_written_into_a_shared_root_is_not_left_behind(
    engine: Engine, busybox_reference: str, kernel: Path
) -> None:
    list(engine.images.pull(busybox_reference))
    one = of_machine(engine, busybox_reference, root="layers")
    Path(engine_root.snapshot(engine, one).upper, "file").write_text("copied")
    with pytest.raises(Unsupported, match="written into its shared root"):
        machine_root.disks(engine, one)
    assert machine_root.disks(engine, replace(one, settings=replace(one.settings, annotations={}))) == Disks()
    (kernel / "mamushka/machines.json").write_text('{"root": "layers"}')
    assert machine_root.disks(engine, replace(one, settings=replace(one.settings, annotations={}))) == Disks()


def test_who_says_nothing_gets_layers_unless_something_of_the_hosts_is_shared_anyway(
    engine: Engine, busybox_reference: str, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(engine.images.pull(busybox_reference))
    plain = of_machine(engine, busybox_reference)
    mounts = (Mount("bind", "/x", "/tmp"),)
    bound = of_machine(engine, busybox_reference)
    bound = replace(bound, settings=replace(bound.settings, mounts=mounts))
    assert machine_root.disks(engine, bound) == Disks()
    assert machine_root.disks(engine, plain).images
    # Without the program that serves directories the one is as before, and the other is told why it is needed.
    monkeypatch.setattr("mamushka.engine.machines.files_obstacle", lambda: "there is no virtiofsd")
    assert machine_root.disks(engine, of_machine(engine, busybox_reference)).images
    for one in (bound, of_machine(engine, busybox_reference, root="shared")):
        with pytest.raises(Unsupported, match="no virtiofsd; this machine needs it because"):
            machine_root.disks(engine, one)
