"""A serial port: a 16550A as Linux's 8250 driver and older ones know it. National Semiconductor PC16550D.

A virtual CPU's thread reads and writes the registers and never waits: what it sends goes into a buffer, what it
receives comes from one. The loop's thread moves between the buffers and the host:

    THR -> sink.py (bounded; what does not fit is dropped and counted) -> loop -> sink
    source -> loop, while there is room -> incoming (the FIFO of 16) -> RBR

The line's speed is nobody's: a byte is sent at once, so the transmitter is always empty. The interrupt is edge
triggered: the line is fired when a first cause comes, and drivers look until there is none (IIR says so).
"""

from __future__ import annotations

import os
import threading
from struct import Struct

from mamushka import trace
from mamushka.errors import Invalid
from mamushka.machine.devices.sink import Sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mamushka.machine.loop import Loop
    from mamushka.machine.vcpu import Line

__all__ = ["LENGTH", "Serial"]

LENGTH = 8  # ports

# Registers. With DLAB in LCR the first two are the divisor.
DATA, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH = range(8)
FCR = IIR  # written

IER_RECEIVED, IER_SENT, IER_ERRORS, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_SENT, IIR_RECEIVED, IIR_FIFO = 1, 2, 4, 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVED = 1, 2
LCR_DLAB = 0x80
MCR_LOOP = 0x10
LSR_READY, LSR_EMPTY = 1, 0x60  # received data; transmitter and its FIFO are empty
MSR_CONNECTED = 0xB0  # carrier, data set ready, clear to send

FIFO = 16

_SAVED = Struct("<BBBBBBH?")
SAVED_VERSION = 1


class Serial:
    """The registers, between a guest and ``sink``: a descriptor or a function, called in the loop's thread.

    ``source`` is a descriptor to read from, or -1. Descriptors stay their owner's; they are two (``dup``), as each is
    watched by itself, and do not block.
    """

    def __init__(self, line: Line, loop: Loop, sink: int | Callable[[bytes], object], source: int = -1) -> None:
        self._line, self._loop, self._sink, self._source = line, loop, Sink(loop, sink), source
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()  # guards all that follows
        self._incoming = bytearray()
        self._ier = self._fcr = self._lcr = self._mcr = self._scratch = 0
        self._divisor = 12  # 9600 baud, the power-up habit of firmware; it changes nothing
        self._sent = False  # the cause "transmitter is empty" was not looked at yet
        self._asserted = False
        loop.watch(self._wake, self._woken)
        self._nudge()

    @property
    def dropped(self) -> int:
        """Bytes that nobody took in time."""
        return self._sink.dropped

    def drain(self, seconds: float) -> bool:
        """Wait until the sink has taken all that the guest said, for a while at most; whether it has."""
        return self._sink.drain(seconds)

    # Registers, in the threads of virtual CPUs

    def read(self, offset: int, size: int) -> int:
        """One register; a wider access sees the first."""
        with self._lock:
            value = self._read(offset)
            self._raise()
        return value

    def _read(self, offset: int) -> int:
        if offset == DATA:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._take()
        if offset == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == IIR:
            return self._cause_read()
        if offset == LSR:
            return LSR_EMPTY | (LSR_READY if self._incoming else 0)
        if offset == MSR:
            return self._modem()
        return {LCR: self._lcr, MCR: self._mcr, SCRATCH: self._scratch}.get(offset, 0)

    def _take(self) -> int:
        if not self._incoming:
            return 0
        value = self._incoming.pop(0)
        if not self._incoming:
            self._nudge()  # there is room again
        return value

    def _modem(self) -> int:
        """In loop mode the four outputs are the four inputs: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD."""
        mcr = self._mcr
        if not mcr & MCR_LOOP:
            return MSR_CONNECTED
        return (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4

    def _cause(self) -> int:
        if self._incoming and self._ier & IER_RECEIVED:
            return IIR_RECEIVED
        if self._sent and self._ier & IER_SENT:
            return IIR_SENT
        return IIR_NONE

    def _cause_read(self) -> int:
        cause = self._cause()
        if cause == IIR_SENT:
            self._sent = False
        return cause | (IIR_FIFO if self._fcr & FCR_ENABLE else 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """One register; of a wider access the first byte counts."""
        with self._lock:
            self._write(offset, value & 0xFF)
            self._raise()

    def _write(self, offset: int, value: int) -> None:
        if offset == DATA and self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | value
        elif offset == DATA:
            self._send(value)
        elif offset == IER and self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
        elif offset == IER:
            self._sent = self._sent or bool(value & ~self._ier & IER_SENT)
            self._ier = value & 0xF
        elif offset == FCR:
            self._fcr = value
            if value & FCR_CLEAR_RECEIVED and self._incoming:
                self._incoming.clear()
                self._nudge()
        elif offset == LCR:
            self._lcr = value
        elif offset == MCR:
            self._mcr = value & 0x1F
        elif offset == SCRATCH:
            self._scratch = value

    def _send(self, value: int) -> None:
        self._sent = True
        if self._mcr & MCR_LOOP:
            if len(self._incoming) < FIFO:
                self._incoming.append(value)
        else:
            self._sink.say(bytes((value,)))

    def _raise(self) -> None:
        asserted = self._cause() != IIR_NONE
        before, self._asserted = self._asserted, asserted
        if asserted and not before:
            self._line.fire()

    def _nudge(self) -> None:
        os.eventfd_write(self._wake, 1)

    # In the loop's thread

    def _woken(self, _events: int) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        if self._source >= 0:
            self._listen()

    def _listen(self) -> None:
        try:
            self._loop.watch(self._source, self._receive)
        except PermissionError:  # a file, or nothing at all: always ready
            self._receive(0)

    def _receive(self, _events: int) -> None:
        with self._lock:
            room = FIFO - len(self._incoming)
        if room <= 0:
            self._loop.forget(self._source)  # until the guest has taken some
            return
        try:
            data = os.read(self._source, room)
        except BlockingIOError:
            return
        except OSError as error:
            trace.event("serial.source", error=str(error))
            data = b""
        if not data:
            self._loop.forget(self._source)
            self._source = -1
            return
        with self._lock:
            self._incoming += data
            self._raise()

    # Going on elsewhere

    def save(self) -> dict[str, bytes]:
        """Registers and what was received; what was said has left. While no virtual CPU runs."""
        with self._lock:
            registers = self._ier, self._fcr, self._lcr, self._mcr, self._scratch, self._divisor, self._sent
            return {"registers": _SAVED.pack(SAVED_VERSION, *registers), "incoming": bytes(self._incoming)}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take what ``save`` gave. Invalid for another version."""
        raw = state["registers"]
        if len(raw) != _SAVED.size or raw[0] != SAVED_VERSION:
            raise Invalid(f"the state of a serial port in version {raw[:1].hex()}, not {SAVED_VERSION}")
        with self._lock:
            _, self._ier, self._fcr, self._lcr, self._mcr, self._scratch, self._divisor, self._sent = _SAVED.unpack(raw)
            self._incoming = bytearray(state["incoming"][:FIFO])
            self._asserted = self._cause() != IIR_NONE  # the edge was there before

    def close(self) -> None:
        """Watch nothing any more."""
        self._sink.close()
        for fd in (self._wake, self._source):
            if fd >= 0:
                self._loop.forget(fd)
        os.close(self._wake)
