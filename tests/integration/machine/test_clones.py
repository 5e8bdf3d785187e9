"""Clones of one Linux: each gets entropy, the time and a name of its own, and the streams of what ran before. Lab."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mamushka.machine import state
from mamushka.machine.agent import Agent, settings, words
from mamushka.machine.agent.program import guest_program
from mamushka.machine.board import Board, ram
from mamushka.machine.boot.command_line import command_line
from mamushka.machine.devices.virtio.balloon import Balloon
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.devices.virtio.vsock import Vsock
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.executors.kvm.vcpu import prepare_to_kick
from mamushka.machine.kit import initramfs
from mamushka.machine.memory import Memory
from mamushka.machine.streams import VsockStream
from mamushka.spec.runtime import Config, Mount, Process
from tests import peers
from tests.integration.machine.linux_guest import stock, usable

pytestmark = [pytest.mark.lab, pytest.mark.slow]
MOUNTS = (Mount("/proc", "proc", "proc"), Mount("/dev", "tmpfs", "tmpfs", ("mode=755",)))
# One line for each that it is sent: its count, random bytes in two ways, the time, the name, the answer's own words.
SCRIPT = (
    "n=0; while read word; do n=$((n+1)); "
    "echo $n $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' ') $(cat /proc/sys/kernel/random/uuid) $(date +%s) "
    "$(hostname) $word; done"
)


class Linux:
    """A machine with the agent in it, all of whose files are in its memory."""

    def __init__(self, memory: Memory, file: int, saved: state.Saved | None = None) -> None:
        self.board = Board(KvmExecutor(), memory)
        self.vsock, self.console = Vsock(), bytearray()
        for name, device in (("vsock", self.vsock), ("rng", Rng()), ("balloon", Balloon(memory))):
            self.board.add(name, device)
        size = os.fstat(file).st_size
        self.board.pmem(os.dup(file), size, name="layer")
        self.board.console(self.console.extend)
        token = bytes.fromhex(saved.labels["token"]) if saved else b""
        self.agent = Agent(self.board.machine.loop, lambda fault: None, token)
        self.vsock.listen(words.HOST_PORT, lambda connection: self.agent.channel.accept(VsockStream(connection)))
        self.output, self._sink = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._source, self.input = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def ends(self) -> tuple[int, int]:
        return self._source, self._sink

    def capture(self, labels: Mapping[str, str]) -> state.Saved:
        return state.capture(self.board.machine, self.board.parts, {"token": self.agent.channel.token.hex(), **labels})

    def go_on(self, saved: state.Saved) -> None:
        """What a monitor does: the state, then what must not be the same in two."""
        state.reinstate(self.board.machine, self.board.parts, saved)
        self.board.machine.start()
        self.agent.wait(60)
        self.agent.renew(os.urandom(64), time.time_ns())
        self.agent.attach(1, words.STDIN, self._source, -1)
        self.agent.attach(1, words.STDOUT, -1, self._sink)

    def say(self, word: str) -> list[str]:
        """The program's answer to a word."""
        os.write(self.input, f"{word}\n".encode())
        found, end = b"", time.monotonic() + 60
        while not found.endswith(b"\n"):
            assert time.monotonic() < end, (found, bytes(self.console)[-2000:], self.board.machine.end)
            if select.select([self.output], [], [], 0.2)[0]:
                found += os.read(self.output, 65536)
        return found.decode().split()

    def close(self) -> None:
        self.agent.close()
        self.board.close()
        for fd in (self.output, self._sink, self._source, self.input):
            os.close(fd)


