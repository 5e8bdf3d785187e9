"""What runtime and monitor say to each other, through a socket in the machine's record.

Each packet (SOCK_SEQPACKET) is one JSON document; descriptors travel beside it. The runtime asks with
``{"ask": verb, …}`` and is answered ``{"answer": …}`` or ``{"error": kind, "message": …, "hint": …}``; where that is
too long for a packet, ``{"file": true}`` and a memory file with it. A connection
asks one thing, but for ``exec``: it stays open for as long as the process lives, takes further packets about it
(``signal``, ``resize``), is told its end (``{"exit": code, "signal": number}``), and its own end is the process's.

Both sides are ours, and whoever may connect may do worse by other ways: the kernel names the peer, and only the owner
of the monitor and root are heard. Bounds keep a damaged peer from costing more than its own request.
"""

from __future__ import annotations

import _socket
import os

from mamushka import document, errors, runtime
from mamushka.errors import Invalid, MamushkaError, Unavailable
from mamushka.runtime import Exit, NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Packet = dict[str, Any]

# A packet lies in the kernel's socket buffer (net.core.wmem_default, 208 KiB); what is longer travels as a memory file.
PACKET_MAX = 1 << 16
# stdin, stdout, stderr, a document, and what one further verb may need.
DESCRIPTORS_MAX = 8
_DESCRIPTOR = 4  # bytes of an int, which SCM_RIGHTS carries
_UCRED = 12  # pid, uid, gid: unix(7), struct ucred
# How long a monitor may take for what it does at once.
PATIENCE = 10.0
_BACKLOG = 16
# Of an error's text and its hint: a guest's words may be in them, and an error always fits into a packet.
_TEXT_MAX, _HINT_MAX = 4096, 1024


class Stale(errors.Unavailable):
    """The saved machine that one was to go on from is good for nothing; nothing of the new one has begun."""


_KINDS: dict[str, type[MamushkaError]] = {
    kind.__name__: kind
    for kind in (
        errors.Unsupported, errors.Invalid, errors.NotFound, errors.Conflict, errors.Denied, errors.Unavailable,
        errors.GuestFault, runtime.CommandNotFound, runtime.CannotExecute, runtime.NotRunning,
        Stale,
    )
}  # fmt: skip


