"""What creating a machine does to the host, as a plan: the record, the cgroup, the monitor.

On disk first, then in the kernel: whenever the creator is killed, the record names what there may be to remove, and a
monitor that was not recorded ends by itself, because nobody lets it go on.

Some callers set up the network only after create: they ask for a new namespace and put links into that of the pid that
they are told. So a machine that is created with one waits in it, and is made when it is started.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from mamushka import trace
from mamushka.errors import Invalid
from mamushka.linux import procfs
from mamushka.linux.abi import address_of
from mamushka.linux.process import CLONE_NEWNET, PR_SET_NAME, clone3, prctl, unshare
from mamushka.machine import control, terminal
from mamushka.machine.control import Line, Listener
from mamushka.machine.inside import Streams
from mamushka.machine.monitor import Post
from mamushka.runtime import NotRunning, Started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from mamushka.machine.control import Packet
    from mamushka.machine.inside import Guest
    from mamushka.record import Kept, Record
    from mamushka.runtime import Cgroup, Stdio
    from mamushka.spec.runtime import Config, Process, Resources

    # In the monitor, once it is recorded: makes the machine, all that it needs open. The descriptors are to be kept.
    Make = Callable[[], Guest]

OOM = "oom"  # has a byte when the guest's kernel killed the program for want of memory
CONTROL = "control"  # the socket's name in the record
_GO: Packet = {"answer": "go"}
_HOOKS = "hooks"  # the monitor is where they look for it


class MakeCgroup:
    """Make the cgroup that the monitor is born in."""

    def __init__(self, cgroup: Cgroup, resources: Resources) -> None:
        self.cgroup, self.resources = cgroup, resources
        self.made = False

    def describe(self) -> str:
        return f"make the cgroup {self.cgroup.place}"

    def execute(self) -> None:
        self.cgroup.create(self.resources)
        self.made = True

    def undo(self) -> None:
        if self.made:
            self.cgroup.kill()
            self.cgroup.remove()


class BearMonitor:
    """Fork the monitor, and follow it until its program runs, or waits for start.

    ``keep`` are descriptors that ``make`` uses in the monitor; everything else of the caller's is closed there.
    """

    def __init__(
        self,
        kept: Kept,
        record: Record,
        cgroup: Cgroup,
        stdio: Stdio,
        make: Make,
        *,
        gated: bool,
        keep: tuple[int, ...] = (),
    ) -> None:
        self.kept, self.record, self.cgroup, self.stdio = kept, record, cgroup, stdio
        self.make, self.gated, self.keep = make, gated, keep
        self.traced = trace.listening()
        self.pid = self.pidfd = self.console = -1
        self._line: Line | None = None

    @property
    def started(self) -> Started:
        """What the caller gets."""
        return Started(self.pid, self.pidfd, self.console)

    def describe(self) -> str:
        process = self.kept.config.process
        assert process is not None
        return f"fork a monitor, and start {process.args[0]} in its machine"

    def execute(self) -> None:
        process = self.kept.config.process
        assert process is not None
        self.record.keep(self.kept, b"")
        self._line, theirs = Line.pair()
        listener = Listener(f"{self.record.path}/{CONTROL}")
        self.console, streams = streams_of(process, self.stdio)
        gate, outcome = self.record.make_gate() if self.gated else (-1, -1)
        post = Post(process, streams, gate=gate, outcome=outcome, owner=os.geteuid())
        try:
            self._bear(post, theirs, listener)
        finally:
            theirs.close()
            listener.close()
            close_all((*members(streams), gate, outcome))
        self.cgroup.settle()
        self._follow()

    def _bear(self, post: Post, theirs: Line, listener: Listener) -> None:
        entrance = self.cgroup.entrance()
        adopt = self.cgroup.adoption()
        directory = -1 if adopt else self.cgroup.descriptor()
        try:
            self.pid, self.pidfd = clone3(0, cgroup=directory)
            if self.pid == 0:
                self._become(post, theirs, listener, entrance.doors)
        finally:
            entrance.close()
            if directory >= 0:
                os.close(directory)
        if adopt:
            adopt(self.pid)

    def _become(self, post: Post, theirs: Line, listener: Listener, doors: tuple[int, ...]) -> NoReturn:
        """In the child."""
        from mamushka.machine.monitor import BROKEN, leave
        from mamushka.runtime import Exit

        exit = Exit(code=BROKEN)
        try:
            for door in doors:
                os.write(door, b"0")
            keep = (*members(post.streams), post.gate, post.outcome, theirs.fileno(), listener.fileno(), *self.keep)
            settle(keep, post.streams.console)
            _await(theirs)
            self._prepare(theirs)
            exit = self._serve(post, theirs, listener)
        except BaseException as error:
            tell(theirs, control.failed(error))
        finally:
            leave(exit)

    def _prepare(self, theirs: Line) -> None:
        """In the child: be where hooks and callers look for it, and as dear to the kernel as the program is to be."""
        process = self.kept.config.process
        if process is not None and process.oom_score_adj is not None:
            procfs.write("self/oom_score_adj", b"%d" % process.oom_score_adj)
        if self._linked():
            unshare(CLONE_NEWNET)
        if self._hooks():
            theirs.send({"answer": _HOOKS})
            _await(theirs)

    def _hooks(self) -> bool:
        given = self.kept.config.hooks
        return bool(given.prestart or given.create_runtime)

    def _linked(self) -> bool:
        """Whether somebody may put links into a network namespace that is the machine's own."""
        return own_network(self.kept.config) and (self.gated or self._hooks())

    def _serve(self, post: Post, theirs: Line, listener: Listener) -> Any:
        from mamushka.machine.cage import Cage
        from mamushka.machine.monitor import BROKEN, Monitor
        from mamushka.runtime import Exit
        from mamushka.values import replace

        paused = os.open(f"{self.record.path}/process", os.O_RDWR | os.O_CLOEXEC)
        oom = os.open(f"{self.record.path}/{OOM}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        forward = Forward(theirs)
        if self.traced:
            trace.subscribe(forward)
        post = replace(post, paused=paused, oom=oom)
        late = self.gated and self._linked()
        if late:
            theirs.send({"answer": "created"})
            theirs.close()
            os.read(post.gate, 1)
            post = replace(post, opened=True)
        try:
            guest = self.make()
        except BaseException as error:
            if not late:
                raise
            from mamushka import document

            os.write(post.outcome, document.dump(control.failed(error)))
            return Exit(code=BROKEN)
        monitor = Monitor(post, guest, Cage(), None if late else theirs, listener)
        forward.post = monitor.post
        return monitor.serve()

    def _follow(self) -> None:
        """Until it says that all is ready, telling what it does meanwhile."""
        assert self._line is not None
        trace.event("machine.born", pid=self.pid)
        self.record.keep_process(self.pid)
        self._line.send(_GO)
        while True:
            packet, given = self._line.receive()
            control.close(given)
            if not packet:
                raise NotRunning(f"the machine's monitor ended {_how(self.pidfd)} before its program began")
            if "event" in packet:
                fields = packet.get("fields")
                trace.event(str(packet["event"]), **(fields if isinstance(fields, dict) else {}))
                continue
            if control.answered(packet) == _HOOKS:
                from mamushka import hooks

                hooks.before(self.kept, self.pid)
                self._line.send(_GO)
                continue
            break
        self._line.close()

    def undo(self) -> None:
        if self._line is not None:
            self._line.close()
        if self.console >= 0:
            os.close(self.console)
        self.console = -1
        if self.pid > 0:
            # Our own child that nobody else reaps: the number is still its.
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            os.close(self.pidfd)
            self.pid = self.pidfd = -1


class Forward:
    """Events of a monitor that is being made, to whoever makes it; afterwards nobody wants them.

    Once there are several threads they are sent by the one that ``post`` leads to.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self.post: Callable[[Callable[[], None]], None] = lambda act: act()

    def __call__(self, name: str, fields: dict[str, object]) -> None:
        plain = {key: item if isinstance(item, int | str) else str(item) for key, item in fields.items()}
        self.post(lambda: self._send(name, plain))

    def _send(self, name: str, fields: dict[str, int | str]) -> None:
        try:
            self._line.send({"event": name, "fields": fields})
        except (OSError, Invalid):  # the creator has gone, or has heard enough
            trace.unsubscribe(self)


def own_network(config: Config) -> bool:
    """Whether a new network namespace is asked for, into which others may put links."""
    return any(item.type == "network" and not item.path for item in config.linux.namespaces)


def _await(theirs: Line) -> None:
    """In a monitor that is born: until its creator lets it go on; the end where that is gone, and has kept nobody."""
    from mamushka.machine.monitor import BROKEN

    if not theirs.receive()[0]:
        os._exit(BROKEN)


def streams_of(process: Process, stdio: Stdio) -> tuple[int, Streams]:
    """(the master of its terminal or -1, the streams that a monitor gets)."""
    if process.terminal:
        master, other = terminal.open_terminal(process)
        return master, Streams(console=other)
    made: list[int] = []
    try:
        made.append(terminal.stream(stdio.stdin, os.O_RDONLY))
        made.append(terminal.stream(stdio.stdout, os.O_WRONLY))
        made.append(terminal.stream(stdio.stderr, os.O_WRONLY))
    except BaseException:
        close_all(tuple(made))
        raise
    return -1, Streams(*made)


def members(streams: Streams) -> tuple[int, ...]:
    """The descriptors that there are."""
    return tuple(fd for fd in (streams.stdin, streams.stdout, streams.stderr, streams.console) if fd >= 0)


def close_all(descriptors: tuple[int, ...]) -> None:
    """Close those that there are."""
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)


def _how(pidfd: int) -> str:
    """How a child of ours ended, which stays to be reaped."""
    found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    if found is None or found.si_code == os.CLD_EXITED:
        return f"with status {found.si_status if found else 0}"
    return f"by signal {found.si_status}"


def tell(line: Line, packet: Packet) -> None:
    """Say something to whoever may have gone."""
    try:
        line.send(packet)
    except OSError:
        pass


def settle(keep: tuple[int, ...], console: int) -> None:
    """Be nobody's but our own: another session, no descriptor but ``keep``, no handler, no listener of the caller's."""
    import gc

    from mamushka.linux.fd import close_others

    gc.freeze()  # a collection would copy the pages that are shared with the caller
    os.setsid()
    _signal.set_wakeup_fd(-1)  # the caller's descriptor, soon another's number
    close_others(keep)
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)
    if console >= 0:
        terminal.take(console)
    trace.forget()
    name = bytearray(b"mamushka-vm\0")
    prctl(PR_SET_NAME, address_of(name))
    os.chdir("/")
    os.umask(0o077)