def booted(cache: Path, file: int) -> Linux:
    kernel = stock()
    made = Linux(ram(256 << 20), file)
    archive = os.pread(initramfs(kernel, guest_program(os.uname().machine), str(cache)), 1 << 30, 0)
    entry = made.board.boot(kernel.image, command_line=command_line(("init_on_alloc=0",)), initramfs=(archive,))
    made.board.machine.start(entry)
    made.agent.wait(120)
    busybox = Path(peers.find("busybox")).read_bytes()
    made.agent.steps([
        settings.step(words.MKDIR, "/run/root/bin"),
        settings.file("/run/root/bin/busybox", busybox, 0o755),
        *(settings.step(words.SYMLINK, f"/run/root/bin/{name}", settings.text(words.K_SOURCE, "busybox"))
          for name in ("sh", "head", "od", "tr", "cat", "date", "hostname")),
    ])  # fmt: skip
    process = Process(args=("/bin/sh", "-c", SCRIPT), env=("PATH=/bin",))
    steps = settings.container_steps(Config("1.0.0", mounts=MOUNTS, hostname="parent"), {})
    source, sink = made.ends
    made.agent.create(1, settings.process_settings(process), "/run/root", steps, stdio=(source, sink, -1))
    made.agent.start(1)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A layer; where a stock kernel can be run."""
    prepare_to_kick()
    if not usable():
        pytest.skip("this host's KVM runs no stock kernel: make lab has one that does")
    layer = tmp_path / "layer"
    layer.write_bytes(b"layer" * 4096 * 4)
    opened = os.open(layer, os.O_RDONLY)
    yield opened
    os.close(opened)


def test_clones_of_a_live_linux_are_themselves(tmp_path: Path, file: int) -> None:
    parent = booted(tmp_path / "cache", file)
    assert parent.say("one")[0] == "1"
    begin = time.perf_counter()
    parent.board.machine.pause()
    saved, frozen = parent.capture({}), state.freeze(parent.board.machine)
    parent.board.machine.resume()
    print(f"the parent's pause: {(time.perf_counter() - begin) * 1e3:.1f} ms")
    frozen.tidy()
    time.sleep(2)  # the clones' time stood still meanwhile
    clones = [Linux(state.private_memory(saved, frozen.fd), file, saved) for _ in range(2)]
    told = []
    for number, clone in enumerate(clones):
        begin = time.perf_counter()
        clone.go_on(saved)
        clone.agent.steps([settings.step(words.HOSTNAME, f"clone{number}")], 1)
        print(f"a clone's first word after {(time.perf_counter() - begin) * 1e3:.1f} ms")
    for each, word in ((clones[0], "first"), (clones[1], "second"), (parent, "parent")):
        count, random, uuid, clock, name, heard = each.say(word)
        assert (count, heard) == ("2", word), "each goes on from the same moment, alone"
        assert abs(int(clock) - time.time()) < 10
        told.append((random, uuid, name))
    assert [name for _, _, name in told] == ["clone0", "clone1", "parent"]
    assert len({random for random, _, _ in told}) == 3, "the same random bytes"
    assert len({uuid for _, uuid, _ in told}) == 3
    assert len({each.agent.channel.token for each in (parent, *clones)}) == 3
    # A machine whose files are others is no clone.
    other = os.memfd_create("other")
    os.ftruncate(other, 4096)
    stranger = Linux(state.private_memory(saved, frozen.fd), other, saved)
    with pytest.raises(Exception, match="other files in its memory"):
        state.reinstate(stranger.board.machine, stranger.board.parts, saved)
    for each in (stranger, *clones, parent):
        each.close()
    frozen.close()
    os.close(other)


def test_a_host_that_answers_late_loses_no_stream(tmp_path: Path, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    linux = booted(tmp_path / "cache", file)
    accept = linux.vsock._accept
    stood: list[float] = []

    def late(ours: int, theirs: int, alloc: int, forwarded: int) -> bool:
        begin = time.monotonic()
        time.sleep(3)  # Linux alone would wait for two: VSOCK_DEFAULT_CONNECT_TIMEOUT
        stood.append(time.monotonic() - begin)
        return accept(ours, theirs, alloc, forwarded)

    monkeypatch.setattr(linux.vsock, "_accept", late)
    output, sink = os.pipe2(os.O_CLOEXEC)
    process = settings.process_settings(Process(args=("/bin/sh", "-c", "echo here"), env=("PATH=/bin",)))
    ended = linux.agent.exec(2, 1, process, stdio=(-1, sink, -1))
    os.close(sink)
    assert ended.result(60).code == 0
    assert os.read(output, 100) == b"here\n"
    assert len(stood) == 1
    os.close(output)
    linux.close()
