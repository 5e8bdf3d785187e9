"""EROFS images held against others: erofs-utils reads them, the kernel mounts them, the trees are equal."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.errors import NotFound
from mamushka.storage import erofs, overlay
from mamushka.storage.layers import LayerStore
from tests import peers
from tests.images import Layout
from tests.integration.storage import trees

pytestmark = [pytest.mark.root, pytest.mark.lab]


@pytest.fixture(autouse=True)
def root() -> None:
    peers.need_root()
    peers.need("fsck.erofs")


@contextlib.contextmanager
def mounted(image: str | Path) -> Iterator[str]:
    """The image, mounted by the kernel."""
    subprocess.run(["modprobe", "-qa", "erofs", "loop"], check=False)
    with tempfile.TemporaryDirectory() as where:
        done = subprocess.run(
            ["mount", "-t", "erofs", "-o", "ro,loop", str(image), where], capture_output=True, check=False
        )
        if b"unknown filesystem" in done.stderr:
            pytest.skip("the kernel has no EROFS")
        assert done.returncode == 0, done.stderr
        try:
            yield where
        finally:
            subprocess.run(["umount", where], check=True)


def make(source: Path, image: Path) -> erofs.Image:
    top = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    out = os.open(image, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        made = erofs.write(top, out, bytes(16))
    finally:
        os.close(top)
        os.close(out)
    peers.run("fsck.erofs", str(image))
    return made


def opaque(where: str | Path) -> dict[str, bytes]:
    """Directories that hide what lies below them, which trees.look leaves out."""
    found = {}
    for directory, _, _ in os.walk(where):
        with contextlib.suppress(OSError):
            found[os.path.relpath(directory, where)] = os.getxattr(directory, "trusted.overlay.opaque")
    return found


def compare(source: Path, image: Path) -> None:
    with mounted(image) as where:
        assert trees.look(where) == trees.look(source)
        assert opaque(where) == opaque(source)


def access_list(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL, as include/uapi/linux/posix_acl_xattr.h has it, with the mask and what others may."""
    whole = [*entries, (0x10, 7, -1), (0x20, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in whole)


def everything(where: Path) -> None:
    """A tree with all that the format knows, and sizes around each of its limits."""
    where.mkdir()
    for size in (0, 1, 2047, 2048, 2049, 4031, 4032, 4095, 4096, 4097, 65535, 65536, 65537, 3_000_000):
        (where / f"size-{size}").write_bytes(os.urandom(size))
    for number in range(400):
        (where / "many" / f"{number:0200d}").mkdir(parents=True)
    for name in (b"-", b"!", b".hidden", b"..dots", b"\xff\xfe", b"\x01", b"n" * 255):
        (where / os.fsdecode(name)).touch()
    for length in (1, 100, 2000, 4032, 4033, 4095):
        (where / f"link-{length}").symlink_to(("l" * 99 + "/") * (length // 100) + "l" * (length % 100))
    os.link(where / "size-4097", where / "many/again")
    os.link(where / "size-4097", where / "zz")
    os.link(where / "link-1", where / "link-again")
    for number, kind in enumerate((0o020666, 0o060660, 0o010644, 0o140755)):
        os.mknod(where / f"node-{number}", kind, os.makedev(259, 1_000_000) if number < 2 else 0)
    os.mknod(where / "whiteout", 0o020000, 0)
    (where / "opaque").mkdir()
    os.setxattr(where / "opaque", "trusted.overlay.opaque", b"y")
    for number in range(3):
        os.setxattr(where / f"many/{number:0200d}", "user.shared", b"by several" * 20)
        os.setxattr(where / f"many/{number:0200d}", "user.own", b"%d" % number)
    os.setxattr(where / "size-2048", "user.large", b"x" * 3000)
    os.setxattr(where / "size-1", "trusted.empty", b"")
    os.setxattr(where / "link-100", "trusted.link", b"on a link", follow_symlinks=False)
    os.setxattr(where / "size-4096", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    for kind in ("access", "default"):
        os.setxattr(where / "opaque", f"system.posix_acl_{kind}", access_list((1, 7, -1), (2, 7, 1000), (4, 5, -1)))
    os.chown(where / "size-1", 4_000_000_000, 70_000)
    os.chmod(where / "size-2049", 0o6755)
    os.chmod(where, 0o1777)
    os.utime(where / "size-4096", ns=(0, -1_500_000_001))
    os.utime(where / "size-4097", ns=(0, 5_000_000_000_123_456_789))
    with open(where / "sparse", "wb") as file:
        for offset in (0, 1_000_000, 50_000_000, 99_999_999):
            os.pwrite(file.fileno(), b"island", offset)
        os.ftruncate(file.fileno(), 123_456_789)
    with open(where / "hole", "wb") as file:
        file.truncate(1 << 40)


def test_the_kernel_shows_all_that_the_tree_has(tmp_path: Path) -> None:
    everything(tmp_path / "tree")
    (tmp_path / "tree/hole").unlink()  # nobody wants to read a TiB
    made = make(tmp_path / "tree", tmp_path / "image")
    compare(tmp_path / "tree", tmp_path / "image")
    assert made.size < 10_000_000, "holes take no place"
    assert (tmp_path / "image").stat().st_size == made.length and made.length % (2 << 20) == 0


def test_huge_files_begin_where_a_guest_maps_them_whole(tmp_path: Path) -> None:
    everything(tmp_path / "tree")
    content = os.urandom(17 << 20)
    (tmp_path / "tree/huge").write_bytes(content)
    made = make(tmp_path / "tree", tmp_path / "image")
    raw = (tmp_path / "image").read_bytes()[: made.size]
    assert raw.find(content) % (2 << 20) == 0
    with mounted(tmp_path / "image") as where:
        assert os.stat(f"{where}/hole").st_size == 1 << 40
        assert Path(where, "huge").read_bytes() == content


def test_erofs_utils_extracts_the_same(tmp_path: Path) -> None:
    everything(tmp_path / "tree")
    (tmp_path / "tree/hole").unlink()
    make(tmp_path / "tree", tmp_path / "image")
    peers.run("fsck.erofs", f"--extract={tmp_path / 'out'}", "--preserve", str(tmp_path / "image"))

    def seen(where: Path) -> dict[str, tuple[object, ...]]:
        """What fsck.erofs 1.5 puts there: neither attributes, nor second names, nor setuid, and no holes aright."""
        rows = trees.look(where).items()
        return {path: (row[0][-4:], row[1], row[-1] * (path != "sparse")) for path, row in rows if "2049" not in path}  # type: ignore[index,operator]

    assert seen(tmp_path / "out") == seen(tmp_path / "tree")


def test_equal_trees_have_equal_images(tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        where = tmp_path / str(number)
        where.mkdir()
        for name in "badc" if number else "abcd":
            (where / name).write_bytes(name.encode() * 3000)
            os.setxattr(where / name, "user.z", b"1")
            os.setxattr(where / name, "user.a", b"2")
            os.utime(where / name, (7, 7))
        os.utime(where, (7, 7))
        make(where, tmp_path / "image")
        digests.append(hashlib.sha256((tmp_path / "image").read_bytes()).digest())
    assert digests[0] == digests[1]


names = st.binary(min_size=1, max_size=255).map(lambda raw: raw.translate(bytes.maketrans(b"/\0", b"_+"))).filter(
    lambda raw: raw not in (b".", b"..")
)  # fmt: skip
contents = st.one_of(st.binary(max_size=64), st.integers(0, 20_000).map(lambda size: b"\xa5" * size))
attributes = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "trusted.c", "security.d"]), st.binary(max_size=900), max_size=4
)
nodes = st.tuples(st.sampled_from(["file", "directory", "link", "fifo", "whiteout", "sparse"]), contents, attributes)
layouts = st.lists(st.tuples(st.integers(0, 10), names, nodes), max_size=60)


@settings(max_examples=25)
@given(layouts)
def test_any_tree(layout: list[tuple[int, bytes, tuple[str, bytes, dict[str, bytes]]]]) -> None:
    with tempfile.TemporaryDirectory() as base:
        top = os.path.join(base, "tree").encode()
        os.mkdir(top)
        directories = [top]
        for where, name, (kind, content, given_attributes) in layout:
            path = os.path.join(directories[where % len(directories)], name)
            if os.path.lexists(path) or len(path) > 3000:
                continue
            if kind == "directory":
                os.mkdir(path)
                directories.append(path)
            elif kind == "link":
                os.symlink(content.replace(b"\0", b"0")[:4000] or b"x", path)
            elif kind in ("fifo", "whiteout"):
                os.mknod(path, 0o010600 if kind == "fifo" else 0o020000)
            else:
                Path(os.fsdecode(path)).write_bytes(content)
                if kind == "sparse":
                    os.truncate(path, len(content) * 100 + 70_000)
            for key, held in given_attributes.items():
                if kind in ("file", "directory", "sparse") or not key.startswith("user."):
                    with contextlib.suppress(OSError):  # more than ext4 takes in a block
                        os.setxattr(path, key, held, follow_symlinks=False)
        make(Path(base, "tree"), Path(base, "image"))
        compare(Path(base, "tree"), Path(base, "image"))


@pytest.mark.peer
def test_a_stack_of_images_equals_the_stack_of_directories(layered_image: Layout, tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path / "layers"))
    directories = trees.apply(store, layered_image)
    images = [store.image("sha256:" + path.split("/")[-2]) for path in directories]
    with contextlib.ExitStack() as held:
        lowers = [held.enter_context(mounted(image)) for image in images]
        stacks = [overlay.mount(each) for each in (lowers, directories)]
        ours, theirs = (trees.look(f"/proc/self/fd/{fd}") for fd in stacks)
        for fd in stacks:
            os.close(fd)
        assert ours == theirs


def test_an_image_is_made_once_counted_and_goes_with_its_layer(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path))
    diff_id = apply_one(store)
    before = store.occupied(store.get(diff_id))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        paths = pool.map(store.image, [diff_id] * 8)
    inode = os.stat(paths[0]).st_ino
    assert set(paths) == {store.image(diff_id)} and os.stat(store.image(diff_id)).st_ino == inode
    assert os.stat(paths[0]).st_mode & 0o777 == 0o600
    assert before < store.occupied(store.get(diff_id)) < before + (1 << 20)
    assert os.listdir(f"{tmp_path}/staging") == []
    store.remove(diff_id)
    assert not os.path.exists(paths[0]) and os.listdir(f"{tmp_path}/staging") == []
    with pytest.raises(NotFound):
        store.image(diff_id)


