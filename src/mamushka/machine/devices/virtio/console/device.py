"""The console: configuration, control messages, and its ports. See __init__.py."""

from __future__ import annotations

from collections import deque
from struct import Struct

from mamushka import trace
from mamushka.errors import Invalid
from mamushka.machine.devices.virtio.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import ClassVar

    from mamushka.machine.devices.virtio.console.port import Port
    from mamushka.machine.devices.virtio.queue import Chain, Queue
    from mamushka.machine.loop import Loop

PORTS_MAX = 8  # queues are made for all of them
SIZE, MULTIPORT, EMERGENCY_WRITE = 0, 1, 2  # feature bits
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3  # queues
DEVICE_READY, DEVICE_ADD, DEVICE_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)
EMERGENCY_AT = 8  # in the configuration: a character, without queues
# Messages that wait for the driver's buffers: what all ports have to say, a few times over. A driver that asks again
# and again and never makes room gets no more.
PENDING_MAX = 128
NAME_MAX = 64

_CONFIG = Struct("<HHII")
_MESSAGE = Struct("<IHH")
_SIZE = Struct("<HH")
_SAVED = Struct("<HHHHH")  # version, ready, columns, rows, ports
_SAVED_PORT = Struct("<?I")
SAVED_VERSION = 1


def _names() -> tuple[str, ...]:
    ports = [f"{way}(port{index})" for index in range(PORTS_MAX) for way in ("receiveq", "transmitq")]
    return (*ports[:2], "control receiveq", "control transmitq", *ports[2:])


