"""The channel over connections that are none: who is let in, who is turned away, and what ends a machine."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from mamushka.errors import GuestFault, Unavailable
from mamushka.machine.agent import Agent, protocol, words
from mamushka.machine.agent.channel import Channel
from mamushka.machine.agent.protocol import Hello, number, raw, text
from mamushka.machine.agent.pump import Pump
from mamushka.machine.loop import Loop


class Wire:
    """A connection whose other side is the test."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.peer: Any = None
        self.closed = self.held = self.shut = False
        self.pending = 0

    def attach(self, peer: Any) -> None:
        self.peer = peer

    def send(self, data: bytes | memoryview) -> None:
        self.sent += data

    def hold(self, held: bool) -> None:
        self.held = held

    def shutdown(self) -> None:
        self.shut = True

    def close(self) -> None:
        self.closed = True

    def say(self, data: bytes) -> None:
        self.peer.received(memoryview(data))


class Host:
    """A channel, and what it told."""

    def __init__(self, token: bytes = b"") -> None:
        self.loop = Loop("test", lambda _: None)  # not started: calls are performed at once
        self.told: list[Any] = []
        self.broken: list[GuestFault] = []
        self.channel = Channel(self.loop, self.told.append, self.broken.append, token)

    def call(self, data: bytes) -> Wire:
        wire = Wire()
        self.channel.accept(wire)
        wire.say(data)
        return wire


HELLO = protocol.frame(words.HELLO, 0, number(words.K_VERSION, 1), number(words.K_FEATURES, 3))


def stream(token: bytes, process: int = 1) -> bytes:
    return protocol.frame(
        words.STREAM, 0, raw(words.K_TOKEN, token), number(words.K_PROCESS, process), number(words.K_STREAM, 1)
    )


def test_the_first_greeting_is_answered_with_a_secret():
    host = Host()
    control = host.call(HELLO)
    assert host.told == [Hello(1, 3, "", "", b"")]
    assert host.channel.token in control.sent
    assert len(host.channel.token) == 16


def test_who_waits_for_a_silent_guest_hears_what_it_does_and_what_comes_meanwhile_counts():
    host = Host()
    wire = host.call(HELLO)
    host.channel.look = lambda: "it sleeps"
    with pytest.raises(Unavailable, match=r"did not answer in 0 s: wake up; it sleeps$"):
        host.channel.request(words.RENEW, what="wake up").result(0)

    def late() -> str:
        wire.say(protocol.frame(words.REPLY, 3))
        return "it does nothing"

    host.channel.look = late
    assert host.channel.request(words.RENEW, what="wake up").result(0)


def test_a_second_greeting_needs_the_secret():
    host = Host()
    first = host.call(HELLO)
    assert host.call(HELLO).closed
    assert not first.closed
    again = host.call(
        protocol.frame(words.HELLO, 0, number(words.K_VERSION, 1), raw(words.K_TOKEN, host.channel.token))
    )
    assert not again.closed
    assert first.closed
    assert len(host.told) == 2


def test_a_restored_guest_shows_the_secret_of_before():
    token = bytes(range(16))
    host = Host(token)
    assert host.call(HELLO).closed
    assert not host.call(protocol.frame(words.HELLO, 0, number(words.K_VERSION, 1), raw(words.K_TOKEN, token))).closed


def test_another_version_is_a_fault_of_that_connection_only():
    host = Host()
    assert host.call(protocol.frame(words.HELLO, 0, number(words.K_VERSION, 2))).closed
    assert not host.broken


def test_refusals_make_no_room_for_more_strangers():
    host = Host()
    for _ in range(100):
        host.call(protocol.frame(words.HELLO, 0, number(words.K_VERSION, 2)))
        host.call(bytes(12))
    wires = [Wire() for _ in range(200)]
    for wire in wires:
        host.channel.accept(wire)
    assert sum(not wire.closed for wire in wires) == 64


