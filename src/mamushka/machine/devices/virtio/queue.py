"""Split virtqueues: how a driver and a device pass buffers to each other. VIRTIO 1.2, section 2.7.

Three parts in guest memory. The descriptor table: buffers (address, length), linked to chains. The available ring: the
driver puts heads of chains there. The used ring: the device puts them back with the count of bytes it wrote.

    driver  ->  available.index  ->  device: pop, read and write buffers, push  ->  used.index  ->  driver

Everything in them is the guest's and hostile: a head or link outside of the table, a chain longer than the table (a
loop), a buffer outside of memory, an index that runs ahead of the ring: GuestFault, which ends this machine alone.
Each field is read once. Indices are free-running 16-bit counters.

The driver runs on other processors meanwhile, and both sides decide from what they read of each other whether to ring
(2.7.10, 2.7.7): what was written must be seen before the other's word is read. Python has no fence, but taking a free
lock is one: an atomic instruction, on x86 a full barrier. x86 keeps stores in order, and loads; elsewhere a fence
stands between them too.

An index must change at once. ``struct`` reads 16 bits by one load, but ``pack_into`` clears its room before it fills
it: a driver that looks meanwhile sees zero, takes for used what is not, and frees what is about to be read or filled.
An item of a ``memoryview`` of 16 bits is one store.
"""

from __future__ import annotations

import os
import threading
from struct import Struct

from mamushka.errors import GuestFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.machine.memory import Memory
    from mamushka.machine.vcpu import Line

NEXT, WRITE, INDIRECT = 1, 2, 4  # flags of a descriptor
NO_INTERRUPT = 1  # flag of the available ring, without EVENT_IDX
DEPTH_MAX = 32768  # 2.7: the largest queue there is
INDIRECT_DESC, EVENT_IDX = 28, 29  # feature bits

_TSO = os.uname().machine == "x86_64"  # total store order: only a load may overtake an earlier store

_DESCRIPTOR = Struct("<QIHH")
_U16 = Struct("<H")
_USED = Struct("<II")


class Chain:
    """Buffers that belong together: what the device reads, then what it writes."""

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []

    @property
    def readable_length(self) -> int:
        """Bytes that the driver gave."""
        return sum(len(view) for view in self.readable)

    @property
    def writable_length(self) -> int:
        """Bytes that the driver has room for."""
        return sum(len(view) for view in self.writable)

    def take(self, length: int) -> bytes:
        """The first bytes that the driver gave, copied; they may lie in any buffers. GuestFault when short."""
        data = b"".join(self._first(length))
        if len(data) != length:
            raise GuestFault(f"a request of {length} bytes was cut off after {len(data)}")
        return data

    def _first(self, length: int) -> Iterator[memoryview]:
        for view in self.readable:
            if length <= 0:
                return
            yield view[:length]
            length -= len(view)

    def fill(self, data: bytes | memoryview, skip: int = 0) -> int:
        """Copy into the room that the driver gave, after ``skip`` bytes of it; how many fitted."""
        rest = memoryview(data)
        for view in self.writable:
            if skip >= len(view):
                skip -= len(view)
                continue
            count = min(len(view) - skip, len(rest))
            view[skip : skip + count] = rest[:count]
            rest, skip = rest[count:], 0
            if not rest:
                break
        return len(data) - len(rest)