class Console(Device):
    """A terminal and named streams: the first of ``ports`` is the terminal."""

    device_id: ClassVar[int] = 3
    queues: ClassVar[tuple[str, ...]] = _names()
    depth: ClassVar[int] = 64
    features = 1 << SIZE | 1 << MULTIPORT | 1 << EMERGENCY_WRITE

    def __init__(self, ports: Sequence[Port], *, columns: int = 80, rows: int = 24) -> None:
        if not 1 <= len(ports) <= PORTS_MAX:
            raise Invalid(f"a console with {len(ports)} ports: there may be 1 to {PORTS_MAX}")
        if any(not port.name or len(port.name.encode()) > NAME_MAX for port in ports[1:]):
            raise Invalid(f"a port of a console has no name, or one of more than {NAME_MAX} bytes")
        self.ports = tuple(ports)
        self.columns, self.rows = columns, rows
        self._ready = False  # the driver takes control messages
        self._pending: deque[bytes] = deque()
        for index, port in enumerate(self.ports):
            port.ended = self._ending(index)

    def config(self) -> bytes:
        """Size, count of ports, and the register of emergency writes, which reads as zero."""
        return _CONFIG.pack(self.columns, self.rows, len(self.ports), 0)

    def configure(self, offset: int, data: bytes) -> None:
        """5.3.4: a character for the terminal before, or without, a driver."""
        if offset == EMERGENCY_AT:
            self.ports[0].say(data[:1])

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        """Without MULTIPORT there is the terminal alone, and nobody says when it is open."""
        super().start(queues, features, loop)
        several = features >> MULTIPORT & 1
        for index, port in enumerate(self.ports if several else self.ports[:1]):
            first = _first(index)
            port.start(queues[first], queues[first + 1], loop, terminal=index == 0)
            port.open = port.open or not several
            port.listen()

    def stop(self) -> None:
        """All ports are closed."""
        for port in self.ports:
            port.stop()
        self._pending.clear()
        self._ready = False
        super().stop()

    def close(self) -> None:
        """Sinks get what is left."""
        for port in self.ports:
            port.close()

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now. In the loop's thread."""
        self.columns, self.rows = columns, rows
        self.changed()
        if self._ready:
            self._send(0, RESIZE, 0, self._size())

    def _size(self) -> bytes:
        # 5.3.6.2. Linux from 2.6.35 read them the other way round, until 5326ab737a47 (6.15), which older kernels that
        # are still looked after have too; in a kernel without it the two are swapped.
        return _SIZE.pack(self.columns, self.rows)

    def notify(self, index: int) -> None:
        """A port's queue, or a control queue."""
        if index == CONTROL_TRANSMIT:
            queue = self.started[index]
            for chain in queue.serve():
                self._take(chain)
                queue.push(chain)
            queue.signal()
        elif index == CONTROL_RECEIVE:
            self._flush()
        else:
            port = self.ports[index // 2 - (index > CONTROL_TRANSMIT)] if _exists(index, len(self.ports)) else None
            if port is not None and index % 2:
                port.transmit()
            elif port is not None:
                port.listen()

    # Control messages

    def _take(self, chain: Chain) -> None:
        if chain.readable_length < _MESSAGE.size:
            return  # 5.3.6.2 knows no shorter ones
        port, event, value = _MESSAGE.unpack(chain.take(_MESSAGE.size))
        if event == DEVICE_READY and value:
            self._ready = True
            for index in range(len(self.ports)):
                self._send(index, DEVICE_ADD, 1)
        elif port >= len(self.ports):
            trace.event("console.port", port=port, control=event)
        elif event == PORT_READY and value:
            self._introduce(port)
        elif event == PORT_OPEN:
            self.ports[port].open = bool(value)
            self.ports[port].listen()

    def _introduce(self, index: int) -> None:
        if index == 0:
            self._send(index, CONSOLE_PORT, 1)
            self._send(index, RESIZE, 0, self._size())
        else:
            self._send(index, PORT_NAME, 1, self.ports[index].name.encode())
        self._send(index, PORT_OPEN, 1)

    def _ending(self, index: int) -> Callable[[], None]:
        def ended() -> None:
            if self._ready and index:  # a terminal without a keyboard still is one
                self._send(index, PORT_OPEN, 0)

        return ended

    def _send(self, port: int, event: int, value: int, more: bytes = b"") -> None:
        if len(self._pending) >= PENDING_MAX:
            trace.event("console.pending", port=port, control=event)
            return
        self._pending.append(_MESSAGE.pack(port, event, value) + more)
        self._flush()

    def _flush(self) -> None:
        queue = self.started[CONTROL_RECEIVE]
        while self._pending:
            chain = queue.pop()
            if chain is None:
                break
            queue.push(chain, chain.fill(self._pending.popleft()))
        queue.signal()

    # Going on elsewhere

    def save(self) -> dict[str, bytes]:
        """Who is open, and what was begun; messages that wait, each with its length."""
        head = _SAVED.pack(SAVED_VERSION, self._ready, self.columns, self.rows, len(self.ports))
        ports = b"".join(_SAVED_PORT.pack(port.open, port.skip) for port in self.ports)
        return {"ports": head + ports, "pending": b"".join(bytes((len(item),)) + item for item in self._pending)}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Invalid for a console with other ports."""
        raw, pending = state["ports"], state["pending"]
        if len(raw) != _SAVED.size + len(self.ports) * _SAVED_PORT.size:
            raise Invalid(f"the state of a console with other ports than {len(self.ports)}")
        version, ready, self.columns, self.rows, _ = _SAVED.unpack_from(raw)
        if version != SAVED_VERSION:
            raise Invalid(f"the state of a console in version {version}, not {SAVED_VERSION}")
        self._ready = bool(ready)
        for index, port in enumerate(self.ports):
            port.open, port.skip = _SAVED_PORT.unpack_from(raw, _SAVED.size + index * _SAVED_PORT.size)
        while pending:
            self._pending.append(pending[1 : 1 + pending[0]])
            pending = pending[1 + pending[0] :]


def _first(port: int) -> int:
    """5.3.2: the receive queue of a port; the control queues stand behind the first port's."""
    return 0 if port == 0 else 2 * port + 2


def _exists(index: int, ports: int) -> bool:
    return index < 2 or CONTROL_TRANSMIT < index < 2 * ports + 2
