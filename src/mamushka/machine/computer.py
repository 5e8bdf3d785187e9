"""A machine with Linux and our agent in it, as a monitor sees it: the ``Guest`` of inside.py.

The agent's calls wait for its answer, and a guest may be slow or silent. So they are made by one thread of their own,
in order; what comes of them is told from there.

A guest comes up cold, from a kernel, or goes on from where another one stood. There its connections are broken, so its
agent calls again, and is given the time and entropy before anything else. What follows is the same as of a cold one
where the other had not been told anything yet (warm.py). Where it had its program (PROGRAM), that is there already: it
learns who it is now, its streams are connected anew, and it wakes up (hold.py).
"""

from __future__ import annotations

import _socket
import os
import threading
import time
from collections import deque
from stat import S_ISCHR

from mamushka import trace
from mamushka.errors import Conflict, GuestFault, Invalid, MamushkaError, NotFound, Unavailable, Unsupported
from mamushka.linux.executable import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK
from mamushka.linux.fd import fcntl
from mamushka.machine import files, inherited, names, past, state, statistics
from mamushka.machine.agent import Agent, nodes, words
from mamushka.machine.agent.settings import container_steps, file, process_settings
from mamushka.machine.agent.words import HOST_PORT
from mamushka.machine.cards import Cards
from mamushka.machine.control import Stale, close
from mamushka.machine.gdb import Conversation
from mamushka.machine.hold import Hold
from mamushka.machine.inside import MAIN, Streams
from mamushka.machine.loop import Call
from mamushka.machine.machine import CONTROL, DEBUGGER, FAULT, STUCK
from mamushka.machine.streams import VsockStream
from mamushka.runtime import Exit
from mamushka.values import EMPTY, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from mamushka.linux.seccomp import Filter
    from mamushka.machine.board import Board
    from mamushka.machine.cage import Cage
    from mamushka.machine.devices.virtio.vsock import Connection, Vsock
    from mamushka.machine.inside import Held, Watcher
    from mamushka.machine.state import Saved
    from mamushka.machine.vcpu import Entry
    from mamushka.machine.warm import Blank
    from mamushka.spec.runtime import Config, Process

# How long a guest may take to call: under emulation a kernel needs half a minute.
_CALLING = 240.0
# A guest that is there already calls at once; under emulation that takes a second. Who has waited so long boots anew.
_CALLING_AGAIN = 30.0
_RESOLV_CONF = "/etc/resolv.conf"
_ENTROPY = 64  # bytes: twice what the kernel's generator holds
# Of a guest's console, what is kept to explain why it did not come up.
_CONSOLE_MAX = 8192
# Of a small file of the container's: two of them, escaped, are an answer to a caller (control.PACKET_MAX).
_SMALL_MAX = 24 << 10


@value
class Interior:
    """What the guest is told to make of itself."""

    config: Config
    root: str  # a path in the guest
    steps: tuple[bytes, ...] = ()  # what makes that, and what is bound, appear
    sources: Mapping[str, str] = EMPTY  # what is bound, by destination: paths in the guest
    links: tuple[bytes, ...] = ()  # settings.link of each
    filter: Filter | None = None  # of system calls, for every process
    resolver: tuple[int, ...] = ()  # sockets for who answers at 127.0.0.11 of the network: see ``names``; owned
    cards: tuple[bytes, ...] = ()  # the addresses of its cards, in order
    disks: tuple[int, ...] = ()  # descriptors of what it writes to, for reading; owned
    found: tuple[bytes, ...] = ()  # steps that are done when its kernel has found what may be written down of it


