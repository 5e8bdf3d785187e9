"""Names asked by a guest: framed over vsock, as datagrams in the network that the machine has joined."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mamushka.machine.names import Names


class Pipe:
    """A connection of a guest's; what is sent is kept."""

    def __init__(self, room: int = 1 << 16) -> None:
        self.room, self.sent, self.ended = room, b"", False
        self.endpoint: Any = None

    def send(self, content: bytes) -> int:
        self.sent += content
        return len(content)

    def consumed(self, count: int) -> None:
        pass

    def reset(self) -> None:
        self.ended = True

    close = reset


class Watcher:
    """The part of a loop that is used."""

    def __init__(self) -> None:
        self.ready: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, ready: Callable[[int], None]) -> None:
        self.ready[fd] = ready

    def forget(self, fd: int) -> None:
        self.ready.pop(fd, None)


class Ground:
    """A guest, and who answers."""

    def __init__(self) -> None:
        self.loop = Watcher()
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind(("127.0.0.1", 0))
        self.server.settimeout(5)
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        client.connect(self.server.getsockname())
        self.address = client.getsockname()
        self.fd = client.detach()
        self.names = Names(self.loop, self.fd)  # type: ignore[arg-type]

    def call(self, **more: int) -> Pipe:
        pipe = Pipe(**more)
        self.names.accept(pipe)  # type: ignore[arg-type]
        return pipe

    def answer(self, content: bytes) -> None:
        self.server.sendto(content, self.address)
        for ready in list(self.loop.ready.values()):
            ready(1)


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    made.server.close()
    socket.socket(fileno=made.fd).close()


def test_questions_and_answers_in_any_pieces(ground: Ground) -> None:
    pipe = ground.call()
    for piece in (b"\0", b"\5hel", b"lo\0\3you", b"\0"):
        pipe.endpoint.received(memoryview(piece))
    assert [ground.server.recv(100), ground.server.recv(100)] == [b"hello", b"you"]
    ground.answer(b"well")
    ground.answer(b"")
    assert pipe.sent == b"\0\4well\0\0"


def test_what_there_is_no_room_for_is_lost(ground: Ground) -> None:
    pipe = ground.call(room=10)
    ground.answer(b"x" * 9)
    ground.answer(b"x" * 8)
    assert pipe.sent == b"\0\x08" + b"x" * 8


def test_a_question_that_is_none_ends_the_connection(ground: Ground) -> None:
    pipe = ground.call()
    pipe.endpoint.received(memoryview(b"\xff\xff"))
    assert pipe.ended and not ground.loop.ready


def test_the_last_who_calls_is_answered(ground: Ground) -> None:
    first, second = ground.call(), ground.call()
    assert first.ended
    first.endpoint.reset()
    ground.answer(b"yours")
    assert (first.sent, second.sent) == (b"", b"\0\5yours")
    second.endpoint.ended()
    assert second.ended and not ground.loop.ready


def test_nobody_who_answers_is_no_end(ground: Ground) -> None:
    pipe = ground.call()
    ground.server.close()
    for _ in range(3):
        pipe.endpoint.received(memoryview(b"\0\2hi"))
        ground.loop.ready[ground.fd](1)
    assert not pipe.ended
