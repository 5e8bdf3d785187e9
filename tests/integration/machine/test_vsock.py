"""Linux's own vsock driver against our device: megabytes both ways, both closes, refusals, and back pressure."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from mamushka.machine.devices.virtio.vsock import Bridge, Connection, Endpoint, Vsock
from tests.integration.machine.linux_guest import linux, needs_linux

MIB = 1 << 20

pytestmark = [*needs_linux, pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc and libc6-dev")]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vsock") / "vsock"
    source = Path(__file__).with_name("vsock_guest.c")
    subprocess.run(["gcc", "-static", "-O1", "-o", path, source], check=True)
    return path


PIPE = 64 * 1024  # pipe(7): what one holds


class Sink(Endpoint):
    """Checks the pattern, and answers with the count at its end."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.count, self.wrong = 0, 0
        self.since = time.monotonic()
        self.pattern = bytes(at % 251 for at in range(65536 + 251))
        connection.endpoint = self

    def received(self, view: memoryview) -> None:
        start = self.count % 251
        self.wrong += bytes(view) != self.pattern[start : start + len(view)]
        self.count += len(view)
        self.connection.consumed(len(view))

    def ended(self) -> None:
        seconds = time.monotonic() - self.since
        self.connection.send(
            b"host got %d, wrong %d, %.1f MiB/s" % (self.count, self.wrong, self.count / MIB / seconds)
        )
        self.connection.close()


SCRIPT = f"""
vsock refused
vsock send {8 * MIB}
vsock stop
vsock echo
echo the end
"""


def test_linux(program: Path) -> None:
    vsock = Vsock()
    sinks: list[Sink] = []
    vsock.listen(1024, lambda connection: sinks.append(Sink(connection)))
    with linux(SCRIPT, {"vsock": vsock}, ["vmw_vsock_virtio_transport"], {"vsock": program}, vcpus=2) as guest:
        machine = guest.board.machine
        stuck, ours = os.pipe()  # nobody reads, until it is closed
        vsock.listen(1025, lambda connection: _bridge(guest.board.machine.loop, connection, ours))
        guest.start()
        said = guest.until(f"sent {8 * MIB}")
        assert "connect 9: Connection reset by peer" in said, said
        assert f"host got {8 * MIB}, wrong 0" in said, said
        print([line for line in said.splitlines() if "host got" in line])
        guest.until("host got")
        # All that it may send before it hears of credit. What the pipe took belongs to that, where it took it late:
        # so little is not told at once.
        stuck_at = (256 * 1024, 256 * 1024 - PIPE)
        end = time.monotonic() + 20
        while not [connection for connection in vsock.connections if connection.held in stuck_at]:
            held = [connection.held for connection in vsock.connections]
            assert time.monotonic() < end, held
            time.sleep(0.05)
        time.sleep(0.5)  # the guest is stuck, for want of credit
        assert "stopped by" not in guest.said
        (connection,) = vsock.connections
        assert connection.held in stuck_at
        os.close(stuck)
        guest.until("stopped by: Broken pipe")
        guest.until("listening")
        sent = os.urandom(4 * MIB)
        assert _echo(machine.loop, vsock, sent) == sent
        guest.until("the end")
        end = machine.wait(30)
        assert end is not None, guest.said[-2000:]
        assert f"echoed {len(sent)}" in guest.said
        assert vsock.connections == () or machine.end is not None


def _bridge(loop, connection: Connection, fd: int) -> None:  # type: ignore[no-untyped-def]
    Bridge(loop, connection, writing=fd)


def _echo(loop, vsock: Vsock, sent: bytes) -> bytes:  # type: ignore[no-untyped-def]
    """Through a bridge to port 52 and back."""
    reading, theirs = os.pipe()
    back, writing = os.pipe()
    closed = threading.Event()

    def begin() -> None:
        connection = vsock.connect(52)
        Bridge(loop, connection, reading=reading, writing=writing, closed=lambda _broken: closed.set())

    def write() -> None:
        with os.fdopen(theirs, "wb") as file:
            file.write(sent)

    loop.call(begin)
    threading.Thread(target=write, daemon=True).start()
    with os.fdopen(back, "rb") as file:
        found = file.read()
    assert closed.wait(10)
    return found
