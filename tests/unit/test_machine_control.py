"""What is said to a monitor: packets, and a monitor that is told anything."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamushka import document
from mamushka.errors import Conflict, GuestFault, Invalid, MamushkaError, Unsupported
from mamushka.machine import control
from mamushka.machine.control import Line, Listener
from mamushka.machine.inside import Streams
from mamushka.machine.monitor import Monitor, Post
from mamushka.runtime import CannotExecute, CommandNotFound, Exit, NotRunning
from mamushka.spec.runtime import Process, dump


def test_packets_and_descriptors_arrive_together() -> None:
    one, other = Line.pair()
    reader, writer = os.pipe()
    one.send({"ask": "exec", "number": 7}, (writer,))
    packet, given = other.receive()
    assert packet == {"ask": "exec", "number": 7} and len(given) == 1
    os.write(given[0], b"x")
    assert os.read(reader, 1) == b"x"
    control.close([*given, reader, writer])
    one.close()
    assert other.receive() == ({}, [])
    other.close()


@pytest.mark.parametrize("kind", [Unsupported, Conflict, GuestFault, CommandNotFound, CannotExecute, NotRunning])
def test_errors_arrive_as_what_they_are(kind: type[MamushkaError]) -> None:
    packet = document.parse(document.dump(control.failed(kind("why", hint="what"))), "it")
    with pytest.raises(kind, match="why") as caught:
        control.answered(packet)
    assert caught.value.hint == "what"


def test_other_errors_are_told_in_a_line() -> None:
    with pytest.raises(MamushkaError, match="ZeroDivisionError: no"):
        control.answered(control.failed(ZeroDivisionError("no")))


def test_a_message_has_a_bound() -> None:
    one, other = Line.pair()
    with pytest.raises(Invalid):
        one.send({"ask": "x" * control.PACKET_MAX})
    one.close()
    other.close()


def test_a_document_of_any_length_travels_as_a_file() -> None:
    text = b'{"x": "' + b"y" * 300_000 + b'"}'
    fd = control.file_of(text)
    assert control.content_of(fd) == text
    os.close(fd)


def test_strangers_are_not_heard(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "control"))
    assert listener.accept(os.getuid()) is None  # nobody called
    line = control.connect(str(tmp_path / "control"))
    heard = listener.accept(os.getuid())
    assert heard is not None and heard.peer() == os.getuid()
    line.close()
    heard.close()
    if os.getuid() != 0:
        line = control.connect(str(tmp_path / "control"))
        assert listener.accept(os.getuid() + 1) is None
        line.close()
    listener.close()
    with pytest.raises(NotRunning):
        control.connect(str(tmp_path / "control"))


def test_a_socket_has_a_name_however_deep_it_lies(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    listener = Listener(str(deep / "control"))
    control.connect(str(deep / "control")).close()
    listener.close()


class Silent:
    """A guest that is up and takes everything."""

    def __init__(self) -> None:
        self.ended_fd = os.eventfd(0)
        self.watcher: Any = None

    def cause(self) -> BaseException:
        return RuntimeError("it was asked to")

    def boot(self, cage: Any, process: Any, streams: Any, ready: Callable[[], None], broken: Any) -> None:
        ready()

    def start(self, watcher: Any) -> None:
        self.watcher = watcher
        watcher.started(1)

    def begin(self, key: int, process: Process, streams: Streams, watcher: Any) -> None:
        control.close([fd for fd in (streams.stdin, streams.stdout, streams.stderr, streams.console) if fd >= 0])
        watcher.started(key)

    def signal(self, key: int, number: int) -> None: ...

    def resize(self, key: int, rows: int, columns: int) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def ask(self, verb: str, question: dict[str, Any], answer: Callable[[Any], None]) -> None:
        answer(MamushkaError(f"nothing is called {verb}"))

    def close(self, done: Callable[[], None]) -> None:
        done()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a monitor listens whose guest is silent; it still answers afterwards."""
    place = tmp_path_factory.mktemp("record")
    (place / "process").write_text("")
    creator, theirs = Line.pair()
    guest = Silent()
    paused = os.open(place / "process", os.O_RDWR)
    post = Post(Process(args=("x",)), Streams(), paused=paused, owner=os.getuid())
    monitor = Monitor(post, guest, None, theirs, Listener(str(place / "control")))  # type: ignore[arg-type]
    monitor._watch_signals = lambda: None  # type: ignore[method-assign]  # only the main thread may
    thread = threading.Thread(target=monitor.serve)
    thread.start()
    assert control.answered(creator.receive()[0]) == "started"
    yield str(place / "control")
    assert control.ask(str(place / "control"), {"ask": "signal", "number": 15}) == "signal"
    guest.watcher.ended(Exit())
    thread.join(10)
    assert not thread.is_alive()


_VERBS = st.sampled_from(["exec", "signal", "resize", "pause", "resume", "processes", ""])
_ITEMS = st.dictionaries(
    st.sampled_from(["ask", "number", "all", "rows", "columns", "x"]),
    st.one_of(_VERBS, st.integers(-(2**70), 2**70), st.none(), st.booleans(), st.lists(st.integers())),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    packets=st.lists(st.one_of(st.binary(min_size=1, max_size=200), _ITEMS.map(document.dump)), min_size=1, max_size=4),
    descriptors=st.integers(0, 6),
)
def test_whatever_is_said_is_answered_refused_or_the_end_of_that_line(
    path: str, packets: list[bytes], descriptors: int
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(path)
        null = os.open("/dev/null", os.O_RDWR)
        try:
            for packet in packets:
                socket.send_fds(line, [packet], [null] * descriptors)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            os.close(null)
    with contextlib.suppress(Conflict):
        control.ask(path, {"ask": "resume"})
    line = control.connect(path)
    with pytest.raises(MamushkaError, match="nothing is called still there"):
        control.say(line, {"ask": "still there"})
    line.close()


def test_a_process_is_begun_with_a_document_and_streams(path: str) -> None:
    line = control.connect(path)
    fd, null = control.file_of(dump(Process(args=("x",)))), os.open("/dev/null", os.O_RDWR)
    assert control.say(line, {"ask": "exec"}, (fd, null, null, null)) >= 2
    line.send({"ask": "signal", "number": 9})
    control.close([fd, null])
    line.close()
