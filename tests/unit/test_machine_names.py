"""Names asked by a guest: framed over vsock, as datagrams in the network that the machine has joined."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mamushka.machine.loop import Loop
from mamushka.machine.names import Names, Sessions


class Pipe:
    """A connection of a guest's; what is sent is kept."""

    def __init__(self, room: int = 1 << 16) -> None:
        self.room, self.sent, self.ended, self.shut = room, b"", False, False
        self.endpoint: Any = None

    def send(self, content: bytes) -> int:
        self.sent += content
        return len(content)

    def consumed(self, count: int) -> None:
        pass

    def shutdown(self) -> None:
        self.shut = True

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


class Streams:
    """A guest with two sockets for streams, and a server that answers each line in capitals."""

    def __init__(self) -> None:
        self.broken: list[BaseException] = []
        self.loop = Loop("devices", self.broken.append)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.fds = [socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK).detach() for _ in range(2)]
        self.port = self.server.getsockname()[1]
        self.sessions = Sessions(self.loop, self.fds, bytes((127, 0, 0, 1)), self.port)
        self.loop.start()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data.upper())
                    if data.endswith(b"bye"):
                        return
            except ConnectionResetError:
                return

    def call(self) -> Pipe:
        pipe = Pipe()
        self.loop.call(lambda: self.sessions.accept(pipe))  # type: ignore[arg-type]
        return pipe

    def say(self, pipe: Pipe, data: bytes) -> None:
        self.loop.call(lambda: pipe.endpoint.received(memoryview(data)))

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.loop.stop()
        self.loop.close()
        for fd in self.fds:
            socket.socket(fileno=fd).close()
        assert not self.broken


@pytest.fixture
def streams() -> Iterator[Streams]:
    made = Streams()
    yield made
    made.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_stream_each_way(streams: Streams) -> None:
    pipe = streams.call()
    for piece in (b"he", b"llo", b"x" * 100_000):
        streams.say(pipe, piece)
    until(lambda: pipe.sent == b"HELLO" + b"X" * 100_000)
    assert not pipe.shut
    streams.say(pipe, b"bye")
    until(lambda: pipe.sent.endswith(b"BYE") and pipe.shut)  # the server hangs up, and the guest is told
    assert not pipe.ended
    streams.loop.call(pipe.endpoint.ended)
    assert pipe.ended


def test_sockets_are_used_again(streams: Streams) -> None:
    for _ in range(20):
        pipe = streams.call()
        streams.say(pipe, b"again")
        until(lambda pipe=pipe: pipe.sent == b"AGAIN")  # type: ignore[misc]
        streams.loop.call(pipe.endpoint.reset)


def test_the_oldest_is_given_up_for_the_newest(streams: Streams) -> None:
    first, second, third = (streams.call() for _ in range(3))
    assert (first.ended, second.ended, third.ended) == (True, False, False)
    for pipe in (second, third):
        streams.say(pipe, b"here")
        until(lambda pipe=pipe: pipe.sent == b"HERE")  # type: ignore[misc]
    assert first.sent == b""


def test_where_nobody_answers_the_guest_is_told(streams: Streams) -> None:
    streams.sessions._where = (bytes((127, 0, 0, 1)), 1)
    for _ in range(3):
        pipe = streams.call()
        until(lambda pipe=pipe: pipe.shut or pipe.ended)  # type: ignore[misc]
        streams.loop.call(pipe.endpoint.reset)


def test_a_network_without_sockets_refuses() -> None:
    pipe = Pipe()
    Sessions(Watcher(), ()).accept(pipe)  # type: ignore[arg-type]
    assert pipe.ended
