"""The process that holds a machine: forked from whoever creates it, their child, and its end is the workload's end.

It has one thread for each virtual CPU, one for all devices, and this one, which is for control:

    building    everything is imported and opened; then the cage closes (cage.py), and only then the guest's first
                instruction runs
    waiting     the guest is up; behind the gate, where there is one, until a byte comes through it
    running     the program runs; whoever calls through the control socket is served
    ending      it has ended; the guest brings its disks in order, for a while at most

Then this process ends as the program did: with its code, or by its signal. When the machine itself breaks, the reason
is told where the creator, or ``start``, still listens, and otherwise on the workload's standard error, and the code is
255.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without the enumerations, 5 ms
import os
import select
from collections import deque

from mamushka import trace
from mamushka.errors import Conflict, MamushkaError
from mamushka.linux import lock
from mamushka.linux.terminal import size
from mamushka.machine import control
from mamushka.machine.caller import Caller
from mamushka.machine.inside import MAIN, Streams
from mamushka.runtime import Exit
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from mamushka.machine.cage import Cage
    from mamushka.machine.control import Line, Listener, Packet
    from mamushka.machine.inside import Guest
    from mamushka.spec.runtime import Process

# What a machine that broke ends with; no shell gives it a meaning, and other runtimes of machines use it too.
BROKEN = 255
# A byte of the record's file ``process``: locked while no virtual CPU runs.
PAUSED = 1
# Whoever calls keeps a descriptor open here; more at once than anybody needs.
_CALLERS_MAX = 256
# How long an ending guest may write back what it has in memory.
_GRACE = 5.0
# How long a guest may take to come up: under emulation a kernel needs half a minute.
_BOOT = 300.0


SIGWINCH = 28
# 1 to 64 without SIGKILL, SIGSTOP, the C library's two, those that a child's end or a fault brings, and what stops.
# The last one is the executor's own, for making a virtual CPU leave the guest.
CAUGHT = (1, 2, 3, 10, 12, 14, 15, 16, SIGWINCH, 29, 30, *range(34, 64))


@value
class Post:
    """What a monitor is born with; the descriptors are its own."""

    process: Process
    streams: Streams  # given to the guest, which closes them
    gate: int = -1  # open for reading as long as the program waits; -1 where it does not
    outcome: int = -1  # where a failure behind the gate is written
    opened: bool = False  # whether the gate's byte has come: whoever sent it waits until the gate is closed
    paused: int = -1  # the record's file ``process``, open for writing
    oom: int = -1  # the record's file ``oom``, which has a byte when the guest's kernel killed for want of memory
    owner: int = 0  # whose calls are heard


class Monitor:
    """The control thread. ``serve`` is its whole life."""

    def __init__(self, post: Post, guest: Guest, cage: Cage, creator: Line | None, listener: Listener) -> None:
        self._post, self._guest, self._cage = post, guest, cage
        self._creator = creator
        self._listener = listener
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._news: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._callers: dict[int, Caller] = {}
        self._keys = MAIN
        self._is_up = self._begun = self._started = self._paused = False
        self._exit: Exit | None = None
        self._over = False
        self._saver: Caller | None = None  # who has the machine hold still, to save it
        self._watch(self._wake, self._hear)

    def serve(self) -> Exit:
        """Until the machine has ended; how its program did."""
        self._watch(self._listener.fileno(), self._accept)
        self._watch_creator()
        self._watch_signals()
        self._watch(self._guest.ended_fd, lambda: self._broken(self._guest.cause()))
        self._guest.boot(self._cage, self._post.process, self._post.streams, self._tell(self._up), self._fail)
        self._limit(_BOOT, "the guest did not come up")
        while not self._over:
            try:
                self._turn()
            except Exception as error:  # a fault of ours; behind the cage nobody could print where
                self._broken(error)
        assert self._exit is not None
        return self._exit

    # Turning

    def post(self, news: Callable[[], None]) -> None:
        """Have something done by this thread; from any."""
        self._news.append(news)
        os.eventfd_write(self._wake, 1)

    def _tell(self, news: Callable[[], None]) -> Callable[[], None]:
        return lambda: self.post(news)

    def _watch(self, fd: int, ready: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self._poll.register(fd, events)
        self._ready[fd] = ready

    def _forget(self, fd: int) -> None:
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _limit(self, seconds: float, why: str) -> None:
        self._deadline, self._late = _now() + seconds, why

    def _turn(self) -> None:
        rest = self._deadline - _now() if self._deadline else None
        if rest is not None and rest <= 0:
            self._expired()
            return
        for fd, _ in self._poll.poll(rest):
            ready = self._ready.get(fd)
            if ready is not None:
                ready()

    def _expired(self) -> None:
        self._deadline = 0.0
        if self._exit is not None:
            trace.event("machine.late", why=self._late)
            self._over = True
        else:
            self._broken(MamushkaError(self._late))

    def _hear(self) -> None:
        os.eventfd_read(self._wake)
        while self._news:
            self._news.popleft()()

    _deadline = 0.0
    _late = ""

    # The program's life

    def _up(self) -> None:
        """The guest waits for work."""
        self._deadline, self._is_up = 0.0, True
        if self._post.gate < 0 or self._post.opened:
            self._begin()
            return
        self._watch(self._post.gate, self._opened)
        self._say({"answer": "created"})

    def _opened(self) -> None:
        os.read(self._post.gate, 1)
        self._forget(self._post.gate)
        self._begin()

    def _begin(self) -> None:
        self._begun = True
        self._guest.start(_Main(self))

    def main_started(self) -> None:
        """The program runs: whoever waits behind the gate or at the channel is let go."""
        self._started = True
        self._say({"answer": "started"})
        self._let_go()

    def main_failed(self, error: BaseException) -> None:
        """It could not be executed."""
        self._refuse(error)
        self._end(Exit(code=BROKEN))

    def main_ended(self, exit: Exit) -> None:
        """It has ended."""
        self._exit = exit
        if exit.oom_killed and self._post.oom >= 0:
            os.write(self._post.oom, b"1")
        self._limit(_GRACE, "the guest did not bring its disks in order")
        self._guest.close(self._tell(lambda: self._end(exit)))

    def _fail(self, error: BaseException) -> None:
        """``_broken``, from another thread."""
        self.post(lambda: self._broken(error))

    def _broken(self, error: BaseException) -> None:
        """The machine cannot go on."""
        trace.event("machine.broken", error=str(error))
        if self._exit is None:
            self._refuse(error)
        self._end(self._exit or Exit(code=BROKEN))

    def _end(self, exit: Exit) -> None:
        self._exit, self._over = exit, True

    def _refuse(self, error: BaseException) -> None:
        """Tell an error to who waits for the start; to the workload's own stream when nobody does."""
        packet = control.failed(error)
        if self._creator is not None:
            self._say(packet)
        elif not self._started and self._post.outcome >= 0:
            from mamushka import document

            os.write(self._post.outcome, document.dump(packet))
        else:
            _complain(self._post.streams, str(error))
        self._let_go()

    def _let_go(self) -> None:
        for fd in (self._post.gate, self._post.outcome):
            if fd >= 0:
                self._forget(fd)
                _discard(fd)
        self._post = _without_gate(self._post)

    def _say(self, packet: Packet) -> None:
        """To the creator, who hangs up with the first word. Whoever is gone by then wanted no machine."""
        creator, self._creator = self._creator, None
        if creator is None:
            return
        self._forget(creator.fileno())
        try:
            creator.send(packet)
        except OSError as error:
            trace.event("machine.creator_gone", error=str(error))
            self._end(Exit(signal=9))
        creator.close()

    def _watch_creator(self) -> None:
        """Whoever makes it and is killed before it is made leaves nothing."""
        if self._creator is not None:
            self._watch(self._creator.fileno(), lambda: self._end(Exit(signal=9)))

    # Signals of this process

    def _watch_signals(self) -> None:
        """What is sent to this process is meant for the program, as if this were it."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        catch(writer)
        self._watch(reader, lambda: self._caught(os.read(reader, 4096)))

    def _caught(self, numbers: bytes) -> None:
        for number in numbers:
            if number == SIGWINCH:
                self._resized()
            elif self._exit is not None or number not in CAUGHT:
                pass
            elif self._begun:
                self._guest.signal(MAIN, number)
            else:  # it would end a program that waits to be started
                self._end(Exit(signal=number))

    def _resized(self) -> None:
        console = self._post.streams.console
        if console >= 0 and self._started and self._exit is None:
            self._guest.resize(MAIN, *size(console))

    # Whoever calls

    def _accept(self) -> None:
        line = self._listener.accept(self._post.owner)
        if line is None:
            return
        if len(self._callers) >= _CALLERS_MAX:
            line.close()
            return
        line.wait(0)
        caller = Caller(self, line)
        self._callers[line.fileno()] = caller
        self._watch(line.fileno(), caller.heard)

    def hang_up(self, line: Line) -> None:
        """Forget a caller."""
        self._forget(line.fileno())
        self._callers.pop(line.fileno(), None)
        line.close()

    def further(self, process: Process, streams: Streams, caller: Caller) -> int:
        """Begin a further process for a caller; its key."""
        self.check_running()
        self._keys += 1
        self._guest.begin(self._keys, process, streams, caller)
        return self._keys

    def check_running(self) -> None:
        """Conflict unless the guest is there to be asked."""
        if self._exit is not None or not self._is_up:
            raise Conflict("container not running")
        if self._paused:
            raise Conflict("container is paused", hint="resume it first")

    def signal(self, key: int, number: int) -> None:
        """Signal a process of the guest's."""
        self.check_running()
        self._guest.signal(key, number)

    def resize(self, key: int, rows: int, columns: int) -> None:
        """A process's terminal has another size."""
        self._guest.resize(key, rows, columns)

    def pause(self) -> None:
        """Stop the virtual CPUs, and let everybody see it."""
        if self._paused:
            raise Conflict("container already paused")
        self._check_unsaved()
        self._guest.pause()
        lock.take(self._post.paused, byte=PAUSED)
        self._paused = True

    def resume(self) -> None:
        """Let them run."""
        if not self._paused:
            raise Conflict("container not paused")
        self._check_unsaved()
        lock.release(self._post.paused, byte=PAUSED)
        self._guest.resume()
        self._paused = False

    def _check_unsaved(self) -> None:
        if self._saver is not None:
            raise Conflict("the machine is just being saved", hint="try again in a moment")

    def save(self, caller: Caller) -> None:
        """Have the guest hold still for a caller until ``let_go``."""
        if self._exit is not None or not self._started:
            raise Conflict("container not running")
        self._check_unsaved()

        def done(seconds: float) -> None:
            self._saver = None
            caller.let_go({"answer": {"seconds": seconds}})

        def failed(error: BaseException) -> None:
            self._saver = None
            caller.let_go(control.failed(error))

        self._guest.save(
            lambda held: self.post(lambda: caller.held(held)),
            lambda seconds: self.post(lambda: done(seconds)),
            lambda error: self.post(lambda: failed(error)),
            paused=self._paused,
        )
        self._saver = caller

    def let_go(self, caller: Caller) -> None:
        """Whoever wanted it saved has what he wants, or is gone."""
        if self._saver is caller:
            self._guest.go_on()

    def end_saved(self) -> None:
        """Whoever saved it goes on with it elsewhere: it is killed."""
        self._end(Exit(signal=9))

    def ask(self, verb: str, question: Packet, answer: Callable[[Any], None]) -> None:
        """What only the guest's side knows."""
        self.check_running()
        self._guest.ask(verb, question, lambda found: self.post(lambda: answer(found)))