def test_a_layer_that_takes_attributes_from_below_has_a_new_image(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path))
    lower, upper = apply_one(store, b"d", 0o40701), apply_one(store, b"d/x")
    stale = store.image(upper)
    store.adopt([lower, upper])
    with mounted(store.image(upper)) as where:
        assert os.stat(f"{where}/d").st_mode == 0o40701
    assert store.image(upper) == stale


def apply_one(store: LayerStore, name: bytes = b"file", mode: int = 0o100644) -> str:
    """A layer of one member."""
    from mamushka.spec.tar import DIRECTORY, REGULAR, Member
    from mamushka.spec.tar_write import END, header

    kind = DIRECTORY if mode & 0o40000 else REGULAR
    raw = header(Member(name, kind, mode=mode & 0o7777)) + END
    diff_id = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    store.apply(diff_id, [raw])
    return diff_id


def test_who_is_killed_while_he_makes_an_image_leaves_nothing_that_stays(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path))
    diff_id = apply_one(store)
    layer = Path(store.path(diff_id))
    for number in range(300):
        (layer / f"{number}").write_bytes(os.urandom(100_000))
    whole = None
    for delay in (0.001, 0.003, 0.01, 0.02, 0.04):
        pid = os.fork()
        if pid == 0:
            store.image(diff_id)
            os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        path = layer.parent / "root.erofs"
        if path.exists():
            peers.run("fsck.erofs", str(path))
            whole = path
            path.unlink()
    store.image(diff_id)
    store.clean()
    assert os.listdir(tmp_path / "staging") == [], whole
    compare(layer, layer.parent / "root.erofs")


def test_attributes_larger_than_a_block_and_more_shared_ones_than_are_counted() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:  # ext4 takes no more than a block of them
        tree = Path(base, "tree")
        (tree / "d").mkdir(parents=True)
        for number in range(3):
            (tree / f"{number}").write_bytes(b"q" * (100 + number * 3000))
            for attribute in range(9):
                os.setxattr(tree / f"{number}", f"trusted.{attribute}", bytes([number]) * 3000)
        for attribute in range(300):
            for name in ("d", "0"):
                os.setxattr(tree / name, f"trusted.shared-{attribute}", b"%d" % attribute)
        (tree / "link").symlink_to("x")
        os.setxattr(tree / "link", "trusted.big", b"z" * 60_000, follow_symlinks=False)
        make(tree, Path(base, "image"))
        compare(tree, Path(base, "image"))
