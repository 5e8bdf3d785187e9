"""Frames between a tap and two rings, moved by this process: the slow path, for hosts without vhost-net.

A frame is read straight into the guest's buffers, and written straight out of them. What it costs is one system call
for each frame and one interrupt for each batch; with large segments (TSO) a frame is up to 64 KiB.

With mergeable buffers a frame goes over as many chains as it needs (5.1.6.4.1), and how many is known only once it has
been read. So chains wait in ``_room``, popped and unused, and a frame is read into all of them at once; behind them
lies a tail of our own for what does not fit. A frame that ran into the tail waits (``_held``) until the driver has
given more room. While there is none the tap is not looked at: the kernel queues for us, and drops when that is full.
"""

from __future__ import annotations

import os
from collections import deque

from mamushka import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.devices.virtio.queue import Chain, Queue
    from mamushka.machine.loop import Loop

HEADER = 12  # bytes of virtio_net_hdr before each frame. 5.1.6
_BUFFERS = 10  # where in it the count of chains stands, two bytes
# The largest segment that TSO makes is 64 KiB with its IP header; the Ethernet header and two VLAN tags come to it.
FRAME_MAX = HEADER + 65536 + 14 + 8
_FRAME_MIN = 14  # an Ethernet header
# Frames in a row before others get their turn: about a millisecond's.
_BATCH = 64
# readv(2) takes 1024 pieces: these, one more chain of a whole ring, and the tail.
_PIECES_MAX = 700
_CHAIN_MAX = 1023


class Counts:
    """Frames and bytes of frames, without their headers; what was given up counts as dropped. From any thread."""

    __slots__ = ("rx_bytes", "rx_dropped", "rx_frames", "tx_bytes", "tx_dropped", "tx_frames")

    def __init__(self) -> None:
        self.rx_frames = self.rx_bytes = self.rx_dropped = 0
        self.tx_frames = self.tx_bytes = self.tx_dropped = 0

    def all(self) -> dict[str, int]:
        """By name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Receiver:
    """From the tap to the guest. ``mergeable`` tells whether a frame may go over several chains."""

    def __init__(self, tap: int, queue: Queue, loop: Loop, counts: Counts, *, mergeable: bool) -> None:
        self._tap, self._queue, self._loop, self._counts = tap, queue, loop, counts
        self._mergeable = mergeable
        self._room: deque[Chain] = deque()
        self._free = self._pieces = 0  # bytes in it, and the buffers that make them up
        self._tail = bytearray(FRAME_MAX)
        self._held = b""
        self._watching = False
        self.refilled()

    def refilled(self) -> None:
        """The driver gave buffers: go on with what was held, and look at the tap again."""
        self._fill()
        if self._held and self._place_held():
            self._queue.signal()
        if self._room and not self._held and not self._watching:
            self._watching = True
            self._loop.watch(self._tap, self._ready)

    def _fill(self) -> None:
        """Pop chains until a frame of any size fits, or there are no more."""
        while self._free < FRAME_MAX and self._pieces < _PIECES_MAX:
            chain = self._queue.pop()
            if chain is None:
                return
            length = chain.writable_length
            if length < HEADER + _FRAME_MIN or len(chain.writable) > _CHAIN_MAX - _PIECES_MAX:
                self._queue.push(chain)  # nothing would fit; it goes back empty
                continue
            self._room.append(chain)
            self._free += length
            self._pieces += len(chain.writable)

    def _rest(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.forget(self._tap)

    def _ready(self, _events: int) -> None:
        for _ in range(_BATCH):
            self._fill()
            if not self._room:
                self._rest()
                break
            try:
                length = os.readv(self._tap, self._buffers())
            except BlockingIOError:
                break
            except OSError as error:  # the link is down, or gone with its namespace: there is nothing more to come
                trace.event("net.tap", error=str(error))
                self._rest()
                break
            if not self._take(length):
                self._rest()
                break
        self._queue.signal()

    def _buffers(self) -> list[memoryview | bytearray]:
        """Where a frame is read into."""
        chains = self._room if self._mergeable else (self._room[0],)
        return [*(view for chain in chains for view in chain.writable), self._tail]

    def _take(self, length: int) -> bool:
        """Give the chains back that a frame has filled; False where it did not fit and waits."""
        if not self._mergeable:
            chain = self._pop()
            room = chain.writable_length
            if length > room:  # 5.1.6.3.1: the driver gave too little for what it agreed to
                self._counts.rx_dropped += 1
                self._queue.push(chain)
                return True
            self._finish([(chain, length)], length)
            return True
        used, rest = self._cover(length)
        if rest:
            # Put it together again before the guest gets its buffers for something else.
            whole = b"".join(view for chain in self._room for view in chain.writable)
            self._held = whole + bytes(self._tail[: length - len(whole)])
            return self._place_held()
        self._finish(used, length)
        return True

    def _pop(self) -> Chain:
        chain = self._room.popleft()
        self._free -= chain.writable_length
        self._pieces -= len(chain.writable)
        return chain

    def _cover(self, length: int) -> tuple[list[tuple[Chain, int]], int]:
        """(the chains that ``length`` bytes fill and how far, what is left over): taken only where nothing is."""
        if length > self._free:
            return [], length - self._free
        used = []
        while length > 0:
            chain = self._pop()
            count = min(chain.writable_length, length)
            used.append((chain, count))
            length -= count
        return used, 0

    def _place_held(self) -> bool:
        """Copy the frame that waits, where there is room for it by now; drop it where there can never be."""
        frame = self._held
        self._fill()
        used, rest = self._cover(len(frame))
        if rest:
            if self._pieces < min(self._queue.depth, _PIECES_MAX):
                return False
            self._held = b""  # the whole ring is too small for it
            self._counts.rx_dropped += 1
            return True
        self._held, start = b"", 0
        for chain, count in used:
            chain.fill(frame[start : start + count])
            start += count
        self._finish(used, len(frame))
        return True

    def _finish(self, used: list[tuple[Chain, int]], length: int) -> None:
        used[0][0].fill(len(used).to_bytes(2, "little"), skip=_BUFFERS)
        # A driver that polls takes the rest of a frame for lost where it sees the first part alone.
        self._queue.push_together(used)
        self._counts.rx_frames += 1
        self._counts.rx_bytes += length - HEADER

    def stop(self) -> None:
        """Look at the tap no more; what was popped and not used is put back. ``refilled`` goes on."""
        self._rest()
        while self._room:
            self._room.pop()
            self._queue.unpop()
        self._free = self._pieces = 0


class Sender:
    """From the guest to the tap."""

    def __init__(self, tap: int, queue: Queue, counts: Counts) -> None:
        self._tap, self._queue, self._counts = tap, queue, counts

    def serve(self) -> None:
        """Send all that waits."""
        counts = self._counts
        for chain in self._queue.serve():
            length = chain.readable_length
            if HEADER + _FRAME_MIN <= length <= FRAME_MAX and len(chain.readable) <= _CHAIN_MAX:
                try:
                    os.writev(self._tap, chain.readable)
                    counts.tx_frames += 1
                    counts.tx_bytes += length - HEADER
                except OSError:  # the header is nonsense, the link is down, its queue is full: as on a wire, it is lost
                    counts.tx_dropped += 1
            else:
                counts.tx_dropped += 1
            self._queue.push(chain)
        self._queue.signal()
