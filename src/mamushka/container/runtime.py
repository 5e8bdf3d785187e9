"""The wall of namespaces behind the Runtime protocol: create, start, exec, signal, pause, delete."""

from __future__ import annotations

import os
import time
from _signal import pidfd_send_signal  # type: ignore[import-not-found]

from mamushka import plan
from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.record import Claim, Record, states, tidy, wait_for_readers
from mamushka.runtime import CREATED, PAUSED, RUNNING, STOPPED, CheckpointOptions, NotRunning, State
from mamushka.values import EMPTY, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mamushka.container.cgroups.cgroup import Cgroup
    from mamushka.container.cgroups.oom import OomWatch
    from mamushka.container.cgroups.usage import Usage
    from mamushka.record import Kept
    from mamushka.runtime import Bundle, Started, Stats, Stdio
    from mamushka.spec.runtime import Config, Mount, Process, Resources

_SIGKILL = 9
# How long a killed container may take to be gone: a process in an uninterruptible disk wait delays it.
_PATIENCE = 10.0
_PLAIN = CheckpointOptions()


class ContainerRuntime:
    """Containers whose records lie below ``root``.

    ``entered`` says that this process is in the user namespace that the next bundle asks for.
    """

    name = "container"

    def __init__(self, root: str, *, cgroups: str = "cgroupfs") -> None:
        """``cgroups`` says who makes the cgroups of new containers; what exists knows it by itself."""
        self.root, self.cgroups = root, cgroups
        self.entered = False

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
        notify: bool = False,
    ) -> Started:
        """Build the container and stop just before its program; ``start`` lets it go.

        ``no_pivot`` moves the root instead of pivoting; ``keyring`` gives it a session keyring of its own; ``notify``
        makes a directory ``notify`` in its record for the caller to use, which the bundle may mount.
        """
        return self._make(
            id, bundle, stdio, root, preserve, gated=True, no_pivot=no_pivot, keyring=keyring, notify=notify
        )

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
        started = self._make(id, bundle, stdio, root, preserve, gated=False, no_pivot=no_pivot, keyring=keyring)
        if bundle.config.hooks.poststart:
            try:
                self._poststart(self._record(id), started.pid)
            except BaseException:
                # What was made for the caller never reaches it.
                self.delete(id, force=True)
                os.waitpid(started.pid, 0)
                for descriptor in (started.pidfd, started.console):
                    if descriptor >= 0:
                        os.close(descriptor)
                raise
        return started

    def _make(
        self,
        id: str,
        bundle: Bundle,
        stdio: Stdio,
        root: int,
        preserve: tuple[int, ...],
        *,
        gated: bool,
        no_pivot: bool,
        keyring: bool,
        notify: bool = False,
    ) -> Started:
        from mamushka.container.cgroups.cgroup import above, choose
        from mamushka.container.creation import BearInit, JoinGroup, MakeCgroup
        from mamushka.container.parts import filter_of, to_keep, within
        from mamushka.container.plan import Interior
        from mamushka.container.privileges import keyring_of, prepare
        from mamushka.record import Kept

        config = bundle.config
        record = Record(self.root, id)
        cgroup = choose(self.cgroups, config.linux.cgroups_path, id, config.annotations)
        kept = Kept(id, bundle.path, time.time(), cgroup.place, to_keep(config))
        if self.entered:
            bundle = replace(bundle, config=within(config))
        interior = Interior(bundle, stdio, kept, gated=gated, no_pivot=no_pivot)
        try:
            filter, program = filter_of(config)
            privileges = prepare(
                interior.process,
                filter=filter,
                keyring=keyring_of(id) if keyring else "",
                user_namespace=interior.namespaces.has("user"),
            )
            init = BearInit(interior, record, cgroup, privileges, root, preserve, program)
            group = [JoinGroup(interior.group, record)] if interior.group else []
            claim = Claim(record, cgroup.place, "container", notify=notify)
            plan.run([claim, MakeCgroup(cgroup, config, config.linux.resources), *group, init])
        except BaseException:
            self._tidy(kept.cgroup)
            raise
        finally:
            interior.close()
        plain = not (kept.hooked or kept.listens or kept.grouped or notify)
        if gated and plain and kept.cgroup[:1] == "/":
            record.keep_removal([*cgroup.removal(), "", *above(kept.cgroup)])
        record.release()
        return init.started

    def start(self, id: str) -> None:
        """Let a created container's program run. The error of one that cannot be executed is the caller's."""
        record = self._record(id)
        gate = record.open_gate()
        if gate < 0:
            self._check_failure(record)  # of an earlier start
            status = self._status(record)
            if status == STOPPED:
                raise Conflict("cannot start a container that has stopped")
            raise Conflict("cannot start an already running container")
        try:
            kept = record.read()
            if kept.listens:
                self._start_listening(record, kept, gate)
            else:
                os.write(gate, b"\n")
            wait_for_readers(gate)
        finally:
            os.close(gate)
        self._check_failure(record)
        if kept.hooked:
            self._poststart(record, record.process()[0])

    def _start_listening(self, record: Record, kept: Kept, gate: int) -> None:
        """Open the gate, and see to it that the agent gets what the filter gives. See ``listener``."""
        from mamushka import hooks
        from mamushka.container.listener import Agent

        assert kept.config.linux.seccomp is not None
        agent = Agent(kept.config.linux.seccomp)
        pid, pidfd = record.process()[0], record.open_process()
        if pidfd < 0:
            agent.close()
            raise NotRunning("container not running")
        try:
            os.write(gate, b"\n")
            agent.hand_over(pid, pidfd, kept.config.oci_version, hooks.state(kept, CREATED, pid))
        except BaseException:
            pidfd_send_signal(pidfd, _SIGKILL)  # it would wait for ever
            raise
        finally:
            os.close(pidfd)

    def _check_failure(self, record: Record) -> None:
        from mamushka.container.failure import explain

        try:
            packet = record.content("failure")
        except NotFound:  # deleted meanwhile
            return
        if packet:
            process = record.read().config.process
            assert process is not None  # it was created with one
            raise explain(packet, process)

    def _poststart(self, record: Record, pid: int) -> None:
        from mamushka import hooks

        try:
            hooks.started(record.read(), pid)
        except Invalid:
            self.delete(record.id, force=True)
            raise

    # Asking

    def _record(self, id: str) -> Record:
        return Record(self.root, id)

    def _cgroup(self, record: Record) -> Cgroup:
        return _open_cgroup(record.read().cgroup)

    def _status(self, record: Record) -> str:
        status = record.status(frozen=False)
        if status in (RUNNING, CREATED) and _frozen(self._cgroup(record)):
            return PAUSED
        return status

    def state(self, id: str) -> State:
        """The present state, taken from the kernel. NotFound for an unknown id."""
        record = self._record(id)
        return record.state(self._status(record))

    def list(self) -> Iterator[State]:
        """All containers of this state directory, by id."""
        return states(self.root, self.state)

    def config(self, id: str) -> Config:
        """What the container was made from; its system call filter without the rules."""
        return self._record(id).read().config

    def processes(self, id: str) -> tuple[int, ...]:
        """The pids inside, as this process's pid namespace counts."""
        record = self._record(id)
        return self._processes(record, self._cgroup(record))

    def _processes(self, record: Record, cgroup: Cgroup) -> tuple[int, ...]:
        """Those in its cgroup; where it may have none, those in its pid namespace."""
        if cgroup.exists():
            return cgroup.processes()
        from mamushka.container.members import members

        return members(record.living())

    def stats(self, id: str) -> Stats:
        """Resource use now."""
        return self._cgroup(self._record(id)).stats()

    def usage(self, id: str) -> Usage:
        """All that is counted, in the kernel's own terms."""
        return self._cgroup(self._record(id)).usage()

    def watch_oom(self, id: str) -> OomWatch | None:
        """Word of kills for want of memory; the caller closes it. None where no controller counts memory."""
        return self._cgroup(self._record(id)).watch_oom()

    def open_process(self, id: str) -> int:
        """A pidfd of the first process, the caller's to close; -1 when it has ended."""
        return self._record(id).open_process()

    def open_root(self, id: str) -> int:
        """The root filesystem as its first process sees it, the caller's to close; NotFound when that has ended."""
        record = self._record(id)
        pid = record.living()
        try:
            root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if pid else -1
        except FileNotFoundError:
            root = -1
        if root >= 0 and record.living() == pid:
            return root
        if root >= 0:
            os.close(root)  # it has just ended, and the number may be another process's by now, with the host's root
        raise NotFound(f"container does not run any more: {id}")

    def features(self) -> Mapping[str, object]:
        """What this wall can do here. runtime-spec, features.md."""
        from mamushka.container.features import features

        return features()

    # Acting

    def kill(self, id: str, signal: int, *, all: bool = False) -> None:
        """Signal the container's init, or every process in it. Conflict when it has ended."""
        record = self._record(id)
        if all:
            self._kill_all(record, signal)
            return
        pidfd = record.open_process()
        if pidfd < 0:
            record.read()  # NotFound for an unknown id
            raise NotRunning("container not running")
        try:
            pidfd_send_signal(pidfd, signal)
        except ProcessLookupError:
            raise NotRunning("container not running") from None
        finally:
            os.close(pidfd)
        if signal == _SIGKILL and _frozen(cgroup := self._cgroup(record)):
            cgroup.thaw()  # a frozen process of cgroup v1 dies when it thaws

    def _kill_all(self, record: Record, signal: int) -> None:
        cgroup = self._cgroup(record)
        if signal == _SIGKILL:
            cgroup.kill()
        for pid in self._processes(record, cgroup) if signal != _SIGKILL or not cgroup.exists() else ():
            try:
                os.kill(pid, signal)
            except ProcessLookupError:
                continue

    def pause(self, id: str) -> None:
        """Freeze all processes."""
        record = self._record(id)
        status = self._status(record)
        if status not in (RUNNING, CREATED):
            raise Conflict(f"container not running: it is {status}")
        self._cgroup(record).freeze()

    def resume(self, id: str) -> None:
        """Thaw them."""
        record = self._record(id)
        if self._status(record) != PAUSED:
            raise Conflict("container not paused")
        self._cgroup(record).thaw()

    def update(self, id: str, resources: Resources) -> None:
        """Change limits while it runs."""
        record = self._record(id)
        if not record.living():
            record.read()
            raise NotRunning("container not running")
        record.drop_removal()
        self._cgroup(record).set(resources)

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
        """A further process inside a running container. Conflict when it does not run, or is paused.

        ``cgroup`` places it below the container's: see ``Cgroup.inside``.
        """
        from mamushka.container.exec import further

        record = self._record(id)
        kept = record.read()
        pidfd = _living(record, "cannot exec in a stopped container: container not running")
        try:
            own = _open_cgroup(kept.cgroup)
            if not ignore_paused and _frozen(own):
                raise Conflict("cannot exec in a paused container: container is paused", hint="resume it first")
            place = own.inside(cgroup) if cgroup else own.habitable(record.process()[0])
            return further(record, kept, pidfd, place, process, stdio, preserve)
        finally:
            os.close(pidfd)

    def mount(self, id: str, mounts: tuple[Mount, ...]) -> None:
        """Mount into a running container; what was mounted before one that fails stays."""
        from mamushka.container import mounting

        self._in_container(id, lambda kept, pidfd: mounting.add(kept, pidfd, mounts))

    def unmount(self, id: str, mounts: tuple[Mount, ...]) -> None:
        """Unmount by destination in a running container."""
        from mamushka.container import mounting

        self._in_container(id, lambda kept, pidfd: mounting.remove(kept, pidfd, mounts))

    def _in_container(self, id: str, act: Callable[[Kept, int], None]) -> None:
        record = self._record(id)
        kept = record.read()
        pidfd = _living(record)
        try:
            act(kept, pidfd)
        finally:
            os.close(pidfd)

    def delete(self, id: str, *, force: bool = False) -> None:
        """Remove what create made; Conflict while it runs, unless forced. Repeating it, forced, is harmless."""
        record = self._record(id)
        try:
            kept = record.read()
        except (NotFound, Invalid) as error:
            # Its creator was killed before it had written anything; or the record is damaged.
            there = os.path.isdir(record.path)
            if not force and not (there and isinstance(error, NotFound)):
                raise
            if there:
                self._delete_unread(record)
            return
        cgroup = _open_cgroup(kept.cgroup)
        pidfd = record.open_process()
        if pidfd >= 0:
            self._end(record, cgroup, pidfd, force=force)
        cgroup.kill()
        cgroup.remove()
        if kept.grouped:
            _leave_groups(record)
        record.remove()
        self._tidy(kept.cgroup)
        self._poststop(kept)

    # Writing down and making anew

    def checkpoint(self, id: str, directory: str, options: CheckpointOptions = _PLAIN) -> None:
        """Write the state into a directory. Unless it may run on the container has ended then; ``delete`` is left."""
        from mamushka.container import checkpoint

        record = self._record(id)
        kept = record.read()
        pidfd = _living(record)
        try:
            if record.status(frozen=False) != RUNNING:
                raise Conflict(f"cannot checkpoint container {id}: its program was not started yet")
            checkpoint.dump(kept, record.process()[0], _open_cgroup(kept.cgroup), directory, options)
            if not (options.leave_running or options.pre_dump):
                _wait_for_end(pidfd)
        finally:
            os.close(pidfd)

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
        """Like ``run``, from a state that ``checkpoint`` has written."""
        from mamushka.container import checkpoint
        from mamushka.container.cgroups.layout import resolve
        from mamushka.container.creation import MakeCgroup
        from mamushka.container.parts import filter_of, to_keep
        from mamushka.container.plan import Interior
        from mamushka.container.privileges import keyring_of
        from mamushka.container.restore import RestoreProcesses
        from mamushka.record import Kept
        from mamushka.spec.runtime import Resources

        config = bundle.config
        checkpoint.check(config)
        record = Record(self.root, id)
        kept = Kept(id, bundle.path, time.time(), resolve(config.linux.cgroups_path, id), to_keep(config))
        cgroup = _open_cgroup(kept.cgroup)
        interior = Interior(bundle, stdio, kept, gated=False)
        # Limits hold from the moment that the processes are whole: criu needs some memory and processes itself.
        asked = config.linux.resources
        devices = Resources(devices=asked.devices) if asked else None
        try:
            own = keyring_of(id) if keyring else ""
            restored = RestoreProcesses(interior, record, cgroup, root, directory, options, filter_of(config)[1], own)
            plan.run([Claim(record, cgroup.place, "container"), MakeCgroup(cgroup, config, devices), restored])
        except BaseException:
            self._tidy(kept.cgroup)
            raise
        finally:
            interior.close()
        record.release()
        return restored.started

    def _tidy(self, cgroup: str) -> None:
        """With the last container go the directories that held the cgroups of all, so that nothing stays behind."""
        tidy(self.root, lambda: _above(cgroup))

    def _delete_unread(self, record: Record) -> None:
        path = record.kept_cgroup()
        if not path:  # nothing was made yet
            record.remove()
            return
        from mamushka.container.cgroups.layout import resolve

        cgroup = _open_cgroup(resolve(path, record.id) if path[:1] == "/" else path)
        pidfd = record.open_process()
        if pidfd >= 0:
            self._end(record, cgroup, pidfd, force=True)
        cgroup.kill()
        cgroup.remove()
        _leave_groups(record)
        record.remove()

    def _end(self, record: Record, cgroup: Cgroup, pidfd: int, *, force: bool) -> None:
        try:
            if not force and record.status(frozen=False) != CREATED:
                raise Conflict(
                    f"cannot delete container {record.id} that is not stopped: container still running",
                    hint="kill it first, or use force",
                )
            pidfd_send_signal(pidfd, _SIGKILL)
            cgroup.kill()
            _wait_for_end(pidfd)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)

    def _poststop(self, kept: Kept) -> None:
        if not kept.hooked:
            return
        from mamushka import hooks

        hooks.deleted(kept)


def _living(record: Record, otherwise: str = "container not running") -> int:
    """A pidfd of the first process, the caller's to close; NotRunning when it has ended."""
    pidfd = record.open_process()
    if pidfd < 0:
        raise NotRunning(otherwise)
    return pidfd


def _open_cgroup(path: str) -> Cgroup:
    from mamushka.container.cgroups.cgroup import open_cgroup

    return open_cgroup(path)


def _leave_groups(record: Record) -> None:
    from mamushka.container.resctrl import remove

    for path in record.kept_groups():
        remove(path)


def _frozen(cgroup: Cgroup) -> bool:
    try:
        return cgroup.frozen()
    except FileNotFoundError:
        return False


def _above(cgroup: str) -> list[str]:
    from mamushka.container.cgroups.cgroup import above

    return above(cgroup)


def _wait_for_end(pidfd: int) -> None:
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_PATIENCE * 1000):
        raise Conflict(f"the container did not end within {_PATIENCE:.0f} s of SIGKILL")