def test_streams_need_the_secret_and_someone_who_expects_them():
    host = Host()
    host.call(HELLO)
    opened: list[tuple[Any, bytes]] = []
    host.channel.expect(1, 1, lambda connection, rest: opened.append((connection, rest)))
    assert host.call(stream(bytes(16))).closed
    assert opened == []
    good = host.call(stream(host.channel.token) + b"first bytes")
    assert opened == [(good, b"first bytes")]
    assert host.call(stream(host.channel.token)).closed  # once
    assert host.call(stream(host.channel.token, 2)).closed
    assert not host.broken


@pytest.mark.parametrize("data", [bytes(12), b"\xff" * 12, b"GET / HTTP/1.0\r\n\r\n", bytes([1]) * 5000])
def test_garbage_from_a_stranger_is_turned_away(data):
    host = Host()
    control = host.call(HELLO)
    assert host.call(data).closed
    assert not control.closed
    assert not host.broken


def test_strangers_that_say_nothing_are_few():
    host = Host()
    wires = [Wire() for _ in range(100)]
    for wire in wires:
        host.channel.accept(wire)
    assert sum(not wire.closed for wire in wires) == 64
    for wire in wires:
        if not wire.closed:
            wire.peer.ended()
    assert not host.call(HELLO).closed


def test_a_stranger_is_counted_once():
    """A version that nobody speaks is no way to make room for more that say nothing."""
    host = Host()
    for _ in range(100):
        assert host.call(protocol.frame(words.HELLO, 0, number(words.K_VERSION, 2))).closed
    wires = [Wire() for _ in range(100)]
    for wire in wires:
        host.channel.accept(wire)
    assert sum(not wire.closed for wire in wires) == 64


def test_the_ends_of_processes_that_nobody_made_are_no_way_to_fill_the_host():
    faults: list[BaseException] = []
    agent = Agent(Loop("test", lambda _: None), faults.append)
    wire = Wire()
    agent.channel.accept(wire)
    wire.say(HELLO)
    for process in range(5000):
        wire.say(protocol.frame(words.EXITED, 0, number(words.K_PROCESS, process)))
    assert len(agent._ended) <= 4096
    (fault,) = faults[:1]
    assert isinstance(fault, GuestFault) and "which nobody made" in str(fault)
    assert wire.closed


def test_an_end_that_is_told_twice_counts_once():
    agent = Agent(Loop("test", lambda _: None), lambda _: None)
    wire = Wire()
    agent.channel.accept(wire)
    wire.say(HELLO)
    ended = agent.ended(1)
    for code in (3, 4):
        wire.say(protocol.frame(words.EXITED, 0, number(words.K_PROCESS, 1), number(words.K_CODE, code)))
    assert ended.result(0).code == 3


def test_answers_find_their_requests():
    host = Host()
    control = host.call(HELLO)
    control.say(protocol.frame(words.REPLY, 1))
    one, two = host.channel.request(words.SYNC), host.channel.request(words.SYNC)
    control.say(protocol.frame(words.REPLY, 3) + protocol.frame(words.ERROR, 2, number(words.K_ERRNO, 5)))
    assert two.result(0).id == 3
    assert one.result(0).number == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [protocol.frame(words.REPLY, 99), stream(bytes(16)), HELLO, protocol.frame(9, 0), b"\xff" * 12,
     protocol.frame(words.LOG, 0, raw(words.K_TEXT, b"\0"))],
)  # fmt: skip
def test_an_agent_that_lies_ends_its_machine(data):
    host = Host()
    control = host.call(HELLO)
    waiting = host.channel.request(words.SYNC, what="write back")
    control.say(data)
    assert len(host.broken) == 1
    assert control.closed
    with pytest.raises(Unavailable, match="went away: write back"):
        waiting.result(0)


def test_silence_is_told_with_what_was_asked():
    host = Host()
    host.call(HELLO)
    with pytest.raises(Unavailable, match=r"did not answer .* write back"):
        host.channel.request(words.SYNC, what="write back").result(0.01)
    control = host.channel._control
    control.peer.ended()
    with pytest.raises(Unavailable, match="not there"):
        host.channel.request(words.SYNC).result(0)


def test_a_guest_that_never_calls_is_told_so():
    with pytest.raises(Unavailable, match="did not call"):
        Agent(Loop("test", lambda _: None), lambda _: None).wait(0.01)


