"""The thread in which a machine's devices do their work: whoever waits for a descriptor is called when it is ready.

All state of devices belongs to this thread. Virtual CPUs reach it through doorbells (eventfds), other threads by
``call``: while a call runs, no device does anything else. A device that would keep the others waiting, as a slow disk
does, has a loop of its own beside this one (``companion``). ``hold`` makes all of them hold still until ``release``:
calls are performed, and nothing else.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque

from mamushka import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Call:
    """A function that one thread wants to be performed in another, and waits for."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._done = threading.Event()
        self._result: object = None
        self._error: BaseException | None = None

    def perform(self) -> bool:
        """Called by the other thread; False where it raised."""
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        self._done.set()
        return self._error is None

    def result(self) -> object:
        """Called by whoever asked; raises what the function raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result


class Loop:
    """One named thread around epoll. ``failed`` is called with what a callback raised, and the loop ends."""

    def __init__(self, name: str, failed: Callable[[BaseException], None]) -> None:
        self.name, self._failed = name, failed
        self._epoll, self._quiet = select.epoll(), select.epoll()
        self._held = False
        self._companions: list[Loop] = []
        self._ready: dict[int, Callable[[int], None]] = {}
        self._lock = threading.Lock()  # guards the next two: no call is left behind by the end
        self._calls: deque[Call] = deque()
        self._ended = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, READ)
        self._quiet.register(self._wake, READ)  # hears of calls alone
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, first: Callable[[], None] | None = None) -> None:
        """Begin; what was watched before is looked at at once, but after ``first`` was performed in the new thread.

        Companions are begun by that thread, so that they are confined as it is. Raises what ``first`` raised; then the
        loop has ended.
        """

        def begin() -> None:
            if first is not None:
                first()
            for loop in self._companions:
                loop.start()

        call = Call(begin)
        self._thread = threading.Thread(target=self._run, args=(call,), name=self.name, daemon=True)
        self._thread.start()
        call.result()

    def watch(self, fd: int, ready: Callable[[int], None], events: int = READ) -> None:
        """Call ``ready`` with the events in this thread while ``fd`` is ready; a second time, instead."""
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def forget(self, fd: int) -> None:
        """Watch it no more; harmless for one that is not watched."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call(self, function: Callable[[], T]) -> T:
        """Perform a function in this thread between two events, and give its result. From any thread.

        Before the loop began and after it has ended, also by a failure, the caller performs it himself.
        """
        if self._thread is None or threading.current_thread() is self._thread:
            return function()
        call = Call(function)
        with self._lock:
            ended = self._ended
            if not ended:
                self._calls.append(call)
        if ended:
            return function()
        os.eventfd_write(self._wake, 1)
        return call.result()  # type: ignore[return-value]

    def companion(self, name: str) -> Loop:
        """A loop beside this one, which starts and holds still with it, and fails as it does. Made in this one's
        thread; the caller's to stop and close."""
        made = Loop(name, self._failed)
        made._held = self._held
        self._companions = [*(loop for loop in self._companions if not loop._ended), made]
        if self._thread is not None:
            made.start()
        return made

    def hold(self) -> None:
        """When this returns, nothing is done any more but calls, also by companions. Not from within a loop."""
        self.call(lambda: self._hold(True))
        for loop in self._companions:
            loop.hold()

    def release(self) -> None:
        """Go on with what waits."""
        for loop in self._companions:
            loop.release()
        self.call(lambda: self._hold(False))

    def _hold(self, held: bool) -> None:
        self._held = held

    def stop(self) -> None:
        """End the thread; what was watched stays its owner's. Not from within the loop."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def close(self) -> None:
        """Give the descriptors back, after ``stop``. What devices still forget was forgotten already."""
        self._ready.clear()
        self._epoll.close()
        self._quiet.close()
        os.close(self._wake)

    def _round(self, found: list[tuple[int, int]]) -> None:
        """Call who waits for what was found. Whoever is forgotten meanwhile is not called; nor is another who has got
        the number of a descriptor that was closed meanwhile: he would read where there is nothing, and wait."""
        waiting = [self._ready.get(fd) for fd, _ in found]
        for (fd, events), ready in zip(found, waiting, strict=True):
            if fd == self._wake:
                os.eventfd_read(fd)
            elif ready is not None and self._ready.get(fd) is ready:
                ready(events)

    def _run(self, begin: Call) -> None:
        try:
            if not begin.perform():
                return  # whoever started it hears why
            while not self._stopping:
                self._round((self._quiet if self._held else self._epoll).poll())
                while self._calls:
                    self._calls.popleft().perform()
        except BaseException as error:
            trace.event("loop.failed", loop=self.name, error=str(error))
            self._failed(error)
        finally:
            self._stopping = True
            with self._lock:
                self._ended = True
            while self._calls:
                self._calls.popleft().perform()
