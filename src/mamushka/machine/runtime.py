"""The wall of a computer behind the Runtime protocol: create, start, exec, signal, pause, delete.

A machine's *monitor* is a process, forked from whoever creates it and their child: it holds the machine, and its end is
the workload's. It is reached by name, through a socket in its record (control.py). What it is doing is never stored: it
is asked of the kernel, as the record's page says, and a paused one holds a lock.
"""

from __future__ import annotations

import os
import time
from _signal import pidfd_send_signal  # type: ignore[import-not-found]

from mamushka import plan, trace
from mamushka.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from mamushka.linux import lock, procfs
from mamushka.machine import control
from mamushka.machine.control import Stale, connect, say
from mamushka.machine.creation import CONTROL, OOM, own_network
from mamushka.record import Claim, Kept, Record, states, tidy, wait_for_readers
from mamushka.runtime import CREATED, PAUSED, RUNNING, STOPPED, CheckpointOptions, NotRunning, State
from mamushka.values import EMPTY, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Protocol

    from mamushka.machine.checkpoint import Held
    from mamushka.machine.control import Line
    from mamushka.machine.creation import Make
    from mamushka.machine.state import Saved
    from mamushka.machine.statistics import Sample
    from mamushka.runtime import Bundle, Cgroup, Cgroups, Started, Stats, Stdio
    from mamushka.spec.runtime import Config, Mount, Process, Resources

    class Maker(Protocol):
        """What makes a bundle's machine. ``prepare`` runs in the creator, what it gives in the monitor."""

        def prepare(self, record: Record, bundle: Bundle, root: int) -> tuple[Make, tuple[int, ...]]:
            """(what makes the machine, the descriptors that it uses, which become the caller's to close)."""

        def again(self, record: Record, bundle: Bundle, saved: Saved, memory: int) -> tuple[Make, tuple[int, ...]]:
            """``prepare``, of a machine that goes on from a saved one; ``memory`` is among what it gives."""

        def forget(self) -> None:
            """A saved machine could not go on: have none that machines could go on from."""

        def features(self) -> Mapping[str, object]:
            """What machines can do here."""


_SIGKILL = 9
# How long a killed monitor may take to be gone.
_PATIENCE = 10.0
# How long a guest may take to kill its program itself, so that what it wrote reaches its disks, before its monitor is.
_LAST_WORDS = 2.0
_PLAIN = CheckpointOptions()


