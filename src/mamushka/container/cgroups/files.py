"""Reading and writing a cgroup's files, with errors that name the file and the value."""

from __future__ import annotations

import errno
import os

from mamushka.errors import Conflict, Denied, Invalid, MamushkaError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def write(path: str, text: str) -> None:
    """Write a whole file in one write; OSError with the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def write_each(path: str, texts: Iterable[str]) -> None:
    """Several values into one file, a write for each. Raises what ``refused`` makes of a failure."""
    text = ""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for text in texts:
                os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise refused(path, text, error) from error


def refused(path: str, text: str, error: OSError) -> MamushkaError | OSError:
    """What it means that the kernel did not take a value; to be raised from the error."""
    what = f"cannot set {path} to {text!r}: {error.strerror}"
    if error.errno == errno.ENOENT:
        return Unsupported(
            f"cannot set {path} to {text!r}: there is no such file",
            hint="this kernel was built without it, or the controller is not enabled for this cgroup",
        )
    if error.errno in (errno.EINVAL, errno.ERANGE, errno.ENODEV, errno.ENXIO):
        return Invalid(what, hint="see the cgroup documentation of the kernel for what the file takes")
    if error.errno in (errno.EBUSY, errno.ENOSPC):
        return Conflict(what, hint="the processes inside use more already, or a cgroup above allows less")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(what, hint="limits are set by root, or by the owner of a delegated cgroup")
    return error


def read(path: str) -> str:
    """A file's text; empty when the file does not exist, as for a controller that is not joined."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):  # the cgroup has just been removed, or has no such thing
            return ""
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)
    return b"".join(parts).decode("ascii", "surrogateescape")


def number(path: str) -> int:
    """A file of one number; 0 when it does not exist, and for v2's ``max``."""
    text = read(path).strip()
    return int(text) if text and text != "max" else 0


def table(path: str) -> dict[str, int]:
    """A file of lines ``name number``."""
    pairs = (line.split() for line in read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def children(path: str) -> list[str]:
    """The cgroups directly below."""
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def processes(path: str) -> list[int]:
    """The pids in a cgroup and in all below it."""
    pids = [int(pid) for pid in read(path + "/cgroup.procs").split()]
    for child in children(path):
        pids += processes(child)
    return pids