class Computer:
    """A machine that runs one bundle. Owns the board and everything plugged into it."""

    def __init__(self, board: Board, vsock: Vsock, interior: Interior, *, saved: Saved | None = None) -> None:
        """``saved`` is the machine that this one goes on from: see ``enter_again``."""
        self._board, self._interior, self._saved = board, interior, saved
        self._entry: Entry | None = None
        self._blank: Blank | None = None
        self._labels: Mapping[str, str] = EMPTY
        self._machine = board.machine
        self.ended_fd = self._machine.ended_fd
        token = past.token(saved.labels) if saved is not None else b""
        self._agent = Agent(self._machine.loop, self._lied, token)
        self._agent.channel.look = lambda: statistics.glance(self._machine)
        self._past = past.Past.of(saved.labels) if saved is not None else None
        self._program = past.Program(board, interior, self._past)
        self._hold, self._go = Hold(board, self._agent, interior.disks), threading.Event()
        self._console = bytearray()
        self._small = _room(_SMALL_MAX)
        self._limits = inherited.limits()
        self._cards = Cards(board, self._agent)
        self._worker = Worker("agent")
        self._debugging = Worker("gdb")
        self._copying = Worker("files")  # takes as long as it takes: one after the other, beside all else
        self._conversation = Conversation(self._machine)
        self._debugged = False
        # The mappings of this process, which are looked at again and again; opened while there are paths.
        self._mappings = os.open("/proc/self/smaps", os.O_RDONLY | os.O_CLOEXEC)
        vsock.listen(HOST_PORT, self._accept)
        self._vsock, self._has_names = vsock, False
        if interior.resolver:
            self._serve_names(interior.resolver)
        board.console(self._heard)

    # Life

    def enter_at(self, entry: Entry) -> None:
        """Where the first virtual CPU begins, once a kernel is there. The console is plugged in before."""
        self._entry = entry

    def enter_again(self) -> None:
        """Take the state of the machine that this one goes on from. Everything is plugged in before."""
        assert self._saved is not None
        if self._past is not None:
            self._board.reveal()
        devices = self._board.early if self._past is None else self._board.parts
        state.reinstate(self._machine, devices, self._saved)

    def keep(self, blank: Blank, labels: Mapping[str, str]) -> None:
        """Write it down, with these labels, once its guest has called. The files become ours."""
        self._blank, self._labels = blank, labels

    def boot(
        self,
        cage: Cage,
        process: Process,
        streams: Streams,
        ready: Callable[[], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        """See ``Guest``."""
        self._machine.executor.counts()  # now, or whoever asks for figures later waits for a guest that sleeps
        cage.close((names.PORT,))
        self._worker.start(lambda: cage.enter(CONTROL))
        self._debugging.start(lambda: cage.enter(DEBUGGER))
        self._copying.start(lambda: cage.enter(CONTROL))
        self._machine.start(self._entry, confine=cage.enter)
        self._worker.do(lambda: self._come_up(process, streams), lambda _: ready(), lambda error: broken(error))

    def _come_up(self, process: Process, streams: Streams) -> None:
        hello = self._await_call()
        trace.event("guest.up", release=hello)
        if self._past is not None:
            self._renew()
            self._program.come_back(self._agent, self._past, streams)
            return
        self._write_down()
        interior = self._interior
        self._program.terminal = streams.console >= 0
        with self._agent.at_once():
            if self._saved is not None:
                self._renew()
            self._board.reveal()
            self._agent.steps(interior.steps)
            # Also where there is none: the loopback is there in every network.
            self._agent.network(interior.links, names.PORT if interior.resolver else 0)
        config = interior.config
        self._agent.create(
            MAIN,
            _settings(inherited.within(process, self._limits), interior.filter),
            interior.root,
            container_steps(nodes.equipped(config, self._agent), interior.sources),
            stdio=_stdio(streams),
            terminal=streams.console >= 0,
            readonly=config.root is not None and config.root.readonly,
        )
        pids = config.linux.resources.pids if config.linux.resources is not None else None
        if pids is not None and pids.limit is not None and pids.limit > 0:
            self._agent.update(MAIN, {"pids.max": str(pids.limit)})

    def _renew(self) -> None:
        self._agent.renew(os.urandom(_ENTROPY), time.time_ns())

    def _await_call(self) -> str:
        try:
            return self._agent.wait(_CALLING if self._saved is None else _CALLING_AGAIN).release
        except Unavailable as error:
            last = bytes(self._console).decode(errors="replace").strip().splitlines()[-3:]
            kind, hint = (Stale, "try again: it is forgotten now") if self._goes_on() else (Unavailable, error.hint)
            raise kind(f"{error}: its console says {' / '.join(last) or 'nothing'}", hint=hint) from error

    def _goes_on(self) -> bool:
        """Whether it is a new machine that goes on from an older one's boot."""
        return self._saved is not None and self._past is None

    def _write_down(self) -> None:
        """For those to come; what fails, as for want of room, fails for them alone."""
        blank, self._blank = self._blank, None
        if blank is None:
            return
        try:
            self._agent.steps(self._interior.found)  # and it has understood the greeting: the secret it knows is ours
            self._machine.pause()
            try:
                labels = {**self._labels, past.TOKEN: self._agent.channel.token.hex()}
                written = blank.fill(state.capture(self._machine, self._board.early, labels), self._machine.memory)
            finally:
                self._machine.resume()
            trace.event("warm.kept", key=blank.key, bytes=written)
        except (MamushkaError, OSError) as error:
            trace.event("warm.not_kept", key=blank.key, error=str(error))
        finally:
            blank.close()

    def start(self, watcher: Watcher) -> None:
        """See ``Guest``."""

        def go() -> None:
            self._agent.ended(MAIN).then(lambda end: watcher.ended(_exit(end)))
            if self._past is None:
                self._agent.start(MAIN)
            elif self._past.frozen:
                self._agent.freeze(MAIN, False)

        self._worker.do(go, lambda _: watcher.started(MAIN), watcher.failed)

    def begin(self, key: int, process: Process, streams: Streams, watcher: Watcher) -> None:
        """See ``Guest``."""
        name = self._program.name(key)

        def ended(end: Exit | MamushkaError) -> None:
            self._program.ended(name)
            watcher.ended(_exit(end))

        def failed(error: BaseException) -> None:
            self._program.ended(name)
            watcher.failed(error)

        def go() -> None:
            settings = _settings(inherited.within(process, self._limits), self._interior.filter)
            self._program.begun(name)
            try:
                end = self._agent.exec(name, MAIN, settings, stdio=_stdio(streams), terminal=streams.console >= 0)
            finally:
                _close(streams)
            watcher.started(key)
            end.then(ended)

        self._worker.do(go, lambda _: None, failed)

    def signal(self, key: int, number: int) -> None:
        """See ``Guest``."""
        self._worker.do(lambda: self._agent.kill(self._program.name(key or MAIN), number, all=not key))

    def resize(self, key: int, rows: int, columns: int) -> None:
        """See ``Guest``."""
        self._worker.do(lambda: self._agent.resize(self._program.name(key), rows, columns))

    def pause(self) -> None:
        """See ``Guest``."""
        if self._debugged:
            raise Conflict("a debugger is attached to this machine", hint="let it detach first")
        self._machine.pause()

    def resume(self) -> None:
        """See ``Guest``."""
        self._machine.resume()

    def save(
        self,
        held: Callable[[Held], None],
        done: Callable[[float], None],
        failed: Callable[[BaseException], None],
        *,
        paused: bool,
    ) -> None:
        """See ``Guest``."""
        if self._debugged:
            raise Conflict("a debugger is attached to this machine", hint="let it detach first")
        past.check(self._board)
        self._cards.check()

        def labels(frozen: bool) -> Mapping[str, str]:
            return self._program.labels(self._agent.channel.token, frozen=frozen)

        go = self._go = threading.Event()  # this one's: an earlier one's may still be set
        self._worker.do(lambda: self._hold.take(labels, held, go, paused=paused), done, failed)

    def go_on(self) -> None:
        """See ``Guest``."""
        self._go.set()

    def ask(self, verb: str, question: dict[str, Any], answer: Callable[[Any], None]) -> None:
        """See ``Guest``."""
        if verb == "figures":  # of the machine, not of its guest, which may be silent
            answer(statistics.document(statistics.take(self._machine, mappings=self._mappings)))
            return
        if verb == "began":
            answer("cold" if self._saved is None else "warm" if self._past is None else "restored")
            return
        if verb == "gdb":
            self._debug(question["descriptors"], answer)
            return
        if verb == "files":
            self._copying.do(lambda: files.serve(self._agent, question), answer, answer)
            return
        known = {
            "processes": self._processes,
            "update": self._update,
            "traffic": self._traffic,
            "accounts": self._accounts,
            "plug": self._cards.plug,
            "names": self._give_names,
            "unplug": self._cards.unplug,
        }
        act = known.get(verb)
        if act is None:
            answer(MamushkaError(f"a machine is not asked for {verb!r}"))
            return
        self._worker.do(lambda: act(question), answer, answer)

    def close(self, done: Callable[[], None]) -> None:
        """See ``Guest``."""
        self._worker.do(self._agent.sync, lambda _: done(), lambda _: done())

    def cause(self) -> BaseException:
        """Why the machine has ended."""
        end = self._machine.end
        if end is None:
            return MamushkaError("it ended")
        last = bytes(self._console).decode(errors="replace").strip().splitlines()[-1:]
        said = f"; its console said last: {last[0][:200]}" if last else ""
        if self._goes_on() and self._agent.hello is None:
            return Stale(f"the saved machine ended ({end.kind}) before it called{said}", hint="try again")
        if end.kind == FAULT:
            return GuestFault(f"{end.cause}{said}")
        if end.kind == STUCK:
            return MamushkaError(f"the processor cannot go on with this guest: {end.cause}{said}")
        return MamushkaError(f"the guest switched itself off ({end.kind}{', ' if end.cause else ''}{end.cause}){said}")

    def _serve_names(self, sockets: Sequence[int]) -> None:
        datagrams, *streams = sockets
        self._vsock.listen(names.PORT, names.Names(self._machine.loop, datagrams).accept)
        self._vsock.listen(names.STREAMS, names.Sessions(self._machine.loop, streams).accept)
        self._has_names = True

    # What is asked

    def _give_names(self, question: dict[str, Any]) -> str:
        """Pass questions for names on from now on: ``descriptors`` as of ``names``, ``text`` for /etc/resolv.conf."""
        sockets, content = question.get("descriptors") or [], question.get("text")
        try:
            if not sockets or not isinstance(content, str):
                raise Invalid("names are given with sockets and a text")
            if self._has_names:
                raise Conflict("the machine asks for names already")
            self._machine.loop.call(lambda: self._serve_names(sockets))
        except BaseException:
            close(sockets)
            raise
        # The guest of a saved machine may have begun before it was saved.
        self._agent.network([], names.PORT if self._past is None or not self._past.resolver else 0)
        self._agent.steps([file(_RESOLV_CONF, content.encode("utf-8", "surrogateescape"))], MAIN)
        return "names"

    def _processes(self, _question: dict[str, Any]) -> Any:
        return [
            {
                "pid": item.number(words.K_PID),
                "inner": item.number(words.K_INNER),
                "uid": item.number(words.K_UID),
                "stat": item.text(words.K_TEXT),
                "command": (item.get(words.K_DATA) or b"").decode(errors="replace"),
            }
            for item in self._agent.processes(MAIN)
        ]

    def _traffic(self, _question: dict[str, Any]) -> Any:
        """The guest's /proc/net/dev."""
        return self._agent.read(["/proc/net/dev"]).get("/proc/net/dev", "")

    def _update(self, question: dict[str, Any]) -> Any:
        names = {"memory": "memory.max", "pids": "pids.max"}
        files = {names[key]: str(number) for key, number in question.items() if key in names}
        if files:
            self._agent.update(MAIN, files)
        return "updated"

    def _accounts(self, _question: dict[str, Any]) -> Any:
        """The container's own /etc/passwd and /etc/group, as text."""
        return {name: self._small_file(f"/etc/{name}") for name in ("passwd", "group")}

    def _small_file(self, path: str) -> str:
        """Empty where there is none that can be read."""
        os.lseek(self._small, 0, os.SEEK_SET)
        try:
            size = self._agent.read_file(path, self._small, MAIN).number(words.K_SIZE)
        except (OSError, NotFound) as error:
            trace.event("guest.unread", path=path, error=str(error))
            return ""
        if size > _SMALL_MAX:
            raise Unsupported(f"{path} has {size} bytes, the most is {_SMALL_MAX}")
        return os.pread(self._small, size, 0).decode(errors="replace")

    # A debugger

    def _debug(self, descriptors: list[int], answer: Callable[[Any], None]) -> None:
        """Serve the debugger at the other end of a socket, which becomes ours; the answer is that it is there."""
        if len(descriptors) != 1 or self._debugged:
            for fd in descriptors:
                os.close(fd)
            raise Conflict("a debugger is attached to this machine already")
        self._debugged = True
        self._debugging.do(
            lambda: self._converse(descriptors[0], answer),
            lambda _: self._left(),
            lambda error: self._refuse(error, answer),
        )

    def _converse(self, fd: int, answer: Callable[[Any], None]) -> None:
        os.set_blocking(fd, True)
        self._conversation.serve(_socket.socket(fileno=fd), lambda: answer("attached"))

    def _left(self) -> None:
        self._debugged = False

    def _refuse(self, error: BaseException, answer: Callable[[Any], None]) -> None:
        self._debugged = False
        answer(error)

    # What the machine tells, in the loop's thread

    def _accept(self, connection: Connection) -> None:
        self._agent.channel.accept(VsockStream(connection))

    def _heard(self, text: bytes) -> None:
        self._console += text
        del self._console[:-_CONSOLE_MAX]
        if trace.listening():
            trace.event("guest.console", text=text.decode(errors="replace"))

    def _lied(self, fault: GuestFault) -> None:
        from mamushka.machine.machine import End

        self._machine.finish(End(FAULT, str(fault)))


class Worker:
    """A thread that does one thing after the other, and tells what came of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: deque[Callable[[], None]] = deque()
        self._some = threading.Semaphore(0)

    def start(self, confine: Callable[[], None]) -> None:
        """Make the thread; it is confined when this returns. Raises what ``confine`` raised there."""
        begin = Call(confine)
        threading.Thread(target=self._run, args=(begin,), name=self._name, daemon=True).start()
        begin.result()

    def do(
        self,
        act: Callable[[], Any],
        told: Callable[[Any], None] = lambda _: None,
        failed: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        """Do something after all that was given before; then one of the two is called, in the thread."""

        def perform() -> None:
            try:
                found = act()
            except BaseException as error:
                trace.event("worker.failed", worker=self._name, error=str(error))
                failed(error)
            else:
                told(found)

        self._work.append(perform)
        self._some.release()

    def _run(self, begin: Call) -> None:
        if not begin.perform():
            return  # whoever started it hears why
        while True:
            self._some.acquire()
            self._work.popleft()()


def _room(size: int) -> int:
    """Memory of this size for what a guest says of a file, however much that is: what is more has no place."""
    fd = os.memfd_create("small", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
    return fd


def _settings(process: Process, filter: Filter | None) -> bytes:
    """A process as the guest is told of it: labels of AppArmor and SELinux protect the host, which this wall does."""
    return process_settings(replace(process, apparmor_profile="", selinux_label=""), filter)


def _stdio(streams: Streams) -> tuple[int, int, int]:
    """What is carried to the guest and from it; it has a /dev/null of its own."""
    if streams.console >= 0:
        return streams.console, streams.console, -1
    stdin, stdout, stderr = (-1 if _is_null(fd) else fd for fd in (streams.stdin, streams.stdout, streams.stderr))
    return stdin, stdout, stderr


def _is_null(fd: int) -> bool:
    found = os.fstat(fd)
    return S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)


def _close(streams: Streams) -> None:
    for fd in {streams.stdin, streams.stdout, streams.stderr, streams.console} - {-1}:
        os.close(fd)


def _exit(end: Exit | MamushkaError) -> Exit:
    """How it ended; whoever does not know was killed with the machine."""
    return end if isinstance(end, Exit) else Exit(signal=9)