class MachineRuntime:
    """Machines whose records lie below ``root``."""

    name = "vm"

    def __init__(self, root: str, *, cgroups: Cgroups, manager: str = "cgroupfs", maker: Maker) -> None:
        """``cgroups`` makes and finds control groups, ``manager`` those of new machines; ``maker`` makes machines."""
        self.root, self.manager = root, manager
        self._cgroups, self._maker = cgroups, maker

    # Making

    def create(
        self,
        id: str,
        bundle: Bundle,
        stdio: Stdio,
        *,
        root: int = -1,
        preserve: tuple[int, ...] = (),
        no_pivot: bool = False,
        keyring: bool = True,
    ) -> Started:
        """Boot the machine and stop just before its program; ``start`` lets it go.

        How the root becomes the root, and whose keyring it is, are the guest's own business in any case.
        """
        return self._make(id, bundle, stdio, root, preserve, gated=True)

    def run(
        self,
        id: str,
        bundle: Bundle,
        stdio: Stdio,
        *,
        root: int = -1,
        preserve: tuple[int, ...] = (),
        no_pivot: bool = False,
        keyring: bool = True,
    ) -> Started:
        """create and start in one go, without the gate between them."""
        return self._make(id, bundle, stdio, root, preserve, gated=False)

    def _make(
        self, id: str, bundle: Bundle, stdio: Stdio, root: int, preserve: tuple[int, ...], *, gated: bool
    ) -> Started:
        from mamushka.machine.shape import check

        check(bundle.config, preserve=preserve)
        if gated and own_network(bundle.config):
            from mamushka.machine import lookup

            lookup.check(bundle, root)  # start makes the machine, and that is late for who asks create
        record = Record(self.root, id)
        make, keep = self._maker.prepare(record, bundle, root)
        try:
            return self._bear(record, bundle, stdio, make, keep, root=root, gated=gated)
        except Stale as error:
            trace.event("warm.stale", id=id, error=str(error))
            self._maker.forget()
            if bundle.config.hooks.prestart or bundle.config.hooks.create_runtime:
                raise  # they have been told of the first one
        make, keep = self._maker.prepare(record, bundle, root)  # there is none to go on from now
        return self._bear(record, bundle, stdio, make, keep, root=root, gated=gated)

    def _bear(
        self,
        record: Record,
        bundle: Bundle,
        stdio: Stdio,
        make: Make,
        keep: tuple[int, ...],
        *,
        root: int = -1,
        gated: bool,
    ) -> Started:
        """Carry it out; ``keep`` is closed."""
        from mamushka.machine.creation import BearMonitor, MakeCgroup, close_all
        from mamushka.machine.shape import outside

        config = bundle.config
        cgroup = self._cgroups.choose(self.manager, config.linux.cgroups_path, record.id, config.annotations)
        kept = Kept(record.id, bundle.path, time.time(), cgroup.place, _to_keep(config))
        used = keep if root < 0 else (*keep, root)
        bear = BearMonitor(kept, record, cgroup, stdio, make, gated=gated, keep=used)
        try:
            plan.run([Claim(record, cgroup.place, "machine"), MakeCgroup(cgroup, outside(config)), bear])
        except BaseException:
            self._tidy(cgroup.place)
            raise
        finally:
            close_all(keep)
        record.release()
        if not gated and kept.hooked:
            self._poststart(kept, bear.pid)
        return bear.started

    def start(self, id: str) -> None:
        """Let a created machine's program run. The error of one that cannot be executed is the caller's."""
        record = self._record(id)
        gate = record.open_gate()
        if gate < 0:
            self._check_failure(record)  # of an earlier start
            if self._status(record) == STOPPED:
                raise Conflict("cannot start a container that has stopped")
            raise Conflict("cannot start an already running container")
        try:
            os.write(gate, b"\n")
            wait_for_readers(gate)
        finally:
            os.close(gate)
        self._check_failure(record)
        kept = record.read()
        if kept.hooked:
            self._poststart(kept, record.process()[0])

    def _poststart(self, kept: Kept, pid: int) -> None:
        from mamushka import hooks

        try:
            hooks.started(kept, pid)
        except Invalid:
            self.delete(kept.id, force=True)
            raise

    def _check_failure(self, record: Record) -> None:
        try:
            packet = record.content("failure")
        except NotFound:  # deleted meanwhile
            return
        if packet:
            from mamushka import document

            try:
                control.answered(document.parse(packet, "the monitor's last words"))
            except Stale:
                self._maker.forget()
                raise

    # Asking

    def _record(self, id: str) -> Record:
        return Record(self.root, id)

    def _cgroup(self, record: Record) -> Cgroup:
        return self._cgroups.open_cgroup(record.read().cgroup)

    def _status(self, record: Record) -> str:
        return record.status(frozen=_paused(record))

    def state(self, id: str) -> State:
        """The present state, taken from the kernel. NotFound for an unknown id."""
        record = self._record(id)
        return record.state(self._status(record))

    def list(self) -> Iterator[State]:
        """All machines of this state directory, by id."""
        return states(self.root, self.state)

    def config(self, id: str) -> Config:
        """What the machine was made from; its system call filter without the rules."""
        return self._record(id).read().config

    def processes(self, id: str) -> tuple[int, ...]:
        """The pids that the host sees: the monitor's and its helpers'. Those inside are ``processes_inside``."""
        return self._processes(self._record(id))

    def _processes(self, record: Record) -> tuple[int, ...]:
        monitor = record.living()
        # An ordinary user may have no cgroup, and then the monitor knows its helpers: they are its children.
        return self._cgroup(record).processes() or (procfs.descendants(monitor) if monitor else ())

    def ask(self, id: str, verb: str, **question: object) -> Any:
        """Ask the monitor anything further: ``processes``, ``figures``, ``accounts``, …; the answer is a document."""
        return self._ask(self._record(id), {"ask": verb, **question})

    def copy(self, id: str, action: str, path: str, pipe: int, *, root: str = "", content: bool = True) -> Line:
        """Begin to copy a tree (files.py): its stream goes through the pipe, whose end given here stays the caller's.

        The answer comes over what is given, when all is done: ``control.reply_of``. NotRunning, Conflict.
        """
        record = self._record(id)
        line = connect(f"{record.path}/{CONTROL}")
        try:
            line.send({"ask": "files", "action": action, "path": path, "root": root, "content": content}, (pipe,))
        except BaseException:
            line.close()
            raise
        return line

    def sample(self, id: str) -> Sample:
        """What was counted of the machine since it began: exits, page faults, memory. For ``statistics.rates``."""
        from mamushka.machine.statistics import sample

        return sample(self.ask(id, "figures"))

    def plug(self, id: str, tap: int, mac: bytes, mtu: int, link: bytes) -> None:
        """Plug a network card in whose other end is a tap, which stays the caller's to close, and tell the guest what
        it is for (agent.settings.link). Conflict where the machine is paused or has no place left; NotRunning."""
        self._ask(self._record(id), {"ask": "plug", "mac": mac.hex(), "mtu": mtu, "link": link.hex()}, (tap,))

    def unplug(self, id: str, mac: bytes) -> None:
        """Take the card with this address out, and close its tap. NotFound where there is none."""
        self.ask(id, "unplug", mac=mac.hex())

    def give_names(self, id: str, sockets: tuple[int, ...], resolv_conf: str) -> None:
        """Have its programs ask for names where its /etc/resolv.conf, which is written anew, says: at 127.0.0.11.

        ``sockets`` are what ``machine.names`` passes them on by; they stay the caller's. Conflict where the machine is
        paused, or has names already; NotRunning."""
        self._ask(self._record(id), {"ask": "names", "text": resolv_conf}, sockets)

    def debug(self, id: str, connection: int) -> None:
        """Let the debugger at the other end of a socket have the machine, which holds still when this returns.

        The descriptor stays the caller's. Conflict where another has it, or while it is paused.
        """
        self._ask(self._record(id), {"ask": "gdb"}, (connection,))

    def stats(self, id: str) -> Stats:
        """Resource use now: the monitor's, whose processor time and memory are the guest's and its own.

        A guest that ran out of memory killed by itself: that counts, though the host knows nothing of it.
        """
        record = self._record(id)
        stats = self._cgroup(record).stats()
        try:
            inside = record.content(OOM)
        except NotFound:
            inside = b""
        return replace(stats, oom_kills=stats.oom_kills + len(inside))

    def usage(self, id: str) -> Any:
        """All that is counted of the monitor and what serves it, as the cgroups that were handed in say it."""
        return self._cgroup(self._record(id)).usage()

    def watch_oom(self, id: str) -> Any:
        """Word of kills on the host for want of memory; the caller closes it."""
        return self._cgroup(self._record(id)).watch_oom()

    def open_process(self, id: str) -> int:
        """A pidfd of the monitor, the caller's to close; -1 when it has ended."""
        return self._record(id).open_process()

    def open_root(self, id: str) -> int:
        """The root filesystem that is shared with the guest, as the program that serves it sees it.

        What the guest mounts over it is not in it. NotFound when the machine has ended.
        """
        record = self._record(id)
        for pid in self._processes(record) if record.living() else ():
            try:
                root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            try:
                if {"root", "mounts"} <= set(os.listdir(root)) <= {"root", "mounts", "served"} and record.living():
                    return os.open("root", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            finally:
                os.close(root)
        raise NotFound(f"container does not run any more: {id}")

    def features(self) -> Mapping[str, object]:
        """What this wall can do here. runtime-spec, features.md."""
        return self._maker.features()

    def _ask(self, record: Record, question: Mapping[str, object], descriptors: tuple[int, ...] = ()) -> Any:
        # One whose links are put in between create and start is not made before that, and its monitor hears nobody.
        if record.status(frozen=False) == CREATED and own_network(record.read().config):
            raise Conflict("the machine is made when it is started", hint="start it first")
        try:
            return control.ask(f"{record.path}/{CONTROL}", question, descriptors)
        except NotRunning:
            record.read()  # NotFound for an unknown id
            raise

    # Acting

    def kill(self, id: str, signal: int, *, all: bool = False) -> None:
        """Signal the program, or every process in the guest. NotRunning when it has ended."""
        record = self._record(id)
        pidfd = record.open_process()
        if pidfd < 0:
            record.read()  # NotFound for an unknown id
            raise NotRunning("container not running")
        try:
            if signal == _SIGKILL:
                self._kill(record, pidfd)
            elif record.status(frozen=False) == CREATED:
                pidfd_send_signal(pidfd, signal)  # the program waits: the signal is what ends it
            elif signal:
                self._ask(record, {"ask": "signal", "number": signal, "all": all})
        except ProcessLookupError:
            raise NotRunning("container not running") from None
        finally:
            os.close(pidfd)

    def _kill(self, record: Record, pidfd: int) -> None:
        """By the guest where it answers, so that its disks are in order; else without it."""
        if record.status(frozen=_paused(record)) == RUNNING:
            try:
                line = connect(f"{record.path}/{CONTROL}")
                try:
                    line.wait(_LAST_WORDS)
                    say(line, {"ask": "signal", "number": _SIGKILL, "all": False})
                finally:
                    line.close()
                if _ends(pidfd, _LAST_WORDS):
                    return
            except (Unavailable, Conflict, Invalid, NotFound, OSError):
                pass  # the guest is not there to be asked
        pidfd_send_signal(pidfd, _SIGKILL)

    def pause(self, id: str) -> None:
        """Stop all virtual processors between two instructions."""
        record = self._record(id)
        status = self._status(record)
        if status not in (RUNNING, CREATED):
            raise Conflict(f"container not running: it is {status}")
        self._ask(record, {"ask": "pause"})

    def resume(self, id: str) -> None:
        """Let them run on."""
        record = self._record(id)
        if self._status(record) != PAUSED:
            raise Conflict("container not paused")
        self._ask(record, {"ask": "resume"})

    def update(self, id: str, resources: Resources) -> None:
        """Change what can change while it runs: shares and bandwidth of processors, disks; memory up to what it has."""
        from mamushka.machine.shape import limits, shape

        record = self._record(id)
        if not record.living():
            record.read()
            raise NotRunning("container not running")
        has = shape(record.read().config).memory
        memory = resources.memory
        if memory is not None and memory.limit and memory.limit > has:
            raise Unsupported(
                f"a machine of {has >> 20} MiB cannot be given {memory.limit >> 20} MiB while it runs",
                hint="make it anew with a larger limit",
            )
        self._cgroup(record).set(limits(replace(resources, memory=None)))
        self._ask(record, {"ask": "update", **_inside(resources)})

    def exec(
        self,
        id: str,
        process: Process,
        stdio: Stdio,
        *,
        preserve: tuple[int, ...] = (),
        ignore_paused: bool = False,
        cgroup: Mapping[str, str] = EMPTY,
    ) -> Started:
        """A further process inside a running machine. Its relay, a child of the caller, ends as it does.

        A machine that is paused cannot begin one, not even later (``ignore_paused``).
        """
        from mamushka.machine.relay import further

        if cgroup:
            raise Unsupported("a further process has the cgroup of the machine's first", hint="leave out --cgroup")
        if preserve:
            raise Unsupported("descriptors of the host's (--preserve-fds) mean nothing to a machine's kernel")
        record = self._record(id)
        if not record.living():
            record.read()
            raise NotRunning("cannot exec in a stopped container: container not running")
        if _paused(record):
            raise Conflict("cannot exec in a paused container: container is paused", hint="resume it first")
        return further(f"{record.path}/{CONTROL}", process, stdio)

    def delete(self, id: str, *, force: bool = False) -> None:
        """Remove what create made; Conflict while it runs, unless forced. Repeating it, forced, is harmless."""
        record = self._record(id)
        kept: Kept | None
        try:
            kept = record.read()
            place = kept.cgroup
        except (NotFound, Invalid) as error:
            # Its creator was killed before it had written anything; or the record is damaged.
            there = os.path.isdir(record.path)
            if not force and not (there and isinstance(error, NotFound)):
                raise
            if not there:
                return
            kept, place = None, record.kept_cgroup()
        cgroup = self._cgroups.open_cgroup(place) if place else None
        pidfd = record.open_process()
        if pidfd >= 0:
            self._end(record, pidfd, force=force)
        if cgroup is not None:
            cgroup.kill()
            cgroup.remove()
        record.remove()
        self._tidy(place)
        if kept is not None and kept.hooked:
            from mamushka import hooks

            hooks.deleted(kept)

    def _end(self, record: Record, pidfd: int, *, force: bool) -> None:
        try:
            if not force and record.status(frozen=False) != CREATED:
                raise Conflict(
                    f"cannot delete container {record.id} that is not stopped: container still running",
                    hint="kill it first, or use force",
                )
            pidfd_send_signal(pidfd, _SIGKILL)
            if not _ends(pidfd, _PATIENCE):
                raise Conflict(f"the machine did not end within {_PATIENCE:.0f} s of SIGKILL")
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)

    def _tidy(self, place: str) -> None:
        """With the last machine go the directories that held the cgroups of all."""
        tidy(self.root, lambda: self._cgroups.above(place))

    def mount(self, id: str, mounts: tuple[Mount, ...]) -> None:
        """What a guest sees of the host is decided when it is made."""
        raise Unsupported("nothing more can be shared with a machine that runs", hint="name it when you create it")

    def unmount(self, id: str, mounts: tuple[Mount, ...]) -> None:
        """See ``mount``."""
        raise Unsupported("what is shared with a machine stays until it ends")

    # Writing down and making anew

    def checkpoint(self, id: str, directory: str, options: CheckpointOptions = _PLAIN) -> None:
        """Write the state into a directory: see ``checkpoint`` for the files.

        Unsupported where files of the host's are shared with the machine. Of the options that are criu's, those about
        ties of processes to the outside are passed over.
        """
        from mamushka.machine.checkpoint import write

        path = self._socket(id)
        self._make_room(id)
        write(path, directory, options)

    def hold(self, id: str) -> Held:
        """Have it hold still, for others to go on from it at once; what there is of it then, the caller's to close."""
        from mamushka.machine.checkpoint import Held

        path = self._socket(id)
        self._make_room(id)
        return Held(path)

    def _make_room(self, id: str) -> None:
        """Let a machine with a limit have what saving it takes: a copy of its memory if it was frozen before, and again
        as much for what it will change. What it has now includes memory that others go on from.
        """
        from mamushka.machine.shape import OVERHEAD, shape
        from mamushka.spec.runtime import Memory, Resources

        record = self._record(id)
        config = record.read().config
        asked = config.linux.resources.memory if config.linux.resources is not None else None
        if asked is None or not asked.limit or asked.limit < 0:
            return
        cgroup = self._cgroup(record)
        limit = cgroup.stats().memory + 2 * shape(config).memory + OVERHEAD
        cgroup.set(Resources(memory=Memory(limit=limit)))

    def _socket(self, id: str) -> str:
        record = self._record(id)
        if not record.living() or record.status(frozen=False) == CREATED:
            record.read()  # NotFound for an unknown id
            raise NotRunning("container not running")
        return f"{record.path}/{CONTROL}"

    def restore(
        self,
        id: str,
        bundle: Bundle,
        stdio: Stdio,
        directory: str,
        options: CheckpointOptions = _PLAIN,
        *,
        root: int = -1,
        keyring: bool = True,
    ) -> Started:
        """Like ``run``, from a state that ``checkpoint`` has written.

        The bundle's disks are those that the machine had; the one that is written a copy of the state's ``disk``.
        ``options.memory`` is a descriptor of the memory where it is not in the directory; it stays the caller's.
        """
        from mamushka.machine.checkpoint import check as check_options
        from mamushka.machine.checkpoint import read
        from mamushka.machine.shape import check

        check(bundle.config)
        check_options(options)
        saved, memory = read(directory, options.memory)
        record = Record(self.root, id)
        try:
            make, keep = self._maker.again(record, bundle, saved, memory)
        except BaseException:
            os.close(memory)
            raise
        return self._bear(record, bundle, stdio, make, keep, gated=False)


def _paused(record: Record) -> bool:
    """Whether the monitor holds the lock that says so."""
    from mamushka.machine.monitor import PAUSED as BYTE

    try:
        fd = os.open(f"{record.path}/process", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return lock.held(fd, byte=BYTE)
    finally:
        os.close(fd)


def _to_keep(config: Config) -> Config:
    """Without the rules of the filter: nobody needs them again, and they are most of the document."""
    seccomp = config.linux.seccomp
    if seccomp is None:
        return config
    return replace(config, linux=replace(config.linux, seccomp=None))


def _inside(resources: Resources) -> dict[str, object]:
    """What of limits holds in the guest."""
    found: dict[str, object] = {}
    if resources.memory is not None and resources.memory.limit:
        found["memory"] = resources.memory.limit
    if resources.pids is not None and resources.pids.limit is not None:
        found["pids"] = resources.pids.limit
    return found


def _ends(pidfd: int, seconds: float) -> bool:
    """Whether the process ends within this time."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
