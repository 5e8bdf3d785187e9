"""Where messages go. containerd and podman read the last error from a file of JSON lines; people read stderr."""

from __future__ import annotations

import os
import sys
import time

from mamushka import document, trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.oci.arguments import Arguments


class Log:
    """The log of one command."""

    def __init__(self) -> None:
        self.command = ""
        self._file = -1
        self._json = False

    def open(self, options: Arguments) -> None:
        """Begin to log as the global flags say."""
        destination = options.get("log")
        kind, colon, rest = destination.partition(":")
        if colon and kind in ("file", "journald", "syslog"):
            destination = rest if kind == "file" else ""
        self._json = options.get("log-format") == "json"
        if destination:
            self._file = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if "debug" in options or options.get("log-level") == "debug":
            trace.subscribe(self._trace)

    def _trace(self, name: str, fields: dict[str, object]) -> None:
        if name.startswith("plan."):
            self.write("debug", str(fields.get("operation", name)))
        else:
            self.write("debug", name + "".join(f" {key}={item}" for key, item in fields.items()))

    def write(self, level: str, message: str) -> None:
        """One line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = document.dump({"level": level, "msg": message, "time": stamp}).decode()
        else:
            line = f'time="{stamp}" level={level} msg={document.dump(message).decode()}'
        os.write(self._file if self._file >= 0 else 2, (line + "\n").encode())

    def fatal(self, error: Exception, *, status: int) -> int:
        """Say why the command failed; the exit status."""
        message = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            message = error.strerror + (f": {error.filename!r}" if error.filename is not None else "")
        hint = getattr(error, "hint", "")
        if self._file >= 0 or self._json:
            self.write("error", message)
        sys.stderr.write(f"mamushka-oci{' ' if self.command else ''}{self.command}: {message}\n")
        if hint:
            sys.stderr.write(f"\nhint: {hint}\n")
        return status
