"""Directories for what is put together and passes on, and workloads that are made and not started yet.

    staged/NAME/          locked by whoever works in it
    staged/NAME/.new/ID   a workload of his that has not run

Who is killed lets go of the lock: the next one who lists workloads, or works here, takes away what he left.
"""

from __future__ import annotations

import os
import shutil

from mamushka.errors import NotFound
from mamushka.linux.fd import LOCK_EX, LOCK_NB, flock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine

_NEW = ".new"


class Staging:
    """One of them, a context manager; gone at the end, with the workloads that have not been started."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        sweep(engine)
        while True:
            self.path = f"{engine.paths.staged}/{os.urandom(8).hex()}"
            os.makedirs(self.path, 0o700)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            flock(self._lock, LOCK_EX)
            try:
                os.mkdir(f"{self.path}/{_NEW}", 0o700)
                return
            except FileNotFoundError:  # it was swept before it was locked
                os.close(self._lock)

    def made(self, id: str) -> None:
        """A workload is there that has not run."""
        os.close(os.open(f"{self.path}/{_NEW}/{id}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def started(self, id: str) -> None:
        """It has its own life now."""
        os.unlink(f"{self.path}/{_NEW}/{id}")

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            _remove(self._engine, self.path)
        finally:
            os.close(self._lock)


def sweep(engine: Engine) -> None:
    """Take away what those have left that were killed."""
    above = engine.paths.staged
    try:
        names = os.listdir(above)
    except FileNotFoundError:
        return
    for name in names:
        path = f"{above}/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            _remove(engine, path)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


def _remove(engine: Engine, path: str) -> None:
    try:
        new = os.listdir(f"{path}/{_NEW}")
    except FileNotFoundError:
        new = []
    for id in new:
        try:
            engine.remove(id, force=True, volumes=True)
        except NotFound:
            pass
    shutil.rmtree(path, ignore_errors=True)
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:  # others work there
        pass
