"""Namespaces with nobody in them: a forked child makes one, and a descriptor keeps it when the child has ended."""

from __future__ import annotations

import os

from mamushka.linux.process import end_with

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def made(kind: str, make: Callable[[], None], known: Callable[[int], None] | None = None) -> int:
    """The namespace of this kind ("user", "net", …) that ``make`` leaves a child in; close-on-exec, the caller's.

    ``known(pid)`` may act on the child meanwhile. OSError where ``make`` fails. The child makes system calls only.

    Another thread may fork at the same moment, and its child then holds our ends of the pipes open as ours holds its:
    no end of file comes while both wait. So the child is told by a byte to go, and by a signal where nobody will.
    """
    parent = os.getpid()
    ready, telling = os.pipe()
    waiting, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            make()
            if end_with(parent):  # now: a change of credentials takes it away
                os.write(telling, b"\0")
                os.read(waiting, 1)
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
        try:
            os.write(done, b"\0")
        except BrokenPipeError:
            pass  # it has ended
        os.close(done)
        os.waitpid(pid, 0)
