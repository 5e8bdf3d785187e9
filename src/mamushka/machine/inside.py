"""What a monitor asks of the operating system in its machine: processes that begin, are signalled, and end.

``Guest`` is a whole machine with an agent in it, seen from the control thread. No call waits for the guest: what comes
of it is told later, to a ``Watcher``, from whatever thread learned it first. So a guest that is silent delays nobody.
"""

from __future__ import annotations

from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from mamushka.machine.cage import Cage
    from mamushka.runtime import Exit
    from mamushka.spec.runtime import Process


# The key of the program that the machine is for; further processes get the following ones.
MAIN = 1


@value
class Streams:
    """A process's streams on this side, owned by whoever is given them; -1 for one that there is not.

    With a terminal ``console`` is the side of it that belongs to the process, and the others are not used. Each is a
    description of our own where that could be had, non-blocking: nobody else's reads and writes are changed by it.
    """

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    console: int = -1


@value
class Held:
    """A machine at the moment at which it holds still. ``state`` and ``memory`` become whose it is told to."""

    state: int  # a memory file with the document of it: state.dump
    memory: int  # the memory of that moment, frozen: state.freeze
    disks: tuple[int, ...] = ()  # what it writes to, to be read as long as it holds still; the machine's own


if TYPE_CHECKING:

    class Watcher(Protocol):
        """Told what becomes of one process, each once and in this order; from any thread."""

        def started(self, pid: int) -> None:
            """The program has been executed; ``pid`` is the guest's number of it."""

        def failed(self, error: BaseException) -> None:
            """It could not be; nothing follows."""

        def ended(self, exit: Exit) -> None:
            """It has ended, and all that it wrote has been handed on."""

    class Guest(Protocol):
        """A machine. All calls come from the thread that made it."""

        ended_fd: int  # readable once the machine has ended, asked or not

        def cause(self) -> BaseException:
            """Why it has ended without being asked."""

        def boot(
            self,
            cage: Cage,
            process: Process,
            streams: Streams,
            ready: Callable[[], None],
            broken: Callable[[BaseException], None],
        ) -> None:
            """Make the threads, close the cage around each, and let the first instruction run.

            ``ready`` is called when the guest has mounted, named and wired what the bundle asks for, and stands before
            its program, the process MAIN; ``broken`` when that cannot be.
            """

        def start(self, watcher: Watcher) -> None:
            """Let the program run."""

        def begin(self, key: int, process: Process, streams: Streams, watcher: Watcher) -> None:
            """Execute a further program; ``key`` names it from now on. The streams are the guest's from now on."""

        def signal(self, key: int, number: int) -> None:
            """Signal a process that has begun; key 0 is every process but the guest's first."""

        def resize(self, key: int, rows: int, columns: int) -> None:
            """A process's terminal has another size."""

        def pause(self) -> None:
            """No virtual CPU runs when this returns, until ``resume``."""

        def resume(self) -> None:
            """They run again."""

        def save(
            self,
            held: Callable[[Held], None],
            done: Callable[[float], None],
            failed: Callable[[BaseException], None],
            *,
            paused: bool,
        ) -> None:
            """Hold still, tell what is saved, and go on after ``go_on``; ``done`` tells for how many seconds it stood.

            Raises at once where it cannot be; ``failed`` tells later that it could not. ``paused`` where it holds
            still already.
            """

        def go_on(self) -> None:
            """Whoever wanted it saved has what he wants, or is gone; once for each ``save``."""

        def ask(self, verb: str, question: dict[str, Any], answer: Callable[[Any], None]) -> None:
            """Anything further: ``began``, ``processes``, ``figures``, …; the answer is a document, or an exception."""

        def close(self, done: Callable[[], None]) -> None:
            """The main process has ended: let the guest write to its disks what it has not, then call ``done``."""
