"""What a monitor is handed while its machine runs: a debugger's connection; and its figures, without paths."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka import document
from mamushka.errors import Conflict, Invalid
from mamushka.machine import statistics
from mamushka.machine.board import Board, ram
from mamushka.machine.cage import Cage
from mamushka.machine.computer import Computer, Interior
from mamushka.machine.devices.virtio.vsock import Vsock
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.gdb import accept, listen
from mamushka.machine.inside import Streams
from mamushka.machine.machine import RUNNING
from mamushka.spec.runtime import Config, Process
from tests.integration.machine.guests import needs_kvm
from tests.integration.machine.test_bare import program
from tests.integration.machine.test_bare_command import HEADER

pytestmark = needs_kvm

# Counts at 2 MiB, and tells so by a port now and then.
COUNTING = f"""{HEADER}
start: xor ebx, ebx
again: inc ebx
mov [0x200000], ebx
out 0x80, al
jmp again
"""


class Open:
    """A cage that lets everything through."""

    def close(self, ports: tuple[int, ...] = ()) -> None:
        pass

    def enter(self, kind: str) -> None:
        self.kinds.add(kind)

    def __init__(self) -> None:
        self.kinds: set[str] = set()


@pytest.fixture
def computer() -> Iterator[Computer]:
    board = Board(KvmExecutor(), ram(8 << 20))
    made = Computer(board, Vsock(), Interior(Config("1.2.0"), "/"))
    made.enter_at(board.boot(program(COUNTING)))
    cage: Any = Open()
    made.boot(cage, Process(args=("none",)), Streams(), lambda: None, lambda error: None)
    assert {"vcpu", "devices", "control"} <= cage.kinds
    yield made
    board.close()


class Answers:
    """What is answered, awaited."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._some = threading.Semaphore(0)

    def __call__(self, found: Any) -> None:
        self.all.append(found)
        self._some.release()

    def next(self) -> Any:
        assert self._some.acquire(timeout=20)
        return self.all[-1]


def count(computer: Computer) -> int:
    return int.from_bytes(computer._board.machine.memory.read(0x200000, 4), "little")


def moves(computer: Computer) -> bool:
    before, end = count(computer), time.monotonic() + 10
    while count(computer) == before and time.monotonic() < end:
        time.sleep(0.01)
    return count(computer) != before


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_a_debugger_is_handed_over_and_goes_again(computer: Computer) -> None:
    assert moves(computer)
    for _ in range(2):
        answers = Answers()
        with socket.socket(fileno=listen().detach()) as listener:
            where = f"127.0.0.1:{listener.getsockname()[1]}"
            words = ["gdb", "-nx", "-batch", "-ex", "set confirm off", "-ex", f"target remote {where}"]
            words += ["-ex", 'printf "rbx %d\\n", (int)$rbx', "-ex", "stepi", "-ex", "detach"]
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as gdb:
                peer = accept(listener)
                computer.ask("gdb", {"descriptors": [os.dup(peer.fileno())]}, answers)
                assert answers.next() == "attached"
                peer.close()
                said = gdb.communicate(timeout=60)[0]
        assert "rbx " in said and "detached" in said, said
        assert moves(computer)
        assert computer._board.machine.state == RUNNING


def test_one_debugger_at_a_time_and_no_pause_meanwhile(computer: Computer) -> None:
    answers = Answers()
    ours, theirs = socket.socketpair()
    computer.ask("gdb", {"descriptors": [theirs.detach()]}, answers)
    assert answers.next() == "attached"
    assert not moves_now(computer)
    further = socket.socketpair()
    with pytest.raises(Conflict, match="already"):
        computer.ask("gdb", {"descriptors": [further[1].detach()]}, answers)
    assert further[0].recv(1) == b""
    with pytest.raises(Conflict, match="debugger"):
        computer.pause()
    ours.close()
    assert moves(computer)
    further[0].close()


def moves_now(computer: Computer) -> bool:
    before = count(computer)
    time.sleep(0.1)
    return count(computer) != before


def test_figures_as_a_document(computer: Computer) -> None:
    answers = Answers()
    assert moves(computer)
    computer.ask("figures", {}, answers)
    before = statistics.sample(answers.next())
    time.sleep(0.3)
    computer.ask("figures", {}, answers)
    figures = statistics.rates(before, statistics.sample(answers.next()))
    assert figures.user_by_kind["Write"] > 10
    assert figures.memory.guest_private >= 4096 and figures.memory.monitor_pss > 1 << 20
    # The same as whoever may open the file says, but for what was touched meanwhile.
    other = statistics.memory_of(computer._board.machine.memory)
    assert abs(other.guest_private - figures.memory.guest_private) <= 1 << 20


@pytest.mark.parametrize("given", [{}, {"text": 5}, {"text": "nameserver 127.0.0.11\n", "descriptors": []}])
def test_names_without_sockets_or_text_are_refused_and_what_came_is_closed(
    computer: Computer, given: dict[str, Any]
) -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(Invalid, match="sockets and a text"):
        computer._give_names({"descriptors": [theirs.detach()], **given})
    if "descriptors" not in given:
        assert ours.recv(1) == b""
    ours.close()


def checked(text: bytes) -> bytes:
    return b"$" + text + b"#%02x" % (sum(text) & 0xFF)


@pytest.mark.root
def test_behind_the_real_cage() -> None:
    """A debugger that was handed over, and figures, by the system calls that the filters allow."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _caged(theirs.detach(), writer)
        finally:
            os._exit(1)
    theirs.close()
    os.close(writer)
    ours.settimeout(30)
    with open(reader, "rb") as told:
        figures = statistics.sample(json.loads(told.readline()))
        # Exits that reached Python are test_figures_as_a_document's: here the guest may not have made one yet.
        assert figures.memory.guest_private > 0 and "exits" in figures.counts
        assert told.readline() == b"attached\n"
        for question, begin in (
            (b"?", b"T05"),
            (b"g", b""),
            (b"m200000,4", b""),
            (b"vCont;s:1", b"T05"),
            (b"D", b"OK"),
        ):
            ours.sendall(checked(question))
            said = b""
            while b"#" not in said[:-2]:
                said += ours.recv(1 << 16)
            ours.sendall(b"+")
            assert said.startswith(b"+$" + begin), (question, said)
        ours.close()
        assert told.readline() == b"gone\n"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _caged(peer: int, writer: int) -> None:
    board = Board(KvmExecutor(), ram(8 << 20))
    computer = Computer(board, Vsock(), Interior(Config("1.2.0"), "/"))
    computer.enter_at(board.boot(program(COUNTING)))
    computer.boot(Cage(), Process(args=("none",)), Streams(), lambda: None, lambda error: None)
    answers = Answers()
    while not count(computer):
        pass
    computer.ask("figures", {}, answers)
    os.write(writer, document.dump(answers.next()) + b"\n")
    computer.ask("gdb", {"descriptors": [peer]}, answers)
    os.write(writer, answers.next().encode() + b"\n")
    while computer._debugged:
        threading.Event().wait(0.05)
    os.write(writer, b"gone\n" if moves(computer) else b"still\n")
    os._exit(0)
