"""virtio-fs against the real virtiofsd: a driver double speaks FUSE over rings in shared memory, and mounts nothing."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.errors import MamushkaError, Unavailable, Unsupported
from mamushka.machine.devices.virtio import mmio
from mamushka.machine.devices.virtio.fs import Fs, Share, Virtiofsd, find
from mamushka.machine.devices.virtio.queue import EVENT_IDX
from mamushka.machine.memory import Memory, Region, shared_region
from tests.virtio import Guest

pytestmark = [pytest.mark.root, pytest.mark.lab]

LOOKUP, OPEN, READ, WRITE, INIT, CREATE = 1, 14, 15, 16, 26, 35
ROOT = 1  # FUSE_ROOT_ID
EROFS = 30


def setup_module() -> None:
    try:
        find()
    except Unsupported as error:
        pytest.skip(f"{error}: {error.hint}")


class World:
    """A device with its server, and a driver that has set it up and keeps its buffers above 4 GiB."""

    HIGH = 4 << 30

    def __init__(self, directory: Path, place: Path, *, without: int = 0, **settings: object) -> None:
        memory = Memory((shared_region(0, 4 << 20), shared_region(self.HIGH, 4 << 20)))
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        self.server = Virtiofsd(Share(fd, **settings), str(place))  # type: ignore[arg-type]
        os.close(fd)
        self.guest = Guest(Fs("shared", self.server, memory), memory=memory, without=without)
        self.failures = self.guest.failures
        self.unique = 0
        self.guest.start()

    def ask(self, request: list[bytes], room: list[int]) -> bytes:
        """One chain through the request queue; what came back."""
        ring, memory = self.guest.rings[1], self.guest.memory
        places = [(self.HIGH + 0x40000 * index, len(data)) for index, data in enumerate(request)]
        answers = [(self.HIGH + 0x100000 + 0x40000 * index, size) for index, size in enumerate(room)]
        for (gpa, _), data in zip(places, request, strict=True):
            memory.write(gpa, data)
        before = ring.index
        head = ring.add(places, answers)
        if ring.wants_kick(before):
            self.guest.kick(1)
        while not (found := ring.collect()):
            assert select.select([self.guest.line.fd], [], [], 10)[0], "no interrupt came"
            os.eventfd_read(self.guest.line.fd)
        assert found[0][0] == head
        return b"".join(bytes(memory.read(*place)) for place in answers)[: found[0][1]]

    def fuse(self, opcode: int, node: int, body: bytes, room: int) -> tuple[int, bytes]:
        """One FUSE request: (error, answer). include/uapi/linux/fuse.h, fuse_in_header and fuse_out_header."""
        self.unique += 1
        header = struct.pack("<IIQQIIII", 40 + len(body), opcode, self.unique, node, 0, 0, 1, 0)
        answer = self.ask([header, body] if body else [header], [16, room] if room else [16])
        length, error, unique = struct.unpack("<IiQ", answer[:16])
        assert (unique, length) == (self.unique, len(answer))
        return -error, answer[16:]

    def init(self) -> None:
        error, answer = self.fuse(INIT, 0, struct.pack("<IIII", 7, 31, 65536, 0), 64)
        assert error == 0
        assert struct.unpack("<I", answer[:4]) == (7,)

    def lookup(self, name: str, parent: int = ROOT) -> tuple[int, int, int, int]:
        """(node, mode, uid, size)."""
        error, answer = self.fuse(LOOKUP, parent, name.encode() + b"\0", 128)
        if error:
            raise OSError(error, name)
        node = struct.unpack_from("<Q", answer)[0]
        size = struct.unpack_from("<Q", answer, 40 + 8)[0]
        mode, _, uid = struct.unpack_from("<III", answer, 40 + 60)
        return node, mode, uid, size

    def read(self, node: int, size: int) -> bytes:
        error, answer = self.fuse(OPEN, node, struct.pack("<II", os.O_RDONLY, 0), 16)
        assert error == 0
        handle = struct.unpack_from("<Q", answer)[0]
        error, answer = self.fuse(READ, node, struct.pack("<QQIIQII", handle, 0, size, 0, 0, 0, 0), size)
        assert error == 0
        return answer

    def create(self, name: str, content: bytes) -> int:
        body = struct.pack("<IIII", os.O_WRONLY | os.O_CREAT, 0o100640, 0, 0) + name.encode() + b"\0"
        error, answer = self.fuse(CREATE, ROOT, body, 160)
        if error:
            return error
        node, handle = struct.unpack_from("<Q", answer)[0], struct.unpack_from("<Q", answer, 128)[0]
        body = struct.pack("<QQIIQII", handle, 0, len(content), 0, 0, 0, 0) + content
        return self.fuse(WRITE, node, body, 8)[0]

    def close(self) -> None:
        self.guest.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    (shared / "greeting").write_bytes(b"hello from the host\n" * 1000)
    (shared / "sub" / "deep").write_text("deep")
    return shared


@pytest.fixture
def world(directory: Path, tmp_path: Path) -> Iterator[World]:
    world = World(directory, tmp_path / "place")
    yield world
    world.close()


def test_config_names_the_share(world: World) -> None:
    assert world.guest.device.config() == b"shared".ljust(36, b"\0") + (1).to_bytes(4, "little")


def test_reads_and_writes_what_is_there(world: World, directory: Path) -> None:
    world.init()
    node, mode, uid, size = world.lookup("greeting")
    assert (mode & 0o170000, uid, size) == (0o100000, 0, 20000)
    assert world.read(node, 20000) == b"hello from the host\n" * 1000
    deep, *_ = world.lookup("deep", world.lookup("sub")[0])
    assert world.read(deep, 100) == b"deep"
    assert world.create("made", b"by the guest") == 0
    assert (directory / "made").read_bytes() == b"by the guest"
    with pytest.raises(OSError, match="absent"):
        world.lookup("absent")


def test_without_event_indices(directory: Path, tmp_path: Path) -> None:
    world = World(directory, tmp_path / "place", without=1 << EVENT_IDX)
    try:
        world.init()
        for _ in range(50):
            assert world.read(world.lookup("greeting")[0], 20) == b"hello from the host\n"
    finally:
        world.close()


def test_a_read_only_share_refuses_to_be_written(directory: Path, tmp_path: Path) -> None:
    world = World(directory, tmp_path / "place", read_only=True)
    try:
        world.init()
        assert world.create("made", b"x") == EROFS
        assert not (directory / "made").exists()
    finally:
        world.close()


def test_nothing_of_it_is_seen_outside(world: World, tmp_path: Path) -> None:
    assert not list((tmp_path / "place").iterdir())
    assert str(tmp_path / "place") not in Path("/proc/self/mountinfo").read_text()


def test_goes_on_after_a_reset(world: World) -> None:
    world.init()
    world.lookup("greeting")
    queues = world.guest.device.started
    asked = world.guest.rings[1].index
    world.guest.write(mmio.STATUS, 0)
    assert [queue.save() for queue in queues] == [(0, 0), (asked, asked)]
    world.guest.again()
    world.init()
    assert world.read(world.lookup("greeting")[0], 5) == b"hello"


def test_a_dead_server_ends_the_machine(world: World) -> None:
    world.init()
    os.kill(world.server.pid, 9)
    deadline = time.monotonic() + 10
    while not world.failures and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(world.failures[0], Unavailable)
    assert "shared has ended" in str(world.failures[0])


def test_it_ends_when_the_machine_is_killed(directory: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        world = World(directory, tmp_path / "place")
        world.init()
        os.write(writer, struct.pack("<i", world.server.pid))
        time.sleep(60)
        os._exit(1)
    server = struct.unpack("<i", os.read(reader, 4))[0]
    pidfd = os.pidfd_open(server)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert select.select([pidfd], [], [], 10)[0]
    for fd in (reader, writer, pidfd):
        os.close(fd)


def test_why_it_did_not_start_is_told(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MamushkaError, match="file"):
        World(directory, tmp_path / "file")


def test_private_memory_is_refused(directory: Path, tmp_path: Path) -> None:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    server = Virtiofsd(Share(fd), str(tmp_path / "place"))
    os.close(fd)
    memory = Memory((Region(0, 1 << 20),))
    with pytest.raises(Unsupported, match="private"):
        Fs("shared", server, memory)
    server.close()
    memory.close()


def test_a_machine_that_has_used_it_is_not_saved(world: World) -> None:
    assert world.guest.transport.save()  # its server knows nothing of it yet
    world.init()
    with pytest.raises(Unsupported, match="shared directory shared"):
        world.guest.transport.save()
