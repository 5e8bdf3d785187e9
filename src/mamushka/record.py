"""What stays on disk between two commands: one directory for each container.

    cgroup       its path; written before anything is made, so that whatever a killed creator leaves is found
    seccomp      the compiled filter, for exec
    resctrl      groups of resctrl that are the container's alone
    state.json   bundle, annotations, hooks and all that a later exec needs
    process      "PID START": the container's first process and when it began, in clock ticks since boot; the last
                 to be written, while that process still waits for it
    gate         a fifo; as long as the created container waits, it holds the reading side
    failure      why the program could not be executed after the gate
    removal      what delete removes in the end, for a front that is no interpreter; not where there is more to be done
    notify/      where the caller may put a socket that the container sees; only if it asked for that

The status is never stored. It is asked of the kernel: a creator holds a lock on the directory, a waiting
container holds the gate, a process is the same one only if it began at the same tick.
"""

from __future__ import annotations

import os
from errno import ENXIO

from mamushka import document
from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.runtime import CREATED, CREATING, PAUSED, RUNNING, STOPPED, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from mamushka.spec.runtime import Config

# A name of a directory; and in a message or a cgroup path nobody wants more.
ID_LENGTH_MAX = 255
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_LATER = _FIRST | frozenset("+-.")
# Our own document, but a directory that others might have written to: the bundle's limit.
_STATE_MAX = document.SIZE_MAX


def check_id(id: str) -> str:
    """The id, or Invalid. It becomes the name of a directory and a cgroup."""
    if not id or len(id) > ID_LENGTH_MAX or id[0] not in _FIRST | {"+", "-"} or not _LATER.issuperset(id):
        raise Invalid(
            f"invalid container ID format: {id!r}",
            hint="letters, digits, _ + - and . are allowed, not first a dot",
        )
    return id


class Kept:
    """What state.json holds. Of the config, what later commands need; it is parsed when one does."""

    __slots__ = ("_config", "_document", "bundle", "cgroup", "created", "id")

    def __init__(self, id: str, bundle: str, created: float, cgroup: str, config: Config | None = None) -> None:
        self.id, self.bundle, self.created, self.cgroup = id, bundle, created, cgroup
        self._config = config
        self._document: dict[str, Any] = {}

    @staticmethod
    def parse(id: str, raw: bytes, what: str) -> Kept:
        """The inverse of ``dump``. Raises Invalid, never anything else."""
        found = document.parse(raw, what)
        try:
            kept = Kept(id, str(found["bundle"]), float(found["created"]), str(found["cgroup"]))
            kept._document = found["config"]
        except (TypeError, KeyError, ValueError) as error:
            raise Invalid(f"{what} is damaged: {error!r}", hint="delete --force removes what is left") from None
        return kept

    def dump(self) -> bytes:
        """As JSON."""
        head = {"id": self.id, "bundle": self.bundle, "created": self.created, "cgroup": self.cgroup}
        from mamushka.spec.runtime import dump

        return document.dump(head)[:-1] + b',"config":' + dump(self.config) + b"}"

    @property
    def config(self) -> Config:
        """What the container was made from."""
        if self._config is None:
            from mamushka.spec.runtime import config_of

            self._config = config_of(self._document, f"the record of {self.id}")
        return self._config

    @property
    def hooked(self) -> bool:
        """Whether there are hooks at all."""
        if self._config is None:
            return bool(self._document.get("hooks"))
        return any(getattr(self._config.hooks, moment) for moment in self._config.hooks.__match_args__)

    @property
    def grouped(self) -> bool:
        """Whether it belongs to a class of service."""
        return bool(self._config.linux.intel_rdt if self._config else "intelRdt" in self._document.get("linux", {}))

    @property
    def listens(self) -> bool:
        """Whether its filter has a listener."""
        return bool(self._config.linux.seccomp if self._config else self._document.get("linux", {}).get("seccomp"))


