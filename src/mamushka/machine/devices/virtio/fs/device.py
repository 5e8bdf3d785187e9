"""A directory of the host's as a filesystem of the guest's: FUSE requests in a ring. VIRTIO 1.2, section 5.11.

The requests are served by virtiofsd, to which the queues are handed over (vhost-user): not a byte comes through here.
Its tables of what the guest has open live in that process, so a machine that uses such a device cannot be saved or
forked. One that has not mounted it yet has said nothing to that process, and goes on with another one.
"""

from __future__ import annotations

from mamushka import trace
from mamushka.errors import Invalid, Unavailable, Unsupported
from mamushka.machine.devices.virtio.device import Device
from mamushka.machine.devices.virtio.frontend import Calls, Frontend, shared_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar

    from mamushka.machine.devices.virtio.fs.virtiofsd import Virtiofsd
    from mamushka.machine.devices.virtio.queue import Queue
    from mamushka.machine.loop import Loop
    from mamushka.machine.memory import Memory

TAG_MAX = 36  # 5.11.4: bytes; shorter ones are padded with zeros, the longest has none


class Fs(Device):
    """Shares what its virtiofsd serves, to be mounted by the name ``tag``. Owns the process."""

    device_id: ClassVar[int] = 26
    # One queue for requests: Debian's virtiofsd serves no more.
    queues: ClassVar[tuple[str, ...]] = ("hiprio", "requests.0")
    # A request has as many pages as fit into its ring: 1 MiB, FUSE's largest, needs more than 256 of them.
    depth: ClassVar[int] = 1024

    def __init__(self, tag: str, server: Virtiofsd, memory: Memory) -> None:
        """The server may still be starting, which takes longer than all else here: it is greeted when it is needed."""
        encoded = tag.encode()
        if not 0 < len(encoded) <= TAG_MAX or b"\0" in encoded:
            raise Invalid(f"the tag {tag!r} of a shared directory: one to {TAG_MAX} bytes")
        self.tag, self._memory, self._server = encoded, memory, server
        shared_memory(memory)  # refuses early
        self._frontend: Frontend | None = None
        self._loop: Loop | None = None
        self._calls: Calls | None = None

    def greet(self) -> Frontend:
        """The connection to the server. Unavailable, with its words, where it could not start."""
        if self._frontend is None:
            socket, self._server.socket = self._server.socket, None
            if socket is None:
                raise self._gone(f"virtiofsd of {self.tag.decode()} has failed before")
            try:
                self._frontend = Frontend(socket, f"virtiofsd of {self.tag.decode()}")
            except Unavailable as error:
                socket.close()
                raise self._gone(str(error)) from error
        return self._frontend

    def config(self) -> bytes:
        """tag and num_request_queues. 5.11.4."""
        return self.tag.ljust(TAG_MAX, b"\0") + (len(self.queues) - 1).to_bytes(4, "little")

    def start(self, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        super().start(queues, features, loop)
        frontend = self.greet()
        self._loop, self._calls = loop, Calls(loop)
        frontend.start(shared_memory(self._memory), features, queues, self._calls)
        loop.watch(frontend.fd, self._hung_up)
        loop.watch(self._server.said, self._said)

    def stop(self) -> None:
        if self._loop is None or self._calls is None or self._frontend is None:
            return
        self._loop.forget(self._frontend.fd)
        self._loop.forget(self._server.said)
        try:
            self._frontend.stop(self.started)
        except Unavailable as error:  # gone: that ends a machine that runs, and is nothing new to one that ends
            trace.event("fs.stopped", tag=self.tag.decode(), error=str(error))
        self._calls.close()
        self._loop = self._calls = None
        super().stop()

    def save(self) -> dict[str, bytes]:
        if all(queue.untouched for queue in self.started):
            return {}
        raise Unsupported(
            f"a machine with the shared directory {self.tag.decode()} cannot be saved: its open files are virtiofsd's",
            hint="save machines whose files are all in their image and their own disk",
        )

    def close(self) -> None:
        if self._frontend is not None:
            self._frontend.close()
        self._server.close()

    def _said(self, _: int) -> None:
        words = self._server.hear()
        if words:
            trace.event("virtiofsd.said", tag=self.tag.decode(), words=words)
        elif self._loop is not None:  # closed: the connection's end follows
            self._loop.forget(self._server.said)

    def _hung_up(self, _: int) -> None:
        """It says nothing unasked: the connection is closed. A guest would wait for ever, so it ends."""
        raise self._gone(f"virtiofsd of {self.tag.decode()} has ended")

    def _gone(self, why: str) -> Unavailable:
        words = self._server.words()
        return Unavailable(f"{why}: {words}" if words else why)
