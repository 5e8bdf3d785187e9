"""The line to systemd: its own socket, or a bus that it is on; calls, answers, and the end of its jobs.

Root speaks to the system's manager, anybody else to the manager of their session. Either listens on a socket of its
own, which needs no bus to run and is closed to others; where that is missing, the bus serves.
org.freedesktop.systemd1(5)
"""

from __future__ import annotations

import _socket
import os
import time

from mamushka import trace
from mamushka.errors import Conflict, Denied, Invalid, MamushkaError, NotFound, Unavailable, Unsupported
from mamushka.spec import dbus
from mamushka.spec.dbus import CALL, ERROR, RETURN, SIGNAL, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_NAME, _PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_JOBS = f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved'"
# A busy manager answers in milliseconds to seconds; runc too gives up on a job after thirty.
_PATIENCE = 30.0
_CHUNK = 1 << 16
_KINDS: dict[str, type[MamushkaError]] = {
    "AccessDenied": Denied, "InteractiveAuthorizationRequired": Denied, "InvalidArgs": Invalid,
    "PropertyReadOnly": Invalid, "UnknownProperty": Invalid, "BadUnitSetting": Invalid, "NoSuchUnit": NotFound,
    "UnitExists": Conflict, "TransactionIsDestructive": Conflict, "ShuttingDown": Conflict, "NoReply": Unavailable,
    "ServiceUnknown": Unsupported,
}  # fmt: skip


class Bus:
    """A connection to a manager; for one thread, and closed by whoever made it."""

    def __init__(self, line: _socket.socket, *, direct: bool) -> None:
        self._line = line
        self._serial = 0
        self._buffer = b""
        self._ended: dict[str, str] = {}  # jobs that are over, perhaps before it is known that they have begun: how
        if not direct:
            self._ask(_BUS, "Hello", "")
            self._ask(_BUS, "AddMatch", "s", _JOBS)

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def call(self, member: str, signature: str = "", *arguments: Any) -> tuple[Any, ...]:
        """A method of the manager; what it returns."""
        return self._ask((_NAME, _PATH, _MANAGER), member, signature, *arguments)

    def fact(self, name: str) -> Any:
        """A property of the manager's."""
        return self.property(_PATH, _MANAGER, name)

    def property(self, path: str, interface: str, name: str) -> Any:
        """A property of any object of the manager's."""
        (found,) = self._ask((_NAME, path, "org.freedesktop.DBus.Properties"), "Get", "ss", interface, name)
        return found.content

    def job(self, member: str, signature: str, *arguments: Any) -> None:
        """A method that begins a job, the unit's name first; waits for its end. Conflict when it does not succeed."""
        (job,) = self.call(member, signature, *arguments)
        deadline = time.monotonic() + _PATIENCE
        while job not in self._ended:
            self._note(self._next(deadline))
        result = self._ended.pop(job)
        trace.event("systemd.job", member=member, unit=arguments[0], result=result)
        if result != "done":
            raise Conflict(
                f"systemd could not {_words(member)} {arguments[0]}: the result of the job is {result!r}",
                hint=f"systemctl status {arguments[0]} may tell why",
            )

    def _ask(self, where: tuple[str, str, str], member: str, signature: str, *arguments: Any) -> tuple[Any, ...]:
        trace.event("systemd.ask", member=member)
        destination, path, interface = where
        self._serial += 1
        call = Message(CALL, self._serial, path, interface, member, destination, signature, arguments)
        self._line.sendall(dbus.encode(call))
        deadline = time.monotonic() + _PATIENCE
        while True:
            message = self._next(deadline)
            if message.kind == RETURN and message.reply_to == self._serial:
                return message.body
            if message.kind == ERROR and message.reply_to == self._serial:
                raise _refused(message, member)
            self._note(message)

    def _note(self, message: Message) -> None:
        if message.kind == SIGNAL and message.member == "JobRemoved" and message.signature == "uoss":
            self._ended[message.body[1]] = message.body[3]

    def _next(self, deadline: float) -> Message:
        """The next message. Unavailable when none comes in time."""
        while True:
            message, used = dbus.decode(self._buffer)
            if message is not None:
                self._buffer = self._buffer[used:]
                return message
            self._line.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                more = self._line.recv(_CHUNK)
            except TimeoutError:
                raise Unavailable(f"systemd did not answer within {_PATIENCE:.0f} s") from None
            if not more:
                raise Unavailable("systemd ended the connection")
            self._buffer += more


def connect(*, user: bool) -> Bus:
    """A line to the system's manager, or to that of this user's session. Unsupported where none answers."""
    for path, direct in _places(user=user):
        line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            line.settimeout(_PATIENCE)
            line.connect(path)
            return Bus(_let_in(line), direct=direct)
        except (FileNotFoundError, ConnectionRefusedError, PermissionError):
            line.close()
        except BaseException:
            line.close()
            raise
    if user:
        raise Unsupported(
            "cannot make a cgroup by systemd: no session of this user's has a manager that answers",
            hint="set XDG_RUNTIME_DIR or DBUS_SESSION_BUS_ADDRESS, or choose --cgroup-manager cgroupfs",
        )
    raise Unsupported(
        "cannot make a cgroup by systemd: it does not run here, or its socket cannot be reached",
        hint="choose --cgroup-manager cgroupfs",
    )


def reachable(*, user: bool) -> bool:
    """Whether such a manager runs, as far as can be seen without asking it. sd_booted(3)"""
    return os.path.isdir("/run/systemd/system") and any(os.path.exists(path) for path, _ in _places(user=user))


def _places(*, user: bool) -> Iterator[tuple[str, bool]]:
    """(socket, whether it is the manager's own)."""
    if not user:
        yield "/run/systemd/private", True
        yield "/run/dbus/system_bus_socket", False
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime:
        yield f"{runtime}/systemd/private", True
    for address in os.environ.get("DBUS_SESSION_BUS_ADDRESS", "").split(";"):
        kind, _, words = address.partition(":")
        for word in words.split(",") if kind == "unix" else ():
            key, _, path = word.partition("=")
            if key in ("path", "abstract") and path:
                yield path if key == "path" else f"\0{path}", False
    if runtime:
        yield f"{runtime}/bus", False


def _let_in(line: _socket.socket) -> _socket.socket:
    """The words before the first message; what comes after them is the server's answer to ours."""
    line.sendall(dbus.AUTHENTICATE)
    answer = b""
    while not dbus.accepted(answer):
        more = line.recv(_CHUNK)
        if not more:
            raise Denied("the bus ended the connection before it had begun")
        answer += more
    return line


def _refused(message: Message, member: str) -> MamushkaError:
    """What an error means, with systemd's own sentence."""
    text = str(message.body[0]) if message.body else message.error
    kind = _KINDS.get(message.error.rpartition(".")[2], MamushkaError)
    return kind(f"systemd refuses to {_words(member)}: {text[:1].lower()}{text[1:].rstrip('.')}")


def _words(member: str) -> str:
    """StartTransientUnit as words."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in member).strip()
