"""The loop of a machine's devices: calls, companions, and holding still."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from mamushka.linux.process import PR_GET_NO_NEW_PRIVS, PR_SET_NO_NEW_PRIVS, prctl
from mamushka.machine.loop import Loop


class Bell:
    """An eventfd, and how often it was heard in which thread."""

    def __init__(self, loop: Loop) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.heard: list[str] = []
        self._heard = threading.Semaphore(0)
        loop.watch(self.fd, self._rung)

    def _rung(self, _events: int) -> None:
        os.eventfd_read(self.fd)
        self.heard.append(threading.current_thread().name)
        self._heard.release()

    def ring(self, seconds: float = 5) -> bool:
        os.eventfd_write(self.fd, 1)
        return self._heard.acquire(timeout=seconds)

    def later(self) -> bool:
        return self._heard.acquire(timeout=5)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop("devices", lambda error: None)
    yield made
    made.stop()
    made.close()


def test_a_companion_starts_with_the_loop_and_has_a_thread_of_its_own(loop: Loop) -> None:
    early = loop.companion("early")
    bell = Bell(early)
    os.eventfd_write(bell.fd, 1)
    time.sleep(0.01)
    assert bell.heard == []
    loop.start()
    assert bell.later()
    late = loop.call(lambda: loop.companion("late"))
    other = Bell(late)
    assert other.ring()
    assert (bell.heard, other.heard) == (["early"], ["late"])
    for each in (early, late):
        each.stop()
        each.close()


def test_what_comes_first_comes_before_anything_is_served_and_holds_for_companions(loop: Loop) -> None:
    """As a filter of system calls does: it belongs to a thread, and to those that the thread makes."""
    companion = loop.companion("beside")
    bells = Bell(loop), Bell(companion)
    served: list[list[str]] = []

    def confine() -> None:
        served.extend(bell.heard[:] for bell in bells)
        prctl(PR_SET_NO_NEW_PRIVS, 1)

    for bell in bells:
        os.eventfd_write(bell.fd, 1)
    before = prctl(PR_GET_NO_NEW_PRIVS)
    loop.start(confine)
    assert all(bell.later() for bell in bells)
    assert served == [[], []]
    assert loop.call(lambda: prctl(PR_GET_NO_NEW_PRIVS)) == 1
    assert companion.call(lambda: prctl(PR_GET_NO_NEW_PRIVS)) == 1
    assert prctl(PR_GET_NO_NEW_PRIVS) == before
    companion.stop()
    companion.close()


def test_a_loop_whose_first_act_fails_serves_nobody(loop: Loop) -> None:
    bell = Bell(loop)
    os.eventfd_write(bell.fd, 1)
    with pytest.raises(ZeroDivisionError):
        loop.start(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    loop.stop()
    assert bell.heard == []


def test_while_held_nothing_is_done_but_calls(loop: Loop) -> None:
    companion = loop.companion("beside")
    bells = Bell(loop), Bell(companion)
    loop.start()
    assert all(bell.ring() for bell in bells)
    loop.hold()
    assert not any(bell.ring(0.02) for bell in bells)
    assert loop.call(lambda: threading.current_thread().name) == "devices"
    assert companion.call(lambda: threading.current_thread().name) == "beside"
    assert not any(bell.ring(0.02) for bell in bells)
    loop.release()
    assert all(bell.later() for bell in bells)
    companion.stop()
    companion.close()


def test_a_companions_failure_is_the_machines() -> None:
    failures: list[BaseException] = []
    loop = Loop("devices", failures.append)
    companion = loop.companion("beside")
    fd = os.eventfd(1, os.EFD_CLOEXEC)
    companion.watch(fd, lambda events: 1 // 0)  # type: ignore[func-returns-value]
    loop.start()
    loop.call(lambda: None)  # by then it has begun its companions
    companion._thread.join(5)  # type: ignore[union-attr]
    assert isinstance(failures[0], ZeroDivisionError)
    for each in (companion, loop):
        each.stop()
        each.close()
    os.close(fd)


def test_a_loop_that_is_held_can_be_stopped(loop: Loop) -> None:
    loop.start()
    loop.hold()


def test_who_gets_a_forgotten_ones_number_is_not_called_for_him(loop: Loop) -> None:
    """Two descriptors are ready in one round; the first's callback closes the other and opens one that gets its
    number, which has nothing to be read."""
    pipes = [os.pipe(), os.pipe()]
    heard: list[str] = []
    fresh: list[int] = []

    def swap(mine: int, other: int) -> None:
        heard.append("first")
        loop.forget(mine)
        loop.forget(other)
        os.close(other)
        read, write = os.pipe()
        fresh.extend((read, write))
        assert other in fresh
        if read != other:  # the lowest number that is free is the closed one's
            os.dup2(read, other)
        loop.watch(other, lambda _events: heard.append("for another"))

    (one, _), (two, _) = pipes
    loop.watch(one, lambda _events: swap(one, two))
    loop.watch(two, lambda _events: swap(two, one))
    for _, write in pipes:
        os.write(write, b"x")
    loop.start()
    for _ in range(3):  # rounds
        loop.call(lambda: None)
        time.sleep(0.02)
    assert heard == ["first"]
    for fd in {one, two, *fresh, *(write for _, write in pipes)}:
        loop.call(lambda fd=fd: loop.forget(fd))  # type: ignore[misc]
        os.close(fd)
