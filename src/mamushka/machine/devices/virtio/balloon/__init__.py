"""Memory that a guest does not need goes back to the host. VIRTIO 1.2, section 5.5.

    inflate     the driver gives pages up, to reach the size that the host asks for (``resize``)
    deflate     it takes some back, also by itself before it runs out of memory
    reporting   it names free pages as they become free; they come back by being touched
    statistics  it fills a buffer, which is given back to ask for the next ones

Giving a page to the host is dropping what backs it: a hole in a shared file, or the private copy of a page. The guest
finds zeros there, or what the file below has had all along: it was told that contents do not survive. Only where it
said that it counts on a pattern in free pages (PAGE_POISON), reported pages of the latter kind, or with a pattern
that is not zero, stay as they are.
"""

from __future__ import annotations

import threading
from struct import Struct

from mamushka import trace
from mamushka.errors import GuestFault
from mamushka.linux.memory import MADV_DONTNEED, MADV_REMOVE, address_of, madvise
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.memory import PAGE, RAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import ClassVar

    from mamushka.machine.devices.virtio.queue import Chain, Queue
    from mamushka.machine.loop import Loop
    from mamushka.machine.memory import Memory, Region

__all__ = ["Balloon"]

STATS_VQ, DEFLATE_ON_OOM, PAGE_POISON, PAGE_REPORTING = 1, 2, 4, 5  # feature bits; 3 is free page hints
PAGES_MAX = 1024  # in one request: Linux sends 256. With the ring's depth this bounds the calls of one round
STATISTICS_MAX = 64  # Linux knows 16

# 5.5.6.3, by their tags; bytes where nothing else is said.
STATISTICS = (
    "swap_in", "swap_out", "major_faults", "minor_faults", "free", "total", "available", "disk_caches",
    "hugetlb_allocations", "hugetlb_failures", "oom_kills", "allocation_stalls", "async_scans", "direct_scans",
    "async_reclaims", "direct_reclaims",
)  # fmt: skip

_CONFIG = Struct("<IIII")  # wanted and actual pages, hint command, poison
_STATISTIC = Struct("<HQ")
_ACTUAL_AT, _POISON_AT = 4, 12


