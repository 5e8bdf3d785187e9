"""qcow2 images under any sequence of calls: equal to plain bytes, whole for qemu-img, and after a loss of power too."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mamushka.storage import vectors
from mamushka.storage.block import open_disk
from mamushka.storage.qcow2 import image
from mamushka.storage.qcow2.create import create_qcow2
from tests.integration.storage.disks import check, content, img, io, needs_qemu, pattern

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.storage.block import Disk

pytestmark = needs_qemu

SIZE = 2 << 20
SECTORS = SIZE // 512


def whole(disk: Disk) -> bytes:
    data = bytearray(disk.size)
    disk.readv(0, [memoryview(data)])
    return bytes(data)


class Against(RuleBasedStateMachine):
    """An image beside plain bytes. What is discarded may read as old or as zeros: here it is zeros, or stays."""

    @initialize(
        bits=st.sampled_from((9, 10, 12, 16)), version=st.sampled_from((2, 3)), order=st.integers(0, 6),
        below=st.sampled_from(("", "raw", "qcow2")), squeezed=st.booleans(), snapshot=st.booleans(),
    )  # fmt: skip
    def make(self, bits: int, version: int, order: int, below: str, squeezed: bool, snapshot: bool) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mamushka-qcow2-"))
        self.path = self.directory / "image"
        self.model = bytearray(SIZE)
        order = 4 if version == 2 else max(order, 1 if snapshot else 0)
        if below:
            (self.directory / "raw").write_bytes(pattern(SIZE // 2 + 512, bits))
            self.model[: SIZE // 2 + 512] = pattern(SIZE // 2 + 512, bits)
            words = ("-c", "-o", "cluster_size=4096") if squeezed and below == "qcow2" else ()
            img("convert", "-f", "raw", "-O", below, *words, self.directory / "raw", self.directory / "base")
        create_qcow2(
            str(self.path), SIZE, backing="base" if below else "", backing_format=below, version=version,
            cluster_bits=bits, refcount_order=order,
        )  # fmt: skip
        if snapshot:
            io(self.path, "write -P 9 128k 256k")
            self.model[128 << 10 : 384 << 10] = b"\x09" * (256 << 10)
            img("snapshot", "-c", "kept", self.path)
        self.kept = bytes(self.model) if snapshot else None
        self.exact = version == 3 or not below
        self.disk = open_disk(str(self.path), "qcow2", writable=True)

    @rule(at=st.integers(0, SECTORS - 1), count=st.integers(1, 400), seed=st.integers(0, 255), cut=st.integers(1, 5000))
    def write(self, at: int, count: int, seed: int, cut: int) -> None:
        data = random.Random(seed).randbytes(min(count, SECTORS - at) * 512)
        views = [memoryview(data)[start : start + cut] for start in range(0, len(data), cut)]
        self.disk.writev(at * 512, views)
        self.model[at * 512 : at * 512 + len(data)] = data

    @rule(at=st.integers(0, SECTORS - 1), count=st.integers(1, 800), unmap=st.booleans())
    def zeroes(self, at: int, count: int, unmap: bool) -> None:
        length = min(count, SECTORS - at) * 512
        self.disk.write_zeroes(at * 512, length, unmap)
        self.model[at * 512 : at * 512 + length] = bytes(length)

    @rule(at=st.integers(0, SECTORS - 1), count=st.integers(1, SECTORS))
    def discard(self, at: int, count: int) -> None:
        length = min(count, SECTORS - at) * 512
        self.disk.discard(at * 512, length)
        if self.exact:
            mask = self.disk.granularity - 1
            start, end = at * 512 + mask & ~mask, at * 512 + length
            end = end if end == SIZE else end & ~mask
            self.model[start : max(start, end)] = bytes(max(0, end - start))

    @rule(at=st.integers(0, SECTORS - 1), count=st.integers(1, 600), cut=st.integers(1, 70000))
    def read(self, at: int, count: int, cut: int) -> None:
        data = bytearray(min(count, SECTORS - at) * 512)
        self.disk.readv(at * 512, [memoryview(data)[start : start + cut] for start in range(0, len(data), cut)])
        assert data == self.model[at * 512 : at * 512 + len(data)]

    @rule()
    def flush(self) -> None:
        self.disk.flush()
        shutil.copy(self.path, self.directory / "copy")
        check(self.directory / "copy", leaks=True)

    @rule()
    def again(self) -> None:
        self.disk.close()
        check(self.path)
        self.disk = open_disk(str(self.path), "qcow2", writable=True)

    def teardown(self) -> None:
        if not hasattr(self, "disk"):
            return
        try:
            assert whole(self.disk) == self.model
            self.disk.close()
            check(self.path)
            assert content(self.path) == self.model
            if self.kept is not None:
                img("snapshot", "-a", "kept", self.path)
                check(self.path)
                assert content(self.path) == self.kept
        finally:
            shutil.rmtree(self.directory)


TestAgainst = Against.TestCase
TestAgainst.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class Recorder:
    """Writes down what goes to the file, and where the barriers are."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[int, bytes] | None] = []  # (offset, bytes); None is a barrier
        write, hole = vectors.write_at, image.hole

        def write_at(fd: int, views: Sequence[memoryview], offset: int) -> None:
            self.log.append((offset, b"".join(views)))
            write(fd, views, offset)

        def punch(fd: int, offset: int, length: int) -> bool:
            self.log.append((offset, bytes(length)))
            return hole(fd, offset, length)

        def barrier(fd: int) -> None:
            self.log.append(None)

        patch.setattr(vectors, "write_at", write_at)
        patch.setattr(image, "hole", punch)
        patch.setattr(os, "fdatasync", barrier)

    def lose_power(self, before: bytes, at: int, dice: random.Random) -> bytes:
        """What a disk holds that lost power at a place of the log: all before the last barrier, any sectors after."""
        disk = bytearray(before)
        barrier = max((place for place in range(at) if self.log[place] is None), default=0)
        for place in range(at):
            entry = self.log[place]
            if entry is None:
                continue
            offset, data = entry
            for start in range(0, len(data), 512):
                part, where = data[start : start + 512], offset + start
                if place < barrier or dice.random() < 0.5:
                    disk.extend(bytes(max(0, where + len(part) - len(disk))))
                    disk[where : where + len(part)] = part
        return bytes(disk)


