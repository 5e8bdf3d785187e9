"""Namespaces with nobody in them: a forked child makes one, and a descriptor keeps it when the child has ended."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def made(kind: str, make: Callable[[], None], known: Callable[[int], None] | None = None) -> int:
    """The namespace of this kind ("user", "net", …) that ``make`` leaves a child in; close-on-exec, the caller's.

    ``known(pid)`` may act on the child meanwhile. OSError where ``make`` fails. The child makes system calls only.
    """
    ready, telling = os.pipe()
    waiting, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(done)
            make()
            os.write(telling, b"\0")
            os.read(waiting, 1)  # the end of file: the parent has what it wants
        except OSError as error:
            os.write(telling, bytes((error.errno or 1,)))
        finally:
            os._exit(0)
    os.close(telling)
    os.close(waiting)
    try:
        number = os.read(ready, 1)
        if number != b"\0":
            raise OSError(number[0] if number else 3, os.strerror(number[0] if number else 3))
        if known is not None:
            known(pid)
        return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(done)
        os.waitpid(pid, 0)
