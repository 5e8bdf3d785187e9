"""What stands on the host for a further process in a guest: a small child of the caller that ends as that process does.

The streams themselves are the monitor's: their descriptors were handed to it, and no byte passes through here. What the
relay does is to be a process: it can be waited for, and what it is signalled reaches the one inside. When it is killed,
its connection ends, and the monitor ends the process inside.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from mamushka.linux.process import clone3
from mamushka.linux.terminal import size
from mamushka.machine import control, monitor
from mamushka.machine.control import Line
from mamushka.machine.creation import close_all, members, settle, streams_of
from mamushka.runtime import Exit, Started
from mamushka.spec.runtime import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from mamushka.runtime import Stdio
    from mamushka.spec.runtime import Process


# How long a guest may take to execute a program: from a slow disk, or under emulation.
_PATIENCE = 60.0


def further(path: str, process: Process, stdio: Stdio) -> Started:
    """Have the monitor at ``path`` begin a process, and fork what stands for it. Raises why it could not begin."""
    line = control.connect(path)
    document = console = -1
    try:
        console, streams = streams_of(process, stdio)
        try:
            document = control.file_of(dump(process))
            line.wait(_PATIENCE)
            control.say(line, {"ask": "exec"}, (document, *members(streams)))
            # A signal that comes before the relay is ready for it waits.
            before = _signal.pthread_sigmask(_signal.SIG_BLOCK, monitor.CAUGHT)
            try:
                pid, pidfd = clone3(0)
                if pid == 0:
                    _stand(line, streams.console)
            finally:
                _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        finally:
            close_all((document, *members(streams)))
    except BaseException:
        close_all((console,))
        raise
    finally:
        line.close()
    return Started(pid, pidfd, console)


def _stand(line: Line, console: int) -> NoReturn:
    """In the child: until the process inside has ended."""
    exit = Exit(signal=9)
    try:
        settle((line.fileno(), console), console)
        exit = _follow(line, console)
    finally:
        monitor.leave(exit)


def _follow(line: Line, console: int) -> Exit:
    import select

    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    monitor.catch(writer)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, monitor.CAUGHT)
    poll = select.poll()
    poll.register(line.fileno(), select.POLLIN)
    poll.register(reader, select.POLLIN)
    if console >= 0:
        _resize(line, console)  # it may have changed before anybody was told
    while True:
        for fd, _ in poll.poll():
            if fd == reader:
                for number in os.read(reader, 4096):
                    if number != monitor.SIGWINCH:
                        line.send({"ask": "signal", "number": number})
                    elif console >= 0:
                        _resize(line, console)
                continue
            packet, given = line.receive()
            control.close(given)
            if "exit" in packet:
                return control.exit_of(packet)
            if not packet:
                return Exit(signal=9)  # the machine has ended, and with it the process


def _resize(line: Line, console: int) -> None:
    rows, columns = size(console)
    line.send({"ask": "resize", "rows": rows, "columns": columns})
