"""Warm starts: a machine goes on from where one of the same kind stood before it had anything to do.

A kernel takes many times as long to come up as anything that follows, and comes up in the same way every time. So the
first machine of a kind is written down when its guest has called and has not been told anything yet: no program, no
file, no name of its workload is in it. Later machines of the kind are made of that (state.py), learn the time and get
entropy of their own, and are told the rest as any other.

What makes a kind is in its key: kernel, first process, command line, processors, memory, devices in order, and the
host's processor and this program's version, on which the state's meaning depends; and this run of the host. What a
host that lost its power had not written of a memory would be zeros, in a file that looks whole; to wait for its disk
would take longer than to boot. For each kind there are two files:

    KEY.memory    sparse; zeros are holes
    KEY.state     state.dump, written last; locked by whoever makes the two

There is no daemon and no index. A state that can be read and is locked by nobody is whole; any other is the rest of a
monitor that was killed, and made anew by the next one that finds it. A state that does not fit what is there now is
as good as none. At most ``COUNT_MAX`` are kept, and about ``BYTES_MAX``: those used last.

The memory is a guest's that has run nothing but our own first process, and may be read by its owner alone.
"""

from __future__ import annotations

import os
import sys

from mamushka import trace
from mamushka.errors import Invalid, Unsupported
from mamushka.linux import lock
from mamushka.machine import state
from mamushka.spec.digest import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mamushka.machine.memory import Memory
    from mamushka.machine.state import Saved

# A host runs few kernels, and few sizes of machines; each takes some 50 to 100 MiB of a disk.
COUNT_MAX = 8
BYTES_MAX = 1 << 30
_STATE, _MEMORY = ".state", ".memory"
_BLOCK = 512  # bytes in a unit of st_blocks: stat(2)
# Another after each start of the host: random(4).
BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PROCESSOR_MAX = 8192  # of /proc/cpuinfo, what tells of the first processor is less


class Warm:
    """A machine to go on from. Owns the descriptor of its memory."""

    def __init__(self, key: str, saved: Saved, memory: int) -> None:
        self.key, self.saved, self.fd = key, saved, memory

    def memory(self, *, shared: bool) -> Memory:
        """Its RAM; ``shared`` where other processes must be given it, which means a copy."""
        return state.copied_memory(self.saved, self.fd) if shared else state.private_memory(self.saved, self.fd)

    def close(self) -> None:
        """Once the memory was made."""
        os.close(self.fd)


class Blank:
    """Two empty files for a machine that is about to come up. Owns their descriptors, and with them the lock."""

    def __init__(self, key: str, state_fd: int, memory_fd: int) -> None:
        self.key, self._state, self._memory = key, state_fd, memory_fd

    def fill(self, saved: Saved, memory: Memory) -> int:
        """Write it; bytes of memory that were written. OSError where there is no room for it: then it is none."""
        try:
            os.ftruncate(self._memory, sum(stretch.length for stretch in saved.stretches))
            written = state.write_memory(memory, self._memory)
            rest, offset = memoryview(state.dump(saved)), 0
            while rest:
                count = os.pwrite(self._state, rest, offset)
                rest, offset = rest[count:], offset + count
        except BaseException:
            os.ftruncate(self._memory, 0)
            os.ftruncate(self._state, 0)
            raise
        return written

    def close(self) -> None:
        """Let go of the lock: what was not filled is made anew by another."""
        os.close(self._memory)
        os.close(self._state)


