"""What can be asked of a guest, as calls: each sends one request and waits for its answer.

They are for any thread but the loop's. What does not depend on each other's answers may be asked at once (``at_once``).
A process is named by a number of the host's own choice; a container by that of the process it began with.
"""

from __future__ import annotations

import errno
import os
import threading

from mamushka import trace
from mamushka.errors import GuestFault, MamushkaError, NotFound, Unavailable, Unsupported
from mamushka.execution import not_entered, not_executed
from mamushka.machine.agent import words
from mamushka.machine.agent.channel import Channel
from mamushka.machine.agent.protocol import Answer, Exited, Fields, Hello, Log, group, number, raw, text
from mamushka.machine.agent.pump import Pump
from mamushka.runtime import Exit, NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mamushka.machine.agent.channel import Request
    from mamushka.machine.agent.protocol import Event, Failure
    from mamushka.machine.loop import Loop

# A guest that is alive answers in milliseconds; one that reads through a slow disk may take long.
PATIENCE = 30.0
# Processes whose end is told before anybody asks for it: those of a machine that goes on after it was saved.
_UNASKED_MAX = 4096
# Of a file that a guest's kernel or image gives as a whole: statistics, a listing.
_WHOLE_MAX = 64 << 20


def explain(failure: Failure, what: str) -> MamushkaError | OSError:
    """The error that a failed request means to the caller."""
    reason = os.strerror(failure.number) if failure.number else "no reason given"
    name = f": {failure.path!r}" if failure.path else ""
    message = f"{failure.operation}: {reason}{name}"
    if failure.kind in (words.COMMAND_NOT_FOUND, words.CANNOT_EXECUTE):
        return not_executed(failure.path, failure.number, reason)
    if failure.kind == words.BAD_DIRECTORY:
        return not_entered(failure.path, reason)
    if failure.kind == words.NO_SUCH_PROCESS:
        return NotRunning(f"cannot {what or 'do that'}: it is not running")
    if failure.kind == words.BAD_REQUEST:
        return MamushkaError(f"the guest's agent does not take the request to {what}: {message}")
    if failure.number == errno.ENODEV and failure.operation == "mount":
        return Unsupported(f"the guest's kernel cannot {what}: {message}",
                           hint="a module is missing in the initramfs, or in that kernel")  # fmt: skip
    return OSError(failure.number, f"{failure.operation}: {reason}", failure.path or None)


def answered(request: Request, timeout: float | None) -> Fields:
    """What a request is answered with; raises what a failure means."""
    answer = request.result(timeout)
    trace.event("guest.did", what=request.what)
    if isinstance(answer, Answer):
        return answer.fields
    raise explain(answer, request.what)


def _below(root: str) -> list[bytes]:
    return [text(words.K_ROOT, root)] if root else []


class Ended:
    """A process's end, to be waited for; ``result`` is its Exit."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._exit: Exit | None = None
        self._error: MamushkaError | None = None
        self._lock = threading.Lock()  # guards what follows
        self._then: Callable[[Exit | MamushkaError], None] | None = None

    def set(self, exit: Exit | None, error: MamushkaError | None = None) -> None:
        """Called in the loop's thread; the first counts."""
        if not self._done.is_set():
            self._exit, self._error = exit, error
            self._done.set()
            self._tell()

    def then(self, told: Callable[[Exit | MamushkaError], None]) -> None:
        """Have the end, or why nobody will know it, told once: in the loop's thread, or at once where it is known."""
        with self._lock:
            self._then = told
        if self._done.is_set():
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            told, self._then = self._then, None
        said = self._exit or self._error
        if told is not None and said is not None:
            told(said)

    def result(self, timeout: float | None = None) -> Exit:
        """Unavailable when it has not ended in so many seconds, or the guest has gone."""
        if not self._done.wait(timeout):
            raise Unavailable(f"the process has not ended in {timeout} s")
        if self._error is not None:
            raise self._error
        assert self._exit is not None
        return self._exit


