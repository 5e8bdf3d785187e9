"""A few threads that work through a list of jobs and tell of it, for those who wait and show progress."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic

from mamushka.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from mamushka.engine.summary import Progress

    T = TypeVar("T")

# How long threads that are given up are waited for, all together: one may wait for another process's lock, and
# Ctrl-C should not. What a thread leaves half done, the next pull repairs.
GRACE = 1.0


class Crew:
    """Jobs side by side. ``tell`` is called by the jobs; who iterates ``work`` hears it, and the first error."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._news: SimpleQueue[Progress | None] = SimpleQueue()  # None: a thread has ended
        self._stop = Event()
        self._errors: list[BaseException] = []

    def tell(self, news: Progress) -> None:
        """Let the one who waits know. Raises Unavailable when nobody waits any more."""
        if self._stop.is_set():
            raise Unavailable("given up, since another part failed")
        self._news.put(news)

    def work(self, jobs: Sequence[T], do: Callable[[T], None]) -> Iterator[Progress]:
        """Do every job, in about this order; the first one that fails stops the others."""
        left = list(reversed(jobs))
        threads = [Thread(target=self._run, args=(left, do), daemon=True) for _ in range(min(self._size, len(jobs)))]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                news = self._news.get()
                if news is None:
                    running -= 1
                else:
                    yield news
        finally:
            self._stop.set()
            deadline = monotonic() + GRACE
            for thread in threads:
                thread.join(max(0.0, deadline - monotonic()))
        if self._errors:
            raise self._errors[0]

    def _run(self, left: list[T], do: Callable[[T], None]) -> None:
        try:
            while not self._stop.is_set():
                try:
                    job = left.pop()
                except IndexError:
                    break
                do(job)
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()
        finally:
            self._news.put(None)