class Line:
    """One end of a connection. Owns its socket."""

    def __init__(self, socket: _socket.socket) -> None:
        self._socket = socket

    @staticmethod
    def pair() -> tuple[Line, Line]:
        """Two ends that are connected with each other."""
        first, second = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        return Line(first), Line(second)

    def fileno(self) -> int:
        """The descriptor, to be waited for."""
        return self._socket.fileno()

    def send(self, packet: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Say something. BrokenPipeError or ConnectionError when nobody listens any more."""
        text = document.dump(packet)
        if len(text) > PACKET_MAX:
            raise Invalid(f"a message of {len(text)} bytes, more than {PACKET_MAX}")
        rights = b"".join(fd.to_bytes(_DESCRIPTOR, "little") for fd in descriptors)
        control = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
        self._socket.sendmsg([text], control, _socket.MSG_NOSIGNAL)

    def reply(self, packet: Packet) -> None:
        """Say something of any length: a guest decides how long a list of its processes is. What no document may have
        is told as an error."""
        try:
            self.send(packet)
            return
        except Invalid:
            pass
        text = document.dump(packet)
        if len(text) > document.SIZE_MAX:
            self.send(failed(Invalid(f"an answer of {len(text)} bytes, more than {document.SIZE_MAX}")))
            return
        fd = file_of(text)
        try:
            self.send({"file": True}, (fd,))
        finally:
            os.close(fd)

    def receive(self) -> tuple[Packet, list[int]]:
        """The next packet and its descriptors, the caller's to close; an empty packet at the end. Invalid otherwise."""
        room = _socket.CMSG_SPACE(_DESCRIPTOR * DESCRIPTORS_MAX)
        try:
            text, control, flags, _ = self._socket.recvmsg(PACKET_MAX, room, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return {}, []
        descriptors = [fd for level, kind, content in control for fd in _descriptors(level, kind, content)]
        try:
            if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
                raise Invalid(f"a message of more than {PACKET_MAX} bytes or {DESCRIPTORS_MAX} descriptors")
            packet = document.parse(text, "a message") if text else {}
            if not isinstance(packet, dict):
                raise Invalid("a message that is no object")
        except BaseException:
            close(descriptors)
            raise
        return packet, descriptors

    def wait(self, seconds: float | None) -> None:
        """How long to wait for a packet from now on; None for ever, 0 not at all."""
        self._socket.settimeout(seconds)

    def peer(self) -> int:
        """The uid of whoever is at the other end, as the kernel saw it when the connection was made."""
        credentials = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED)
        return int.from_bytes(credentials[4:8], "little")

    def close(self) -> None:
        """Hang up; harmless when repeated."""
        self._socket.close()


class Listener:
    """Where a monitor is called. Owns its socket; the name on disk is the record's."""

    def __init__(self, path: str) -> None:
        """Make the socket at ``path``."""
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            with _Near(path) as short:
                self._socket.bind(short)
            self._socket.listen(_BACKLOG)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor, to be waited for."""
        return self._socket.fileno()

    def accept(self, owner: int) -> Line | None:
        """The next who called; None where nobody did, or nobody who may: uid ``owner`` and root may."""
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return None
        line = Line(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd))
        if line.peer() not in (0, owner):
            line.close()
            return None
        return line

    def close(self) -> None:
        """Nobody is heard any more."""
        self._socket.close()


class _Near:
    """A name for a socket that fits into the 108 bytes of one, however deep its directory lies."""

    def __init__(self, path: str) -> None:
        self._directory, self._name = os.path.split(path)
        self._fd = -1

    def __enter__(self) -> str:
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def connect(path: str) -> Line:
    """Call the monitor whose socket is at ``path``. NotRunning when there is none any more."""
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        with _Near(path) as short:
            socket.connect(short)
    except (FileNotFoundError, ConnectionRefusedError):
        socket.close()
        raise NotRunning("container not running") from None
    except BaseException:
        socket.close()
        raise
    return Line(socket)


def ask(path: str, question: Mapping[str, object], descriptors: Sequence[int] = ()) -> Any:
    """Ask one thing and give the answer. Raises what the monitor raised; Unavailable when it is silent."""
    line = connect(path)
    try:
        line.wait(PATIENCE)
        return say(line, question, descriptors)
    finally:
        line.close()


def say(line: Line, question: Mapping[str, object], descriptors: Sequence[int] = ()) -> Any:
    """``ask``, on a connection that stays."""
    return reply_of(line, lambda: line.send(question, descriptors))


def reply_of(line: Line, ask: Callable[[], None] = lambda: None) -> Any:
    """The answer to what was asked on a connection, or is asked first."""
    try:
        ask()
        packet, given = line.receive()
    except TimeoutError:
        raise Unavailable("the machine's monitor did not answer in time", hint="mamushka kill ends it") from None
    except (BrokenPipeError, ConnectionError):
        raise NotRunning("container not running") from None
    try:
        if packet.get("file") is True and given:
            packet = document.parse(content_of(given[0]), "an answer")
            if not isinstance(packet, dict):
                raise Invalid("an answer that is no object")
    finally:
        close(given)
    if not packet:
        raise NotRunning("container not running")
    return answered(packet)


def answered(packet: Packet) -> Any:
    """What a reply says; raises the error that it tells."""
    if "error" in packet:
        kind = _KINDS.get(str(packet["error"]), MamushkaError)
        raise kind(str(packet.get("message", "")), hint=str(packet.get("hint", "")))
    return packet.get("answer")


def failed(error: BaseException) -> Packet:
    """An error as a packet."""
    if isinstance(error, MamushkaError):
        kind, text, hint = type(error).__name__, str(error), error.hint
    else:
        kind, hint = "MamushkaError", ""
        text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return {"error": kind, "message": text[:_TEXT_MAX], "hint": hint[:_HINT_MAX]}


def ended(exit: Exit) -> Packet:
    """The end of a process as a packet."""
    return {"exit": exit.code, "signal": exit.signal}


def exit_of(packet: Packet) -> Exit:
    """The inverse of ``ended``."""
    return Exit(code=int(packet["exit"]) & 0xFF, signal=int(packet.get("signal", 0)) & 0x7F)


def file_of(text: bytes) -> int:
    """A memory file with a document that may be too long for a packet; the caller closes it."""
    fd = os.memfd_create("mamushka-document", os.MFD_CLOEXEC)
    try:
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def content_of(fd: int) -> bytes:
    """What ``file_of`` put into a file; more than a document may have is cut, and so refused by whoever parses it."""
    return os.pread(fd, document.SIZE_MAX + 1, 0)


def close(descriptors: Sequence[int]) -> None:
    """Close descriptors that came with a packet."""
    for fd in descriptors:
        os.close(fd)


def _descriptors(level: int, kind: int, content: bytes) -> list[int]:
    if (level, kind) != (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
        return []
    whole = len(content) - len(content) % _DESCRIPTOR
    return [int.from_bytes(content[at : at + _DESCRIPTOR], "little") for at in range(0, whole, _DESCRIPTOR)]