class Queue:
    """The device's side of one virtqueue."""

    def __init__(
        self, memory: Memory, depth: int, table: int, available: int, used: int, features: int, line: Line,
        name: str = "a queue",
    ):  # fmt: skip
        """``depth`` descriptors; the three addresses are guest-physical and lie in memory (GuestFault). ``line`` tells
        the driver that something was used. ``name`` is told with what is wrong."""
        self._memory, self.depth, self._line, self._name = memory, depth, line, name
        self.addresses = (table, available, used)
        if depth < 1 or depth > DEPTH_MAX or depth & depth - 1:
            raise GuestFault(f"a queue of {depth} descriptors: not a power of two up to {DEPTH_MAX}")
        if table % 16 or available % 2 or used % 4:
            raise GuestFault("a queue's parts are not aligned")
        self._table = memory.read(table, 16 * depth)
        self._available = memory.read(available, 6 + 2 * depth)
        self._used = memory.writable(used, 6 + 8 * depth)
        self._indices = self._used.cast("H")  # 1: the used ring's, the last: from which chain on the driver rings
        self._events = bool(features >> EVENT_IDX & 1)
        self._indirect = bool(features >> INDIRECT_DESC & 1)
        self.next_available = 0  # the next entry of the available ring that we take
        self.next_used = 0  # the next entry of the used ring that we fill
        self._signalled = 0  # next_used when the driver was last told
        self._free = threading.Lock()
        self.bell = -1  # the eventfd by which the driver rings, where the transport gave one
        self.carried = False  # set by a device in ``start``: another back end hears the bell and fires the line

    @property
    def line(self) -> Line:
        """What tells the driver; its descriptor is for back ends elsewhere."""
        return self._line

    def _fence(self) -> None:
        """What was written before is seen before anything that follows is read."""
        # Twice: where taking and giving are half barriers, the first giving and the second taking are a whole one.
        with self._free:
            pass
        with self._free:
            pass

    # Taking

    def serve(self) -> Iterator[Chain]:
        """The chains that wait, at most one ring of them: who has more rings again, and others get their turn."""
        for _ in range(self.depth):
            chain = self.pop()
            if chain is None:
                return
            yield chain
        self.ring()

    def ring(self) -> None:
        """Be notified soon, as if the driver had rung."""
        if self.bell >= 0:
            os.eventfd_write(self.bell, 1)

    def pop(self) -> Chain | None:
        """The next chain; None where there is none, and then the driver's next one rings the doorbell."""
        waiting = self._waiting()
        if waiting == 0:
            if not self._events:
                return None
            # 2.7.10: ask to be told of the next, then look again, or one that came between would be missed.
            self._indices[-1] = self.next_available
            self._fence()
            waiting = self._waiting()
            if waiting == 0:
                return None
        if not _TSO:
            self._fence()
        head = _U16.unpack_from(self._available, 4 + 2 * (self.next_available % self.depth))[0]
        self.next_available = self.next_available + 1 & 0xFFFF
        try:
            return self._chain(head)
        except GuestFault as fault:
            where = f"{self._name}, chain {self.next_available} at {head}, {waiting - 1} more wait"
            raise GuestFault(f"{fault} ({where})") from fault

    def _waiting(self) -> int:
        count: int = _U16.unpack_from(self._available, 2)[0] - self.next_available & 0xFFFF
        if count > self.depth:
            raise GuestFault(f"the driver claims {count} chains in a queue of {self.depth}")
        return count

    def unpop(self) -> None:
        """Put the chain that was popped last back, untouched: there is no room for it now."""
        self.next_available = self.next_available - 1 & 0xFFFF

    def _chain(self, head: int) -> Chain:
        chain = Chain(head)
        table, depth, index = self._table, self.depth, head
        inside, total = False, 0
        while True:
            if index >= depth:
                raise GuestFault(f"descriptor {index} of a table of {depth}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & INDIRECT:
                if inside:
                    raise GuestFault("an indirect table in an indirect table")
                table, depth = self._open(address, length, flags)
                index, inside = 0, True
                continue
            total += 1
            if total > self.depth:  # 2.7.5.3.1: also an indirect table is no longer than the queue
                raise GuestFault(f"a chain of more than {self.depth} descriptors: a loop")
            self._buffer(chain, address, length, flags)
            if not flags & NEXT:
                return chain
            index = following

    def _open(self, address: int, length: int, flags: int) -> tuple[memoryview, int]:
        """An indirect table, in which the rest of a chain lies: the whole chain, or what follows others. 2.7.5.3."""
        if not self._indirect or flags & NEXT:
            raise GuestFault("an indirect table where there must be none")
        if length % 16 or not 0 < length <= 16 * self.depth:
            raise GuestFault(f"an indirect table of {length} bytes")
        return self._memory.read(address, length), length // 16

    def _buffer(self, chain: Chain, address: int, length: int, flags: int) -> None:
        if flags & WRITE:
            chain.writable.append(self._memory.writable(address, length))
        elif chain.writable:
            raise GuestFault("a buffer to read behind one to write")  # 2.7.4.2
        else:
            chain.readable.append(self._memory.read(address, length))

    # Giving back

    def push(self, chain: Chain, written: int = 0) -> None:
        """Give a chain back, with the count of bytes that were written into it, from its beginning."""
        self.push_together(((chain, written),))

    def push_together(self, chains: Iterable[tuple[Chain, int]]) -> None:
        """Give several back that belong together, each with its count: a driver that looks meanwhile sees all or none.
        2.7.8."""
        for chain, written in chains:
            _USED.pack_into(self._used, 4 + 8 * (self.next_used % self.depth), chain.head, written)
            self.next_used = self.next_used + 1 & 0xFFFF
        if not _TSO:
            self._fence()
        self._indices[1] = self.next_used

    def signal(self) -> None:
        """Tell the driver of what was pushed since the last time, where it wants to be told. 2.7.7."""
        before, self._signalled = self._signalled, self.next_used
        if before == self.next_used:
            return
        self._fence()
        if self._events:
            wanted = _U16.unpack_from(self._available, 4 + 2 * self.depth)[0]
            if self.next_used - wanted - 1 & 0xFFFF >= self.next_used - before & 0xFFFF:
                return
        elif _U16.unpack_from(self._available, 0)[0] & NO_INTERRUPT:
            return
        self._line.fire()

    # Going on elsewhere

    def save(self) -> tuple[int, int]:
        """The two counters; everything else lies in the guest's memory."""
        return self.next_available, self.next_used

    def used_index(self) -> int:
        """How far the used ring was filled, as the driver sees it: after a back end elsewhere has served the queue."""
        index: int = _U16.unpack_from(self._used, 2)[0]
        return index

    @property
    def untouched(self) -> bool:
        """Whether the driver has never offered anything in it: then nobody can have answered either."""
        offered: int = _U16.unpack_from(self._available, 2)[0]
        return not offered

    def restore(self, next_available: int, next_used: int) -> None:
        """Take what ``save`` gave."""
        self.next_available, self.next_used, self._signalled = next_available, next_used, next_used


class Unused(Queue):
    """A queue that the driver did not set up: nothing ever comes, and nobody is told."""

    def __init__(self, line: Line) -> None:
        self.depth, self._line, self.addresses = 0, line, (0, 0, 0)
        self.next_available = self.next_used = self._signalled = 0
        self.bell, self.carried = -1, False

    @property
    def untouched(self) -> bool:
        """Always."""
        return True

    def pop(self) -> Chain | None:
        """Nothing."""
        return None

    def push_together(self, chains: Iterable[tuple[Chain, int]]) -> None:
        """Not for chains of another queue."""
        raise AssertionError("a chain for a queue without a driver")

    def signal(self) -> None:
        """Nobody."""
