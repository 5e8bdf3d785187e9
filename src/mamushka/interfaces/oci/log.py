"""Where messages go. containerd and podman read the last error from a file of JSON lines; people read stderr."""

from __future__ import annotations

import os
import sys
import time

from mamushka import document, trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.oci.arguments import Arguments

PROGRAM = "mamushka-oci"
# What is passed over because the specification says so, and must not be passed over in silence.
WARNINGS = {
    "privileges.unknown_capability": "ignoring the unknown capability {name}",
    "privileges.missing": "ignoring capabilities that the runtime itself lacks: {capabilities}",
    "cgroup.ignored": "ignoring {setting}: {reason}",
    "hook.failed": "the {moment} hook {path} failed: {error}",
}
# From the least to the most severe; --log-level names the first that is written. syslog(3) has numbers for them.
_LEVELS = ("trace", "debug", "info", "warning", "error", "fatal", "panic")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_USER = 1 << 3  # the facility LOG_USER
_JOURNAL, _SYSLOG = "/run/systemd/journal/socket", "/dev/log"


class Log:
    """The log of one command."""

    def __init__(self) -> None:
        self.command = ""
        self._file = -1
        self._json = False
        self._daemon = ""  # the socket of a logging daemon
        self._identifier = PROGRAM
        self._least = _LEVELS.index("warning")

    def open(self, options: Arguments) -> None:
        """Begin to log as the global flags say."""
        destination = options.get("log")
        kind, colon, rest = destination.partition(":")
        if colon and kind in ("journald", "syslog"):
            self._daemon = _JOURNAL if kind == "journald" else _SYSLOG
            self._identifier = rest or PROGRAM
            destination = ""
        elif colon and kind == "file":
            destination = rest
        self._json = _one_of(options, "log-format", ("text", "json")) == "json"
        level = _one_of(options, "log-level", (*_LEVELS, "warn"))
        if level:
            self._least = _LEVELS.index("warning" if level == "warn" else level)
        if "debug" in options:
            self._least = min(self._least, _LEVELS.index("debug"))
        if destination:
            self._file = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        trace.subscribe(self._trace, plans=self._wants("debug"))

    def _wants(self, level: str) -> bool:
        return _LEVELS.index(level) >= self._least

    def _trace(self, name: str, fields: dict[str, object]) -> None:
        if name in WARNINGS:
            self.write("warning", WARNINGS[name].format_map(fields))
        elif not self._wants("debug"):
            return
        elif name.startswith("plan."):
            self.write("debug", str(fields.get("operation", name)))
        else:
            self.write("debug", name + "".join(f" {key}={item}" for key, item in fields.items()))

    def write(self, level: str, message: str) -> None:
        """One line, if this level is wanted."""
        if not self._wants(level):
            return
        if self._daemon:
            self._tell(level, message)
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = document.dump({"level": level, "msg": message, "time": stamp}).decode()
        else:
            line = f'time="{stamp}" level={level} msg={document.dump(message).decode()}'
        os.write(self._file if self._file >= 0 else 2, (line + "\n").encode())

    def _tell(self, level: str, message: str) -> None:
        """One datagram to the daemon; where none listens the command goes on, as with syslog(3)."""
        import _socket

        priority, text = _PRIORITIES[level], message.encode(errors="surrogateescape")
        identifier = self._identifier.encode(errors="surrogateescape")
        if self._daemon == _JOURNAL:  # systemd.io/JOURNAL_NATIVE_PROTOCOL: a length, for there may be line ends
            packet = b"PRIORITY=%d\nSYSLOG_IDENTIFIER=%b\nMESSAGE\n" % (priority, identifier)
            packet += len(text).to_bytes(8, "little") + text + b"\n"
        else:
            packet = b"<%d>%b[%d]: %b" % (_USER | priority, identifier, os.getpid(), text)
        line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            line.sendto(packet, self._daemon)
        except OSError:
            pass
        finally:
            line.close()

    def fatal(self, error: Exception, *, status: int) -> int:
        """Say why the command failed; the exit status."""
        message = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            message = error.strerror + (f": {error.filename!r}" if error.filename is not None else "")
        hint = getattr(error, "hint", "")
        if self._file >= 0 or self._json or self._daemon:
            self.write("error", message)
        sys.stderr.write(f"{PROGRAM}{' ' if self.command else ''}{self.command}: {message}\n")
        if hint:
            sys.stderr.write(f"\nhint: {hint}\n")
        return status


def _one_of(options: Arguments, name: str, known: tuple[str, ...]) -> str:
    """A flag's word, or nothing where it was not given."""
    from mamushka.interfaces.oci.arguments import UsageError

    word = options.get(name)
    if word and word not in known:
        raise UsageError(f"--{name} is one of {', '.join(known)}, not {word!r}")
    return word