@pytest.mark.parametrize(("seed", "bits"), [(1, 9), (2, 12), (3, 16), (4, 9), (5, 12)])
def test_a_loss_of_power_leaves_leaks_at_worst_and_keeps_what_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, bits: int
) -> None:
    dice = random.Random(seed)
    path = tmp_path / "image"
    create_qcow2(str(path), SIZE, cluster_bits=bits)
    io(path, "write -P 3 0 512k")
    img("snapshot", "-c", "kept", path)
    before = path.read_bytes()
    disk = open_disk(str(path), "qcow2", writable=True)
    disk._tables.limit = disk._refcounts._cache.limit = 8  # type: ignore[attr-defined]  # rounds come often
    recorder = Recorder(monkeypatch)
    model = bytearray(whole(disk))
    flushed: list[tuple[int, bytes, set[int]]] = [(0, bytes(model), set())]  # place, content, sectors changed since
    for _ in range(120):
        at = dice.randrange(SECTORS - 200)
        count = dice.randrange(1, 200)
        match dice.randrange(6):
            case 0:
                disk.flush()
                flushed.append((len(recorder.log), bytes(model), set()))
                continue
            case 1:
                disk.discard(at * 512, count * 512)
            case 2:
                disk.write_zeroes(at * 512, count * 512, True)
            case _:
                disk.writev(at * 512, [memoryview(dice.randbytes(count * 512))])
        model[:] = whole(disk)
        flushed[-1][2].update(range(at, at + count))
    disk.close()
    monkeypatch.undo()
    for _ in range(40):
        cut = dice.randrange(len(recorder.log))
        lost = tmp_path / "lost"
        lost.write_bytes(recorder.lose_power(before, cut, dice))
        check(lost, leaks=True)
        found = content(lost)
        _, kept, changed = max((item for item in flushed if item[0] <= cut), key=lambda item: item[0])
        wrong = [
            sector for sector, start in enumerate(range(0, SIZE, 512))
            if sector not in changed and found[start : start + 512] != kept[start : start + 512]
        ]  # fmt: skip
        assert not wrong, f"lost at {cut} of {len(recorder.log)}: sectors {wrong[:5]}"
