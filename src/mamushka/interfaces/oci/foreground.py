"""Standing between a process in a container and the caller: signals, a terminal, the exit status."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.runtime import Started
    from mamushka.spec.runtime import Process

# Not forwarded: what is for this process (its children, its terminal's job control) or cannot be caught.
_KEPT = ("SIGCHLD", "SIGKILL", "SIGSTOP", "SIGPIPE", "SIGURG", "SIGTTIN", "SIGTTOU", "SIGSEGV", "SIGBUS", "SIGFPE",
         "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS", "SIGPROF", "SIGWINCH")  # fmt: skip


def follow(started: Started, process: Process | None) -> int:
    """Forward signals and wait; the exit status, 128 + n for a signal."""
    _forward(started.pidfd)
    if started.console >= 0:
        from mamushka.interfaces.oci.terminal import converse

        sized = bool(process and process.console_size)
        converse(started, sized=sized)
    _, status = os.waitpid(started.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _forward(pidfd: int) -> None:
    kept = {getattr(_signal, name, 0) for name in _KEPT}

    def handler(number: int, _frame: object) -> None:
        try:
            _signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass

    for number in range(1, 32):
        if number not in kept:
            _signal.signal(number, handler)
