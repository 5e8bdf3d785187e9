"""Trees out of a guest and into it: the guest's first process, run for real, against Python's own tarfile."""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mamushka.errors import MamushkaError, NotFound
from mamushka.machine.agent import tree
from mamushka.machine.agent.tree import Entry, Unpacker
from mamushka.spec.tar import DIRECTORY, SYMLINK, Member, Reader
from tests.guests import Guest

pytestmark = pytest.mark.root


def packed(guest: Guest, path: str, *, content: bool = True) -> list[tuple[Entry, bytes]]:
    """All that comes of a path."""
    reader, writer = os.pipe()
    came = bytearray()

    def read() -> None:
        with open(reader, "rb") as file:
            came.extend(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        guest.agent.pack(path, writer, root=guest.rootfs, content=content)
    finally:
        os.close(writer)
        thread.join()
    unpacker, found = Unpacker(content=content), list[tuple[Entry, bytes]]()
    for cut in (came[:7], came[7:]):
        for part in unpacker.feed(bytes(cut)):
            if isinstance(part, Entry):
                found.append((part, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + part)
    unpacker.end()
    return found


def unpack(guest: Guest, path: str, make: Callable[[tarfile.TarFile], None]) -> None:
    """What tarfile writes, into a directory of the guest's."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as writing:
        make(writing)
    archive.seek(0)
    reader, writer = os.pipe()

    def write() -> None:
        try:
            with open(writer, "wb") as file:
                members = Reader(iter(lambda: archive.read(5000), b""))
                for member in members:
                    file.write(tree.item(member))
                    for piece in tree.pieces(members.pieces()):
                        file.write(piece)
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=write)
    thread.start()
    try:
        guest.agent.unpack(path, reader, root=guest.rootfs)
    finally:
        os.close(reader)
        thread.join()


@pytest.fixture
def place(guest: Guest) -> Iterator[Path]:
    path = Path(guest.rootfs, "trees")
    path.mkdir()
    yield path
    os.system(f"rm -rf {path}")


def add(writing: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, item in fields.items():
        setattr(info, key, item)
    writing.addfile(info, io.BytesIO(content))


def test_what_is_there_comes_as_it_is(guest: Guest, place: Path) -> None:
    (place / "d/e").mkdir(parents=True)
    (place / "d/e/large").write_bytes(os.urandom(3_000_001))
    os.utime(place / "d/e/large", ns=(5, 1_500_000_000_123_456_789))
    (place / "d/empty").touch()
    os.chown(place / "d/empty", 1000, 7)
    os.chmod(place / "d/empty", 0o4751)
    os.setxattr(place / "d/empty", "trusted.note", b"\0kept")
    os.symlink("/etc/passwd", place / "d/link")
    os.link(place / "d/empty", place / "d/again")
    os.mkfifo(place / "d/fifo", 0o640)
    os.mknod(place / "d/gone", stat.S_IFCHR, 0)
    found = {entry.name.decode(): (entry, content) for entry, content in packed(guest, "/trees/d")}
    assert set(found) == {"", "e", "e/large", "empty", "again", "link", "fifo", "gone"}
    large, content = found["e/large"]
    assert content == (place / "d/e/large").read_bytes() and large.mtime_ns == 1_500_000_000_123_456_789
    empty = found["empty"][0]
    assert (empty.mode, empty.uid, empty.gid) == (stat.S_IFREG | 0o4751, 1000, 7)
    assert ("trusted.note", b"\0kept") in empty.xattrs
    assert empty.same and empty.same == found["again"][0].same
    assert found["link"][0].link == b"/etc/passwd"
    assert stat.S_ISFIFO(found["fifo"][0].mode)
    gone = found["gone"][0]
    assert stat.S_ISCHR(gone.mode) and gone.device == 0
    names = [entry.name for entry, _ in packed(guest, "/trees/d", content=False)]
    assert sorted(names) == sorted(name.encode() for name in found)


def test_one_file_a_link_and_nothing(guest: Guest, place: Path) -> None:
    (place / "one").write_bytes(b"content")
    os.symlink("one", place / "link")
    os.symlink("/trees", place / "away")
    assert [(entry.name, content) for entry, content in packed(guest, "/trees/one")] == [(b"", b"content")]
    assert packed(guest, "/trees/link")[0][0].link == b"one"
    assert packed(guest, "/trees/away/one")[0][1] == b"content"
    with pytest.raises(NotFound):
        packed(guest, "/trees/none")


def test_an_archive_is_there_afterwards(guest: Guest, place: Path) -> None:
    large = os.urandom(1_000_001)

    def make(writing: tarfile.TarFile) -> None:
        add(writing, "d", type=tarfile.DIRTYPE, mode=0o700, uid=5, mtime=1000)
        add(writing, "d/large", large, mode=0o4711, uid=1000, gid=7, mtime=1_500_000_000)
        add(writing, "d/hard", type=tarfile.LNKTYPE, linkname="d/large")
        add(writing, "d/soft", type=tarfile.SYMTYPE, linkname="/nowhere")
        add(writing, "d/fifo", type=tarfile.FIFOTYPE, mode=0o600)
        add(writing, "not/told/of/file", b"x")
        add(writing, "there", b"new")

    (place / "there").write_bytes(b"old and longer")
    unpack(guest, "/trees", make)
    found = (place / "d/large").stat()
    assert (place / "d/large").read_bytes() == large
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o4711, 1000, 7)
    assert found.st_mtime == 1_500_000_000 and found.st_nlink == 2
    assert os.readlink(place / "d/soft") == "/nowhere"
    assert (place / "not/told/of/file").read_bytes() == b"x" and (place / "there").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda tar: add(tar, "d", b"x"), IsADirectoryError),
        (lambda tar: add(tar, "file/below", b"x"), NotADirectoryError),
        (lambda tar: add(tar, "../out", b"x"), OSError),
        (lambda tar: add(tar, "hard", type=tarfile.LNKTYPE, linkname="none"), NotFound),
    ],
)
def test_what_cannot_be_is_told_and_the_rest_is_untouched(
    guest: Guest, place: Path, make: Callable[[tarfile.TarFile], None], error: type[BaseException]
) -> None:
    (place / "d").mkdir()
    (place / "file").write_bytes(b"file")
    with pytest.raises(error):
        unpack(guest, "/trees", make)
    assert not Path(guest.rootfs, "out").exists() and (place / "file").read_bytes() == b"file"


def test_links_of_the_image_lead_nowhere_but_below(guest: Guest, place: Path, tmp_path: Path) -> None:
    os.symlink(tmp_path, place / "out")
    with pytest.raises((NotFound, OSError)):
        unpack(guest, "/trees/out", lambda tar: add(tar, "x", b"x"))
    assert not (tmp_path / "x").exists()


def test_what_is_removed_is_gone_and_nothing_else(guest: Guest, place: Path) -> None:
    (place / "d/e").mkdir(parents=True)
    (place / "kept").write_bytes(b"kept")
    os.symlink("../kept", place / "d/link")
    with pytest.raises(OSError):
        guest.agent.remove("/trees/d", root=guest.rootfs)
    guest.agent.remove("/trees/d", root=guest.rootfs, recursive=True)
    assert sorted(os.listdir(place)) == ["kept"]
    guest.agent.remove("/trees/kept", root=guest.rootfs)
    with pytest.raises(NotFound):
        guest.agent.remove("/trees/kept", root=guest.rootfs)
    for path in ("/", "/trees/.", ".."):
        with pytest.raises(OSError):
            guest.agent.remove(path, root=guest.rootfs, recursive=True)


def test_a_stream_that_lies_ends_in_an_error_and_the_agent_goes_on(guest: Guest, place: Path) -> None:
    dice = random.Random(5)
    whole = bytearray()
    for number in range(4):
        whole += tree.item(Member(b"d/%d" % number, size=9, xattrs=(("trusted.x", b"y"),)))
        whole += b"".join(tree.pieces([b"content!!"]))
    whole += tree.item(Member(b"d/l", SYMLINK, link=b"/")) + tree.item(Member(b"d/l/x", DIRECTORY))
    for _ in range(60):
        lie = bytearray(whole[: dice.randrange(1, len(whole))])
        for _ in range(dice.randrange(4)):
            lie[dice.randrange(len(lie))] = dice.randrange(256)
        reader, writer = os.pipe()
        os.write(writer, lie)
        os.close(writer)
        try:
            guest.agent.unpack("/trees", reader, root=guest.rootfs)
        except (OSError, MamushkaError):
            pass
        finally:
            os.close(reader)
        os.system(f"rm -rf {place} && mkdir {place}")
    assert guest.run("echo here")[1] == "here\n"
    assert set(os.listdir(guest.rootfs)) <= {"bin", "etc", "tmp", "trees", "dev", "proc", "sys"}