class Balloon(Device):
    """Gives pages of ``memory`` back to the host. Pages are 4 KiB whatever the guest's are."""

    device_id: ClassVar[int] = 5
    # Linux and others count only the queues whose feature was agreed to; the last has no fixed place (``start``).
    queues: ClassVar[tuple[str, ...]] = ("inflateq", "deflateq", "statsq", "reporting_vq")
    depth: ClassVar[int] = 64
    features = 1 << STATS_VQ | 1 << DEFLATE_ON_OOM | 1 << PAGE_POISON | 1 << PAGE_REPORTING

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.wanted = self.actual = self._poison = 0  # pages, pages, a pattern
        self.released = 0  # bytes that went back to the host, counted each time
        self._features = 0
        self._roles: tuple[str, ...] = ()
        self._held: Chain | None = None  # of statistics: given back to ask for more
        self._statistics: dict[str, int] = {}
        self._answered = threading.Event()

    # For the host

    def resize(self, size: int) -> None:
        """Ask the driver to give up ``size`` bytes in all; it may take its time, or never. In the loop's thread."""
        self.wanted = min(size // PAGE, 0xFFFFFFFF)
        self.changed()

    @property
    def size(self) -> int:
        """Bytes that the driver says it has given up."""
        return self.actual * PAGE

    def statistics(self, loop: Loop, timeout: float = 1.0) -> Mapping[str, int]:
        """What the guest says of its memory now; of the last time, where it does not answer in ``timeout`` seconds.

        Not from the loop's thread.
        """
        self._answered.clear()
        if loop.call(self._ask):
            self._answered.wait(timeout)
        return dict(self._statistics)

    def _ask(self) -> bool:
        """Give the buffer back, where there is one; the driver fills it anew."""
        chain, self._held = self._held, None
        if chain is not None:
            queue = self.started[self._roles.index("statsq")]
            queue.push(chain)
            queue.signal()
        return chain is not None

    # For the driver

    def config(self) -> bytes:
        """What the host wants and what the driver has done."""
        return _CONFIG.pack(self.wanted, self.actual, 0, self._poison)

    def configure(self, offset: int, data: bytes) -> None:
        """The driver tells how many pages it has given up, and what it fills free ones with."""
        if len(data) == 4 and offset == _ACTUAL_AT:
            self.actual = int.from_bytes(data, "little")
        elif len(data) == 4 and offset == _POISON_AT:
            self._poison = int.from_bytes(data, "little")

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        """Which queue is which follows from the features."""
        super().start(queues, features, loop)
        self._features = features
        optional = (("statsq", STATS_VQ), ("reporting_vq", PAGE_REPORTING))
        self._roles = ("inflateq", "deflateq", *(name for name, bit in optional if features >> bit & 1))

    def stop(self) -> None:
        """The driver has taken everything back."""
        self._held, self.actual, self._poison = None, 0, 0
        self._statistics = {}
        super().stop()

    def notify(self, index: int) -> None:
        """By the queue's role; one without a role is not served."""
        role = self._roles[index] if index < len(self._roles) else ""
        queue = self.started[index]
        serve = {"inflateq": self._inflate, "reporting_vq": self._report, "statsq": self._read}.get(role)
        for chain in queue.serve() if role else ():
            if role == "statsq" and self._held is not None:
                queue.push(self._held)
            if serve is not None:  # what is taken back comes back by being touched
                serve(chain)
            if role != "statsq":
                queue.push(chain)
        queue.signal()

    def _inflate(self, chain: Chain) -> None:
        length = chain.readable_length
        if length % 4 or length > 4 * PAGES_MAX:
            raise GuestFault(f"a balloon of {length} bytes of page numbers, at most {4 * PAGES_MAX}")
        for start, count in runs(sorted(memoryview(chain.take(length)).cast("I"))):
            self._release(self._region(start * PAGE, count * PAGE), start * PAGE, count * PAGE)

    def _region(self, gpa: int, length: int) -> Region:
        for region in self._memory:
            if region.start <= gpa and gpa + length <= region.end and region.kind == RAM:
                return region
        raise GuestFault(f"a balloon at {gpa:#x}, {length} bytes, lies outside of RAM")

    def _report(self, chain: Chain) -> None:
        """The buffers are the free pages themselves. At most one ring of them."""
        for view in filter(len, chain.writable):
            hva, length = address_of(view), len(view)
            for region in self._memory:
                inside = region.hva <= hva < region.hva + region.length and region.kind == RAM
                if inside and not (hva | length) % PAGE and self._may_drop(region):
                    self._release(region, region.start + hva - region.hva, length)

    def _may_drop(self, region: Region) -> bool:
        """Whether what the guest then finds is what it said it would."""
        if not self._features >> PAGE_POISON & 1:
            return True
        return self._poison == 0 and (region.shared or region.fd < 0)

    def _release(self, region: Region, gpa: int, length: int) -> None:
        try:
            madvise(region.hva + gpa - region.start, length, MADV_REMOVE if region.shared else MADV_DONTNEED)
            self.released += length
        except OSError as error:  # huge pages, or a file that cannot have holes: then it stays
            trace.event("balloon.kept", error=str(error), gpa=gpa, length=length)

    def _read(self, chain: Chain) -> None:
        """The driver's figures. The buffer is kept until the next are wanted."""
        raw = chain.take(min(chain.readable_length, _STATISTIC.size * STATISTICS_MAX) // 10 * 10)
        found = {}
        for tag, number in _STATISTIC.iter_unpack(raw):
            if tag < len(STATISTICS):
                found[STATISTICS[tag]] = number
        self._statistics, self._held = found, chain
        self._answered.set()

    # Going on elsewhere

    def save(self) -> dict[str, bytes]:
        """The figures of the configuration. A held buffer is put back into its queue, and taken again."""
        if self._held is not None:
            queue = self.started[self._roles.index("statsq")]
            queue.unpop()  # it is the last that was taken: the driver has but one
            self._held = None
            queue.ring()
        return {"config": self.config()}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take them."""
        self.wanted, self.actual, _, self._poison = _CONFIG.unpack(state["config"])


def runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours of a sorted sequence together: (first, count). A page named twice counts once."""
    first = count = 0
    for page in pages:
        if count and page == first + count:
            count += 1
        elif not count or page > first + count:
            if count:
                yield first, count
            first, count = page, 1
    if count:
        yield first, count
