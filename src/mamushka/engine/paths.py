"""Where the engine keeps things: one root for data that outlives a boot, one for what runs."""

from __future__ import annotations

import os

from mamushka import document
from mamushka.errors import Denied
from mamushka.linux.process import initial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# In a workload's directory, locked while a checkpoint of it is being made; the byte, if the workload is to end with it.
CHECKPOINT_LOCK, CHECKPOINT_MEANT = "checkpoint.lock", 1
DATA_ROOT, RUN_ROOT = "/var/lib/mamushka", "/run/mamushka"
_roots: tuple[str, str] | None = None


def default_roots() -> tuple[str, str]:
    """(data root, run root) where nobody names any: the host's for root, his own for an ordinary user.

    Asked once: afterwards this process may be root of the user's own namespace.
    """
    global _roots
    if _roots is None:
        _roots = DATA_ROOT, RUN_ROOT
        # Root of a container has a system of his own; root of a mere user namespace has the user's home.
        if os.geteuid() != 0 or not (initial() or os.access(os.path.dirname(DATA_ROOT), os.W_OK)):
            from mamushka.engine.rootless import roots

            _roots = roots()
    return _roots


class Paths:
    """Directories and files under the two roots; ``make`` creates what is missing."""

    def __init__(self, data_root: str, run_root: str) -> None:
        self.data = os.path.abspath(data_root)
        self.run = os.path.abspath(run_root)
        self.database = f"{self.data}/state.db"
        self.news = f"{self.data}/news"
        self.gate = f"{self.data}/gate"
        self.workloads = f"{self.data}/workloads"
        self.staged = f"{self.data}/staged"  # see staging.py
        self.shims = f"{self.run}/shims"
        self.containers = f"{self.run}/containers"
        self.machines = f"{self.run}/machines"
        self.made = f"{self.data}/machines"  # what is made once for many of them

    def make(self) -> None:
        """Create the directories; only root reads them, since images and volumes may hold secrets."""
        if os.path.isdir(self.workloads) and os.path.isdir(self.shims):
            return
        from mamushka.linux.inode import spread

        try:
            for path in (self.data, self.run, self.workloads, self.news, self.shims, self.containers):
                os.makedirs(path, mode=0o711 if path in (self.data, self.run) else 0o700, exist_ok=True)
            os.close(os.open(self.gate, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            spread(self.workloads)
        except PermissionError as error:
            raise Denied(
                f"cannot create {error.filename}: {error.strerror}",
                hint="run as root, or choose other places with --data-root and --run-root",
            ) from error

    def workload(self, id: str) -> str:
        """A workload's own directory."""
        return f"{self.workloads}/{id}"

    def socket(self, id: str) -> str:
        """Where its shim listens."""
        return f"{self.shims}/{id}"


def write_json(path: str, item: Any) -> None:
    """Replace a file by a document in one step: a reader finds the old one or the new one, whole."""
    directory, _, name = path.rpartition("/")
    staged = f"{directory}/.{name}.{os.getpid()}"
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, document.dump(item))
    finally:
        os.close(fd)
    os.rename(staged, path)


def read_json(path: str) -> Any:
    """The document in a file, None when there is none. Invalid when it is damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return document.parse(os.read(fd, document.SIZE_MAX + 1), path)
    finally:
        os.close(fd)