class AtOnce:
    """See ``Agent.at_once``."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __enter__(self) -> None:
        assert self._agent.asked is None
        self._agent.asked = []

    def __exit__(self, kind: object, error: object, where: object) -> None:
        asked, self._agent.asked = self._agent.asked or [], None
        if error is None:
            for request in asked:
                answered(request, PATIENCE)


class Agent:
    """A guest's first process. ``channel.accept`` is to be given the connections that the guest makes to port 1024."""

    def __init__(self, loop: Loop, broken: Callable[[GuestFault], None], token: bytes = b"") -> None:
        self._loop, self._broken = loop, broken
        self.channel = Channel(loop, self._told, self._fault, token)
        self.hello: Hello | None = None
        self._there = threading.Event()
        self._gone: MamushkaError | None = None
        self._ended: dict[int, Ended] = {}
        self._pumps: dict[int, dict[int, Pump]] = {}
        self._exits: dict[int, Exited] = {}  # told of, while the host still takes what was written
        self.asked: list[Request] | None = None  # of whoever asks at once

    def at_once(self) -> AtOnce:
        """``with agent.at_once():`` what is asked within is sent at once, and answered when that ends; of errors, the
        first asked for is raised. For what has no answer but that it was done, and for one thread."""
        return AtOnce(self)

    # The guest

    def wait(self, timeout: float) -> Hello:
        """Until the agent has called; Unavailable when it does not in so many seconds."""
        if not self._there.wait(timeout):
            raise Unavailable(f"the guest's agent did not call within {timeout:g} s",
                              hint="its kernel did not boot: see the machine's console")  # fmt: skip
        if self._gone is not None:
            raise self._gone
        assert self.hello is not None
        return self.hello

    def steps(self, steps: Iterable[bytes], container: int = 0) -> None:
        """Mount, make and write, in the guest's own namespaces or in a container's. See settings.step."""
        where = [number(words.K_CONTAINER, container)] if container else []
        self._ask(words.STEPS, *where, *steps, what="prepare the guest")

    def network(self, links: Iterable[bytes], resolver: int = 0) -> None:
        """Bring links up; see settings.link. The loopback is brought up with them.

        What the guest's programs ask 127.0.0.11 comes to the port ``resolver`` of the host's, where there is one.
        """
        fields = [number(words.K_RESOLVER, resolver)] if resolver else []
        self._ask(words.NETWORK, *links, *fields, what="bring up the network")

    def renew(self, entropy: bytes = b"", clock_ns: int = 0) -> None:
        """After a restore: reseed the kernel's random pool, set the clock (nanoseconds since the epoch)."""
        fields = [raw(words.K_ENTROPY, entropy)] if entropy else []
        fields += [number(words.K_CLOCK, clock_ns)] if clock_ns else []
        self._ask(words.RENEW, *fields, what="renew the guest's clock and entropy")

    def sync(self) -> None:
        """Have the guest write its disks' caches back."""
        self._ask(words.SYNC, what="write back", timeout=None)

    def power_off(self, *, reboot: bool = False) -> None:
        """Let the guest end itself; returns when it answers, or has gone before its answer could."""
        try:
            self._ask(words.POWER, number(words.K_ACTION, reboot), what="power off")
        except Unavailable:
            if self.channel.connected:
                raise

    # Processes

    def create(
        self,
        process: int,
        settings: bytes,
        root: str,
        steps: Iterable[bytes] = (),
        *,
        stdio: tuple[int, int, int] = (-1, -1, -1),
        terminal: bool = False,
        readonly: bool = False,
        cgroup: str = "",
    ) -> Ended:
        """Build a container below ``root`` and stop before its program.

        Host descriptors in ``stdio`` are copied; -1 is /dev/null; with a terminal only the first two are used, mostly
        both the slave or master side of one of the host's. CommandNotFound, CannotExecute and OSError as they come.
        """
        fields = [text(words.K_ROOT, root), settings, *steps]
        fields += [number(words.K_READONLY, 1)] if readonly else []
        fields += [text(words.K_CGROUP, cgroup)] if cgroup else []
        return self._launch(words.CREATE, process, fields, stdio, terminal)

    def start(self, process: int) -> None:
        """Let a created container's program run."""
        self._ask(words.START, number(words.K_PROCESS, process), what="start")

    def exec(
        self,
        process: int,
        container: int,
        settings: bytes,
        *,
        stdio: tuple[int, int, int] = (-1, -1, -1),
        terminal: bool = False,
    ) -> Ended:
        """A further process in a container; it runs when this returns."""
        return self._launch(words.EXEC, process, [number(words.K_CONTAINER, container), settings], stdio, terminal)

    def ended(self, process: int) -> Ended:
        """The end of a process that was made before a restore; of others, ``create`` and ``exec`` give it."""
        return self._ended.setdefault(process, Ended())

    def attach(self, process: int, stream: int, source: int, sink: int) -> None:
        """Connect a stream anew, after a restore."""
        self._expect(process, stream, source, sink)
        self._ask(words.ATTACH, number(words.K_PROCESS, process), number(words.K_STREAM, stream), what="attach")

    def kill(self, process: int, signal: int, *, all: bool = False) -> None:
        """Signal a process, or all of its container. NotRunning when it has ended."""
        fields = [number(words.K_PROCESS, process), number(words.K_SIGNAL, signal)]
        self._ask(words.SIGNAL, *fields, *([number(words.K_ALL, 1)] if all else []), what="signal the process")

    def resize(self, process: int, rows: int, columns: int) -> None:
        """Tell a terminal its size, in characters."""
        size = number(words.K_ROWS, min(rows, 0xFFFF)), number(words.K_COLUMNS, min(columns, 0xFFFF))
        self._ask(words.RESIZE, number(words.K_PROCESS, process), *size, what="resize the terminal")

    def close_stream(self, process: int, stream: int) -> None:
        """The host will neither send nor take any more: end of file, or a broken pipe, for the process."""
        self._ask(words.CLOSE, number(words.K_PROCESS, process), number(words.K_STREAM, stream), what="close a stream")
        self._loop.call(lambda: self._dismiss(process, stream))

    def delete(self, container: int) -> None:
        """Forget a container that has ended."""
        self._ask(words.DELETE, number(words.K_CONTAINER, container), what="delete the container")

    # A container's cgroup

    def freeze(self, container: int, frozen: bool) -> None:
        """Freeze or thaw all its processes; returns when they are."""
        self._ask(
            words.FREEZE, number(words.K_CONTAINER, container), number(words.K_ACTION, frozen), what="freeze or thaw"
        )

    def update(self, container: int, files: Mapping[str, str]) -> None:
        """Write files of its cgroup, such as memory.max."""
        fields = [group(words.K_FILE, text(words.K_NAME, name), raw(words.K_DATA, content.encode()))
                  for name, content in files.items()]  # fmt: skip
        self._ask(words.UPDATE, number(words.K_CONTAINER, container), *fields, what="change the limits")

    def read(self, names: Sequence[str], container: int = 0) -> dict[str, str]:
        """Small files of its cgroup by name, or of the guest's by path; what is not there is left out."""
        where = [number(words.K_CONTAINER, container)] if container else []
        found = self._ask(words.READ, *where, *(text(words.K_NAME, name) for name in names), what="read statistics")
        return {
            item.text(words.K_NAME): (item.get(words.K_DATA) or b"").decode("utf-8", "replace")
            for item in found.groups(words.K_FILE)
        }

    def processes(self, container: int) -> list[Fields]:
        """PID, INNER, UID, TEXT (/proc/PID/stat) and DATA (its command line) of each process."""
        found = self._ask(words.PROCESSES, number(words.K_CONTAINER, container), what="list the processes")
        return list(found.groups(words.K_ITEM))

    # Files

    def read_file(self, path: str, sink: int, container: int = 0) -> Fields:
        """A regular file's content, written to a descriptor; MODE, UID, GID, SIZE, MTIME."""
        return self._files(words.FILE_READ, path, -1, sink, container)

    def write_file(self, path: str, source: int, mode: int, uid: int = 0, gid: int = 0, container: int = 0) -> Fields:
        """A regular file made of, or overwritten with, all that a descriptor gives."""
        owner = number(words.K_MODE, mode), number(words.K_UID, uid), number(words.K_GID, gid)
        return self._files(words.FILE_WRITE, path, source, -1, container, *owner)

    def pack(self, path: str, sink: int, container: int = 0, *, root: str = "", content: bool = True) -> None:
        """A file with all below it, as a stream (tree.py) to a descriptor; its path begins at ``root``."""
        fields = [number(words.K_ALL, content), *_below(root)]
        self._files(words.FILE_PACK, path, -1, sink, container, *fields)

    def unpack(self, path: str, source: int, container: int = 0, *, root: str = "") -> None:
        """Into a directory, what a stream of a descriptor's holds."""
        self._files(words.FILE_UNPACK, path, source, -1, container, *_below(root))

    def remove(self, path: str, container: int = 0, *, root: str = "", recursive: bool = False) -> None:
        """A file, an empty directory, or with ``recursive`` all below it too."""
        fields = [number(words.K_RECURSIVE, recursive), *_below(root)]
        self._files(words.FILE_REMOVE, path, -1, -1, container, *fields)

    def list_files(self, path: str, container: int = 0, *, root: str = "") -> list[Fields]:
        """What is at a path, first, without a name; then, if that is a directory, what it contains."""
        listing = os.memfd_create("listing", os.MFD_CLOEXEC)
        try:
            self._files(words.FILE_LIST, path, -1, listing, container, *_below(root))
            size = os.fstat(listing).st_size
            if size > _WHOLE_MAX:
                raise GuestFault(f"the guest's agent listed {path!r} in {size} bytes, the most is {_WHOLE_MAX}")
            return list(Fields(os.pread(listing, size, 0)).groups(words.K_ITEM))
        finally:
            os.close(listing)

    def close(self) -> None:
        """The machine has ended: nobody answers any more."""
        self._loop.call(lambda: self._end(Unavailable("the machine has ended")))

    # Within

    def _ask(self, kind: int, *fields: bytes, what: str, timeout: float | None = PATIENCE) -> Fields:
        request = self.channel.request(kind, *fields, what=what)
        if self.asked is not None:
            self.asked.append(request)
            return Fields(b"")
        return answered(request, timeout)

    def _launch(
        self, kind: int, process: int, fields: list[bytes], stdio: tuple[int, int, int], terminal: bool
    ) -> Ended:
        ended = self._ended[process] = Ended()
        streams: dict[int, tuple[int, int]] = {}
        if terminal:
            streams[words.TTY] = stdio[0], stdio[1]
        for stream, descriptor in enumerate(() if terminal else stdio):
            if descriptor >= 0:
                streams[stream] = (descriptor, -1) if stream == words.STDIN else (-1, descriptor)
        bits = sum(1 << stream for stream in streams)

        def ask() -> Request:
            for stream, ends in streams.items():
                self._expect(process, stream, *ends)
            about = number(words.K_PROCESS, process), number(words.K_STREAMS, bits)
            return self.channel.request(kind, *about, *fields, what="make the process")

        try:
            answered(self._loop.call(ask), PATIENCE)  # one turn of the loop's for all of it
        except BaseException:
            self._ended.pop(process, None)
            self._loop.call(lambda: self._drop(process))
            raise
        return ended

    def _expect(self, process: int, stream: int, source: int, sink: int) -> None:
        pump = Pump(
            self._loop,
            source,
            sink,
            lambda: self._finished(process, stream),
            lambda: self._settle(process),
            terminal=stream == words.TTY,
        )

        def begin() -> None:
            old = self._pumps.setdefault(process, {}).pop(stream, None)
            if old is not None:
                old.close()
            self._pumps[process][stream] = pump

        self._loop.call(begin)
        self.channel.expect(process, stream, pump.opened)

    def _files(self, action: int, path: str, source: int, sink: int, container: int, *fields: bytes) -> Fields:
        stream = int.from_bytes(os.urandom(8), "little") | 1 << 63  # no process's name
        drained = threading.Event()
        pump = Pump(self._loop, source, sink, drained.set)
        self.channel.expect(stream, words.CONTENT, pump.opened)
        where = [number(words.K_CONTAINER, container)] if container else []
        try:
            found = self._ask(
                words.FILES, number(words.K_PROCESS, stream), number(words.K_ACTION, action), text(words.K_PATH, path),
                *where, *fields, what=f"copy {path}", timeout=None,
            )  # fmt: skip
            if sink >= 0 and not drained.wait(PATIENCE):
                raise Unavailable(f"the content of {path!r} did not come")
            return found
        except FileNotFoundError as error:
            raise NotFound(f"no such file or directory in the guest: {path!r}") from error
        finally:
            self.channel.forget(stream, words.CONTENT)
            self._loop.call(pump.close)

    def _drop(self, process: int) -> None:
        for pump in self._pumps.pop(process, {}).values():
            pump.close()

    def _dismiss(self, process: int, stream: int) -> None:
        pump = self._pumps.get(process, {}).get(stream)
        if pump is not None:
            pump.close()
            self._finished(process, stream)

    def _finished(self, process: int, stream: int) -> None:
        """All that came over a stream has been written, and no more comes."""
        self._pumps.get(process, {}).pop(stream, None)
        self._settle(process)

    def _settle(self, process: int) -> None:
        """Tell of a process's end once its output is where it belongs; others may hold streams open still."""
        event = self._exits.get(process)
        streams = self._pumps.get(process, {})
        if event is None:
            return
        enough = dict(event.open)
        for stream, pump in streams.items():
            if stream != words.STDIN and not (stream in enough and pump.written >= enough[stream]):
                return
        del self._exits[process]
        if words.STDIN in streams:
            streams.pop(words.STDIN).close()
        exit = Exit(event.code, event.signal, event.oom_killed)
        if not self._pumps.get(process):
            self._pumps.pop(process, None)
        # Whoever made it has its Ended; one that nobody has asked for yet is kept.
        (self._ended.pop(process, None) or self._unasked(process)).set(exit)

    def _unasked(self, process: int) -> Ended:
        if len(self._ended) >= _UNASKED_MAX:
            raise GuestFault(f"the guest's agent told the end of process {process:#x}, which nobody made")
        return self._ended.setdefault(process, Ended())

    def _told(self, event: Event) -> None:
        if isinstance(event, Hello):
            self.hello = event
            self._there.set()
        elif isinstance(event, Log):
            trace.event("guest.log", text=event.text)
        elif isinstance(event, Exited):
            self._exits[event.process] = event
            self._settle(event.process)

    def _fault(self, fault: GuestFault) -> None:
        self._end(fault)
        self._broken(fault)

    def _end(self, error: MamushkaError) -> None:
        self._gone = error
        self._there.set()
        self.channel.close()
        for process in list(self._pumps):
            self._drop(process)
        for ended in self._ended.values():
            ended.set(None, error)
