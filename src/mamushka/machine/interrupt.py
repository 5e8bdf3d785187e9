"""The I/O APIC of x86 machines: which line raises which vector on which processor. Intel 82093AA, datasheet.

The local APICs are the executor's. This half, 24 pins with a redirection entry each, is programmed a few times while
an operating system boots and never touched again: every entry is turned into the message that it means, and whoever
raises a line, sends the message (under KVM the kernel itself, by an eventfd). Lines are edge-triggered, so nothing has
to be said at the end of an interrupt.
"""

from __future__ import annotations

import threading
from struct import Struct

from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    # What lines mean from now on; None: nothing.
    Route = Callable[[Mapping[int, "Message | None"]], None]

PINS = 24
BASE, LENGTH = 0xFEC00000, 0x1000

_SELECT, _WINDOW = 0x00, 0x10
_ID, _VERSION, _ARBITRATION, _TABLE = 0x00, 0x01, 0x02, 0x10
_MASKED = 1 << 16
_READ_ONLY = 1 << 12 | 1 << 14  # delivery status, remote IRR
_STATE = Struct("<II24Q")


@value
class Message:
    """An interrupt as a write on the bus. Intel SDM volume 3, 11.11."""

    address: int
    data: int


def message(entry: int) -> Message | None:
    """What a redirection entry means; None while it is masked."""
    if entry & _MASKED:
        return None
    destination, logical = entry >> 56 & 0xFF, entry >> 11 & 1
    # The same fields as in a message, in other places: vector 0-7, delivery mode 8-10, level 14, trigger mode 15.
    data = entry & 0x7FF | (entry >> 15 & 1) << 15 | 1 << 14
    return Message(0xFEE00000 | destination << 12 | logical << 2, data)


class IoApic:
    """Registers of the I/O APIC. ``route`` is told what lines mean from now on, all that change at once.

    It says that it has the pins up to the last one that anything is connected to: Linux looks at each several times
    while it boots, ten exits for every pin.
    """

    def __init__(self, route: Route) -> None:
        self._lock = threading.Lock()  # guards all below: any virtual CPU may write
        self._route = route
        self._selected = 0
        self._id = 0
        self._pins = 1
        self._entries = [_MASKED] * PINS

    def connect(self, pin: int) -> None:
        """Something will raise this pin; told before the guest begins."""
        self._pins = max(self._pins, pin + 1)

    def read(self, offset: int, size: int) -> int:
        """The register that was selected, or which one that is."""
        with self._lock:
            if offset == _SELECT:
                return self._selected
            return self._register(self._selected) if offset == _WINDOW else 0

    def _register(self, index: int) -> int:
        if index in (_ID, _ARBITRATION):
            return self._id << 24
        if index == _VERSION:
            return 0x11 | self._pins - 1 << 16  # 0x11: what older kernels know
        pin, high = divmod(index - _TABLE, 2)
        return self._entries[pin] >> 32 * high & 0xFFFFFFFF if 0 <= pin < PINS else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a register, or change the one that was selected."""
        with self._lock:
            if offset == _SELECT:
                self._selected = value & 0xFF
            elif offset == _WINDOW:
                self._change(self._selected, value & 0xFFFFFFFF)

    def _change(self, index: int, value: int) -> None:
        if index == _ID:
            self._id = value >> 24 & 0xF
            return
        pin, high = divmod(index - _TABLE, 2)
        if not 0 <= pin < PINS:
            return
        before = self._entries[pin]
        low, upper = before & 0xFFFFFFFF, before >> 32
        after = low | value << 32 if high else value & ~_READ_ONLY | upper << 32
        self._entries[pin] = after
        if message(before) != message(after):
            self._route({pin: message(after)})

    def save(self) -> bytes:
        """The state: selected register, id, entries."""
        with self._lock:
            return _STATE.pack(self._selected, self._id, *self._entries)

    def restore(self, state: bytes) -> None:
        """Take what ``save`` gave, and tell what every line means."""
        with self._lock:
            self._selected, self._id, *self._entries = _STATE.unpack(state)
            self._route({pin: message(entry) for pin, entry in enumerate(self._entries)})
