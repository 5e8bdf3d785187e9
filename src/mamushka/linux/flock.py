"""Whole-file locks: flock(2), which the kernel drops when the last descriptor of the open file is gone.

That is what makes them crash-only: a process that is killed holds nothing afterwards. The lock belongs to
the open file description, so a forked child shares it and only one of them needs to stay alive. Where a lock must
be asked about, or a file holds several, there is linux/lock.py; this kind every kernel and file system has.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class Lock:
    """A held lock on a file, made if it is missing; released by ``close`` or by leaving ``with``.

    ``shared`` lets other sharers in. Without ``wait`` BlockingIOError says that somebody else has it.
    """

    __slots__ = ("fd",)

    def __init__(self, path: str, *, shared: bool = False, wait: bool = True) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(self.fd)
            raise

    def current(self, path: str) -> bool:
        """Whether ``path`` still names the locked file: whoever held it before may have removed or replaced it."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Release it; harmless when repeated."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