class _Main:
    """What becomes of the program that the machine is for."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def started(self, pid: int) -> None:
        self._monitor.post(self._monitor.main_started)

    def failed(self, error: BaseException) -> None:
        self._monitor.post(lambda: self._monitor.main_failed(error))

    def ended(self, exit: Exit) -> None:
        self._monitor.post(lambda: self._monitor.main_ended(exit))


def catch(writer: int) -> None:
    """Have the number of every signal that comes written as a byte, but for those that tell of a fault of our own."""
    _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in CAUGHT:
        _signal.signal(number, _nothing)


def _nothing(_number: int, _frame: object) -> None:
    """The byte is what counts."""


def _complain(streams: Streams, text: str) -> None:
    """One line on the workload's own stream; it may be full or gone, and then nobody reads it."""
    fd = streams.console if streams.console >= 0 else streams.stderr
    try:
        os.write(fd, f"mamushka: the machine ended: {text}\n".encode(errors="replace")[:4096])
    except OSError:
        pass


def _discard(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass


def _without_gate(post: Post) -> Post:
    from mamushka.values import replace

    return replace(post, gate=-1, outcome=-1)


def _now() -> float:
    from time import monotonic

    return monotonic()


def leave(exit: Exit) -> NoReturn:
    """End this process as the program did. Without a core: the guest's memory is in this one's."""
    if exit.signal:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        if exit.signal not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(exit.signal, _signal.SIG_DFL)
        os.kill(os.getpid(), exit.signal)
        # What is ignored by default, or stops, does not end a process: a shell's answer then.
        os._exit(128 + exit.signal)
    os._exit(exit.code)