class Record:
    """The directory of one container."""

    __slots__ = ("_lock", "id", "path")

    def __init__(self, root: str, id: str) -> None:
        self.id = check_id(id)
        self.path = f"{root}/{id}"
        self._lock = -1

    # Writing: the creator alone

    def claim(self, cgroup: str, *, notify: bool = False) -> None:
        """Make the directory, note the cgroup, and hold both until ``release``. Conflict when the id is taken."""
        try:
            os.mkdir(self.path, 0o711)
        except FileExistsError:
            raise Conflict(
                f"container with given ID already exists: {self.id}", hint="delete it first, or choose another id"
            ) from None
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), 0o711, exist_ok=True)
            return self.claim(cgroup, notify=notify)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        from mamushka.linux.fd import LOCK_EX, flock

        flock(self._lock, LOCK_EX)
        self._write("cgroup", os.fsencode(cgroup))
        if notify:
            os.mkdir(f"{self.path}/notify", 0o755)
        return None

    def release(self) -> None:
        """The container is made; or its creator gives up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def keep(self, kept: Kept, seccomp: bytes) -> None:
        """Write state.json, and the filter."""
        if seccomp:
            self._write("seccomp", seccomp)
        self._write("state.json", kept.dump())

    def keep_groups(self, paths: Sequence[str]) -> None:
        """Write which groups of resctrl are the container's alone, and go with it."""
        self._write("resctrl", os.fsencode("\n".join(paths)))

    def kept_groups(self) -> list[str]:
        """Those groups; none, as of most containers."""
        try:
            return [path for path in os.fsdecode(self.content("resctrl")).split("\n") if path]
        except NotFound:
            return []

    def kept_cgroup(self) -> str:
        """The cgroup's path, also where nothing else was written; empty when not even that was."""
        try:
            return os.fsdecode(self.content("cgroup"))
        except NotFound:
            return ""

    def keep_process(self, pid: int) -> None:
        """Write which process the container's first is."""
        self._write("process", b"%d %d\n" % (pid, start_time(pid)))

    def keep_removal(self, lines: list[str]) -> None:
        """Write down what is to be removed, for a program that does it without looking. interfaces/oci/front.c."""
        self._write("removal", os.fsencode("\n".join([*lines, ""])))

    def drop_removal(self) -> None:
        """There will be more to remove than was written down."""
        try:
            os.unlink(f"{self.path}/removal")
        except FileNotFoundError:
            pass

    def _write(self, name: str, content: bytes) -> None:
        # In one write, and nothing relies on a file before ``process`` is there, which is checked for being whole.
        descriptor = os.open(f"{self.path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)

    def make_gate(self) -> tuple[int, int]:
        """The gate and the failure file, open as the waiting container needs them."""
        os.mkfifo(f"{self.path}/gate", 0o600)
        # Reading and writing, so that a read waits for a byte instead of seeing that nobody writes yet.
        gate = os.open(f"{self.path}/gate", os.O_RDWR | os.O_CLOEXEC)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return gate, os.open(f"{self.path}/failure", flags, 0o600)

    def remove(self) -> None:
        """Remove the directory; harmless when it is gone."""
        try:
            for name in os.listdir(self.path):
                if name == "notify":
                    Record._remove_socket(f"{self.path}/{name}")
                else:
                    os.unlink(f"{self.path}/{name}")
            os.rmdir(self.path)
        except FileNotFoundError:
            pass

    @staticmethod
    def _remove_socket(path: str) -> None:
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)

    # Reading: anybody

    def read(self) -> Kept:
        """What was kept. NotFound for an unknown id, or one whose creator was killed at once."""
        return Kept.parse(self.id, self.content("state.json"), f"{self.path}/state.json")

    def content(self, name: str) -> bytes:
        """One of the files. NotFound where the container, or the file, is not there."""
        try:
            descriptor = os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"container does not exist: {self.id}") from None
        try:
            # No room for the most that there may be: it would be mapped and unmapped each time.
            return os.read(descriptor, min(os.fstat(descriptor).st_size + 1, _STATE_MAX))
        finally:
            os.close(descriptor)

    def process(self) -> tuple[int, int]:
        """(pid, start) of the container's first process; (0, 0) while there is none yet."""
        try:
            content = self.content("process")
        except NotFound:
            content = b""
        if content[-1:] != b"\n":  # not there, or its writer was killed in the middle
            return 0, 0
        pid, start = content.split()
        return int(pid), int(start)

    def living(self) -> int:
        """The pid of the container's first process, or 0 when it has ended."""
        pid, start = self.process()
        return pid if pid and alive(pid, start) else 0

    def open_process(self) -> int:
        """A pidfd of the container's living first process; -1 when it has ended."""
        pid, start = self.process()
        if not pid:
            return -1
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return -1
        # Checked after the descriptor pins the pid: what began at the same tick is the same process.
        if alive(pid, start):
            return pidfd
        os.close(pidfd)
        return -1

    def open_gate(self) -> int:
        """The writing side of the gate, or -1 when nobody waits behind it."""
        try:
            return os.open(f"{self.path}/gate", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        except OSError as error:
            if error.errno == ENXIO:
                return -1
            raise

    def status(self, *, frozen: bool) -> str:
        """creating, created, running, paused or stopped, as the kernel sees it now."""
        if not self.process()[0]:
            return CREATING if self._creator_lives() else STOPPED
        if not self.living():
            return STOPPED
        if frozen:
            return PAUSED
        gate = self.open_gate()
        if gate >= 0:
            os.close(gate)
            return CREATED
        return RUNNING

    def state(self, status: str) -> State:
        """All that is told of it, with a status that was just asked for. NotFound for an unknown id."""
        pid = 0 if status in (STOPPED, CREATING) else self.process()[0]
        try:
            kept = self.read()
        except NotFound:
            if not os.path.isdir(self.path):
                raise
            return State(self.id, status, pid, "")  # its creator was killed before it had written anything
        return State(self.id, status, pid, kept.bundle, kept.config.annotations, kept.created)

    def _creator_lives(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"container does not exist: {self.id}") from None
        from mamushka.linux.fd import LOCK_NB, LOCK_SH, flock

        try:
            flock(descriptor, LOCK_SH | LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def records(root: str) -> Iterator[Record]:
    """All containers of a state directory, by name."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    for name in names:
        try:
            yield Record(root, name)
        except Invalid:  # not ours
            continue


def states(root: str, state: Callable[[str], State]) -> Iterator[State]:
    """The state of each that a state directory has, by id."""
    for record in records(root):
        try:
            yield state(record.id)
        except NotFound:  # deleted meanwhile
            continue


def tidy(root: str, above: Callable[[], Iterable[str]]) -> None:
    """With the last of a state directory go the directories that held the cgroups of all, so that nothing stays."""
    try:
        if os.listdir(root):
            return
    except FileNotFoundError:
        pass
    for directory in above():
        try:
            os.rmdir(directory)
        except OSError:  # others have theirs there
            continue


def wait_for_readers(gate: int) -> None:
    """Until nobody has the gate open for reading: the program has been executed, or has failed."""
    import select

    poll = select.poll()
    poll.register(gate, 0)  # POLLERR is always told
    poll.poll()


class Claim:
    """The first operation of every plan: take the id, and write down where to look for what is about to be made."""

    def __init__(self, record: Record, cgroup: str, what: str, *, notify: bool = False) -> None:
        self.record, self.cgroup, self.what, self.notify = record, cgroup, what, notify
        self.claimed = False

    def describe(self) -> str:
        return f"record the {self.what} in {self.record.path}"

    def execute(self) -> None:
        self.record.claim(self.cgroup, notify=self.notify)
        self.claimed = True

    def undo(self) -> None:
        if self.claimed:  # otherwise it is another's
            self.record.remove()
            self.record.release()


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot. proc_pid_stat(5), field 22."""
    return int(_stat(pid)[19])


def alive(pid: int, start: int) -> bool:
    """Whether this very process still runs; a zombie does not."""
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == start


def _stat(pid: int) -> list[bytes]:
    """The fields after the command's name, which may itself hold spaces and brackets."""
    descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1024).rpartition(b") ")[2].split()
    finally:
        os.close(descriptor)