class Shelf:
    """All that are kept in a directory, which is made when the first one is."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def take(self, key: str) -> Warm | None:
        """The one of this kind, where there is one."""
        try:
            fd = os.open(self._path(key, _STATE), os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # there is none, or nothing may be kept here
            return None
        try:
            if lock.held(fd):  # is being made
                return None
            saved = state.load(os.pread(fd, state.SIZE_MAX + 1, 0))
            memory = os.open(self._path(key, _MEMORY), os.O_RDONLY | os.O_CLOEXEC)
            os.utime(fd)  # by which those that nobody uses are known
            return Warm(key, saved, memory)
        except (Invalid, Unsupported, OSError) as error:
            trace.event("warm.broken", key=key, error=str(error))
            return None
        finally:
            os.close(fd)

    def begin(self, key: str) -> Blank | None:
        """A place for one that is about to be made; None where another monitor makes it, or nothing can be kept."""
        try:
            return self._begin(key)
        except OSError as error:
            trace.event("warm.not_kept", key=key, error=str(error))
            return None

    def _begin(self, key: str) -> Blank | None:
        os.makedirs(self.directory, 0o700, exist_ok=True)
        self._make_room()
        fd = os.open(self._path(key, _STATE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not lock.take(fd):
            os.close(fd)
            return None
        try:
            # Whoever goes on from an older one has its memory mapped: it keeps the file that it has.
            self._unlink(key, _MEMORY)
            os.ftruncate(fd, 0)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return Blank(key, fd, os.open(self._path(key, _MEMORY), flags, 0o600))
        except BaseException:
            os.close(fd)
            raise

    def drop(self, key: str) -> None:
        """Forget one that is of no use."""
        self._unlink(key, _STATE)
        self._unlink(key, _MEMORY)

    def prune(self) -> tuple[list[str], int]:
        """Forget all but those that are being made: their keys, and the bytes that were freed."""
        keys, freed = [], 0
        for key, size, _ in list(self._kept()):
            if self._busy(key):
                continue
            self.drop(key)
            keys.append(key)
            freed += size
        return keys, freed

    def _make_room(self) -> None:
        """For one more."""
        kept = sorted(self._kept(), key=lambda item: item[2], reverse=True)
        total = 0
        for position, (key, size, _) in enumerate(kept):
            total += size
            if (position >= COUNT_MAX - 1 or total > BYTES_MAX) and not self._busy(key):
                trace.event("warm.dropped", key=key, bytes=size)
                self.drop(key)

    def _kept(self) -> Iterator[tuple[str, int, float]]:
        """(key, bytes on the disk, when it was used last) of each."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return
        for name in sorted(names):
            key, suffix = os.path.splitext(name)
            if suffix != _STATE:
                continue
            size, used = 0, 0.0
            for suffix in (_MEMORY, _STATE):
                try:
                    found = os.stat(self._path(key, suffix))
                except FileNotFoundError:
                    continue
                size, used = size + found.st_blocks * _BLOCK, found.st_mtime
            yield key, size, used

    def _busy(self, key: str) -> bool:
        try:
            fd = os.open(self._path(key, _STATE), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return lock.held(fd)
        finally:
            os.close(fd)

    def _path(self, key: str, suffix: str) -> str:
        return f"{self.directory}/{key}{suffix}"

    def _unlink(self, key: str, suffix: str) -> None:
        try:
            os.unlink(self._path(key, suffix))
        except FileNotFoundError:
            pass


def place(cache: str) -> str:
    """Where they are below what is made for all machines."""
    return f"{os.path.abspath(cache)}/warm"


def key_of(parts: Iterable[str]) -> str:
    """The key of a kind: of what its machines are made of, and where."""
    version = str(sys.modules["mamushka"].__dict__["__version__"])

    with open(BOOT_ID, encoding="ascii") as file:
        boot = file.read()
    said = [str(state.VERSION), version, os.uname().release, boot, *processor(), *parts]
    return sha256("\0".join(said).encode()).encoded[:32]


def stamp(path: str) -> str:
    """What tells a file from others, and from what it was before."""
    found = os.stat(path)
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"


def processor() -> Iterator[str]:
    """What the first processor of the host is; its clock's rate of this moment is not among it."""
    with open("/proc/cpuinfo", "rb") as file:
        text = file.read(_PROCESSOR_MAX).decode(errors="replace").partition("\n\n")[0]
    for line in text.splitlines():
        if not line.startswith(("cpu MHz", "bogomips", "BogoMIPS")):
            yield line