def test_what_is_asked_at_once_is_sent_before_any_answer_and_the_first_error_counts():
    agent = Agent(Loop("test", lambda _: None), lambda _: None)
    wire = Wire()
    agent.channel.accept(wire)
    wire.say(HELLO)
    sent: list[int] = []

    def asked() -> list[int]:
        """Ids on the wire, without the greeting's."""
        found, rest = [], bytes(wire.sent)
        while rest:
            size = int.from_bytes(rest[:4], "little")
            found.append(int.from_bytes(rest[8:12], "little"))
            rest = rest[12 + size :]
        return found[1:]

    with pytest.raises(OSError, match="second"), agent.at_once():
        for _ in range(3):
            agent.steps([])
        sent = asked()
        assert len(sent) == 3
        # Answered in another order; two fail.
        for id, operation in ((sent[2], "third"), (sent[1], "second")):
            error = number(words.K_KIND, 0), number(words.K_ERRNO, 5), text(words.K_OPERATION, operation)
            wire.say(protocol.frame(words.ERROR, id, *error))
        wire.say(protocol.frame(words.REPLY, sent[0]))
    with pytest.raises(LookupError), agent.at_once():  # nobody waits for what was asked then
        agent.steps([])
        raise LookupError
    agent.asked = None
    with pytest.raises(Unavailable, match="not there"):
        wire.peer.ended()
        agent.steps([])


def test_a_guest_that_takes_nothing_is_not_waited_for():
    host = Host()
    control = host.call(HELLO)
    control.pending = 1 << 30
    with pytest.raises(Unavailable, match="takes nothing"):
        host.channel.request(words.SYNC).result(0)


def test_the_end_waits_for_what_was_written():
    loop = Loop("test", lambda _: None)
    agent = Agent(loop, lambda _: None)
    control = Wire()
    agent.channel.accept(control)
    control.say(HELLO)
    out = os.memfd_create("out")
    agent._expect(1, words.STDOUT, -1, out)
    wire = Wire()
    agent.channel.accept(wire)
    wire.say(stream(agent.channel.token) + b"some")
    control.say(protocol.frame(words.EXITED, 0, number(words.K_PROCESS, 1), number(words.K_CODE, 3)))
    ended = agent.ended(1)
    with pytest.raises(Unavailable):
        ended.result(0)
    wire.say(b"thing")
    wire.peer.ended()
    assert ended.result(0).code == 3
    assert os.pread(out, 100, 0) == b"something"
    os.close(out)


def test_a_sink_that_is_full_holds_the_guest():
    loop = Loop("test", lambda _: None)
    reader, writer = os.pipe()
    ended: list[bool] = []
    pump = Pump(loop, -1, writer, lambda: ended.append(True))
    os.close(writer)
    wire = Wire()
    pump.opened(wire, b"")
    wire.say(bytes(200_000))
    assert wire.held
    wire.peer.ended()
    assert not ended
    loop.start()
    size = 0
    while data := os.read(reader, 1 << 16):
        size += len(data)
    assert size == 200_000
    deadline = time.monotonic() + 5
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == [True]
    os.close(reader)
    loop.stop()


def test_a_file_is_read_to_its_end():
    loop = Loop("test", lambda _: None)
    source = os.memfd_create("in")
    os.write(source, bytes(300_000))
    os.lseek(source, 0, os.SEEK_SET)
    pump = Pump(loop, source, -1, lambda: None)
    wire = Wire()
    pump.opened(wire, b"")
    assert len(wire.sent) == 300_000
    assert wire.shut
    pump.close()
    os.close(source)


def test_an_error_names_operation_and_path():
    host = Host()
    control = host.call(HELLO)
    request = host.channel.request(words.EXEC)
    control.say(protocol.frame(words.ERROR, 2, number(words.K_KIND, 1), number(words.K_ERRNO, 2),
                               text(words.K_OPERATION, "execve"), text(words.K_PATH, "x")))  # fmt: skip
    from mamushka.machine.agent.agent import explain
    from mamushka.runtime import CommandNotFound

    error = explain(request.result(0), "exec")  # type: ignore[arg-type]
    assert isinstance(error, CommandNotFound)
    assert str(error) == 'exec: "x": executable file not found in $PATH'
