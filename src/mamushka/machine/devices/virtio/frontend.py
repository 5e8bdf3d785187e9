"""What a device keeps that another process serves: the socket to it, and the eventfds by which it interrupts.

The socket's owner decides nothing: what is said, and what an answer means, is machine/vhost_user.py's.
"""

from __future__ import annotations

import _socket
import os
from struct import pack

from mamushka.errors import Invalid, Unavailable, Unsupported
from mamushka.machine import vhost_user
from mamushka.machine.vhost_user import Message, Ring, Shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.machine.devices.virtio.queue import Queue
    from mamushka.machine.loop import Loop
    from mamushka.machine.memory import Memory
    from mamushka.machine.vcpu import Line

# Answers take microseconds, a back end's start milliseconds. A machine that waited longer shall say for what.
PATIENCE = 10.0


def shared_memory(memory: Memory) -> tuple[Shared, ...]:
    """What of the guest's memory another process can be given. Unsupported where that is not all of its RAM.

    Images of layers are not handed over: they are read-only, and back ends map what they get for writing. So a guest
    cannot let a device read straight from one (O_DIRECT out of a mapped file); through its page cache it can.
    """
    for region in memory:
        if region.kind == "ram" and not (region.shared and region.fd >= 0):
            raise Unsupported(
                f"memory {region.name} at {region.start:#x} is private to this process, and cannot be given to another",
                hint="shared directories need a machine that starts afresh: it cannot be a fork or a restored one",
            )
    found = (region for region in memory if region.kind == "ram")
    return tuple(Shared(region.start, region.length, region.offset, region.fd) for region in found)


class Calls:
    """Eventfds that raise lines: a line's own where it has one, else one that the loop waits for."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._ours: list[int] = []

    def of(self, line: Line) -> int:
        """The eventfd for a line."""
        if line.fd >= 0:
            return line.fd
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

        def called(_: int) -> None:
            os.eventfd_read(fd)
            line.fire()

        self._ours.append(fd)
        self._loop.watch(fd, called)
        return fd

    def close(self) -> None:
        """Wait for them no more."""
        while self._ours:
            fd = self._ours.pop()
            self._loop.forget(fd)
            os.close(fd)


class Frontend:
    """A connection to a vhost-user back end. Owns the socket. Unavailable where the other side breaks off."""

    def __init__(self, socket: _socket.socket, name: str) -> None:
        """Greet it. ``socket`` has a timeout, ``name`` is for errors; what it offers is in ``features``."""
        self._socket, self._name = socket, name
        self._acknowledges = False
        self._running: tuple[int, ...] = ()
        self.features = vhost_user.number(self._send(vhost_user.question(vhost_user.GET_FEATURES)))
        self._send(Message(vhost_user.SET_OWNER))
        if self.features >> vhost_user.F_PROTOCOL_FEATURES & 1:
            offered = vhost_user.number(self._send(vhost_user.question(vhost_user.GET_PROTOCOL_FEATURES)))
            chosen = offered & (1 << vhost_user.PROTOCOL_F_REPLY_ACK)
            self._send(vhost_user.statement(vhost_user.SET_PROTOCOL_FEATURES, chosen))
            self._acknowledges = bool(chosen)

    @property
    def fd(self) -> int:
        """To be watched while nothing is asked: it becomes readable when the back end is gone."""
        return self._socket.fileno()

    def start(self, memory: Sequence[Shared], features: int, queues: Sequence[Queue], calls: Calls) -> None:
        """Hand the queues over, but for those that the driver has not set up."""
        self._send(vhost_user.statement(vhost_user.SET_FEATURES, vhost_user.agree(self.features, features)))
        self._send(vhost_user.memory_table(memory))
        for index, queue in enumerate(queues):
            if not queue.depth:
                continue
            base, _ = queue.save()
            call = calls.of(queue.line)
            ring = Ring(index, queue.depth, *queue.addresses, base=base, kick=queue.bell, call=call)
            for message in vhost_user.ring_messages(ring):
                if message.request != vhost_user.SET_VRING_ENABLE or self.features >> 30 & 1:
                    self._send(message)
            self._running += (index,)
            queue.carried = True

    def stop(self, queues: Sequence[Queue]) -> None:
        """Take the queues back, as far as the back end came."""
        running, self._running = self._running, ()
        for index in running:
            base = vhost_user.ring_base(self._send(vhost_user.stop_ring(index)), index)
            queues[index].restore(base, queues[index].used_index())

    def close(self) -> None:
        """Hang up, which ends most back ends."""
        self._socket.close()

    def _send(self, message: Message) -> bytes:
        """Say it; the answer's payload, empty where there is none."""
        ancillary = []
        if message.fds:
            ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(message.fds)}i", *message.fds))]
        data = vhost_user.encode(message, acknowledge=self._acknowledges)
        try:
            if self._socket.sendmsg([data], ancillary) != len(data):
                raise Unavailable(f"{self._name} takes no more messages")
            if not message.answer and not self._acknowledges:
                return b""
            vhost_user.check_header(self._receive(vhost_user.HEADER), message)
            payload = self._receive(message.answer or 8)
            if not message.answer:
                vhost_user.check_success(payload, message)
        except (OSError, Invalid) as error:
            raise Unavailable(f"{self._name} does not do as it should: {error}") from error
        return payload

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._socket.recv(length - len(data))
            if not more:
                raise Unavailable(f"{self._name} has ended")
            data += more
        return data
