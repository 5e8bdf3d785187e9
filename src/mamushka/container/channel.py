"""The line between who builds a container and the process that becomes it.

    child to parent   E errno about \0 operation \0 text   it failed; nothing follows (linux/script.py)
                      C (a descriptor)                    the terminal's master side
                      P (a descriptor, or none)           the image's accounts; the answer is A
                      H                                   run the hooks that belong here, then go on
                      L                                   about to install a filter with a listener (``listener``)
                      R                                   ready behind the gate
                      end of file                         the program runs
    parent to child   G pid                               go on; pid is the child's as the host counts
                      A NAME=text                         the program's HOME

Packets keep their bounds (SOCK_SEQPACKET). The child that reads the end of file instead of G has lost its parent
before it was recorded, and ends: nothing nameless goes on living.
"""

from __future__ import annotations

import _socket
import os
from errno import EPROTO

from mamushka.container.operation import GATE, OUTCOME, RESULT, Inside
from mamushka.linux.executable import words
from mamushka.linux.script import CHANNEL, PACKET, PACKET_SIZE, ROOM, Label, Variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.script import Script

FAILED, CONSOLE, ACCOUNTS, HOOKS, LISTENS, READY, GO, ANSWER = b"E", b"C", b"P", b"H", b"L", b"R", b"G", b"A"
_TOLD = (FAILED, CONSOLE, ACCOUNTS, HOOKS, LISTENS, READY)
# An operation's own sentence, with a path of at most 4096 bytes.
PACKET_MAX = 8192
PID_WIDTH = 10  # digits and spaces, which in JSON are a number too
_DESCRIPTOR = 4  # bytes of an int, which SCM_RIGHTS carries


def pair() -> tuple[int, int]:
    """(parent's end, child's end); both close-on-exec."""
    parent, child = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return parent.detach(), child.detach()


def go(channel: int, pid: int) -> None:
    """Let the child go on."""
    send(channel, GO + f"{pid:<{PID_WIDTH}}".encode())


def send(channel: int, packet: bytes) -> None:
    """Say something to the child; nothing, where it has failed already: what it said is still to be read."""
    try:
        os.write(channel, packet)
    except BrokenPipeError:
        pass


def receive(channel: int) -> tuple[bytes, int]:
    """The next packet and its descriptor, -1 without one."""
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, channel)
    room = _socket.CMSG_SPACE(_DESCRIPTOR)
    try:
        packet, control, _, _ = end.recvmsg(PACKET_MAX, room, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The child ended without reading our last packet. That is told once, ahead of what it had sent itself.
        packet, control, _, _ = end.recvmsg(PACKET_MAX, room, _socket.MSG_CMSG_CLOEXEC)
    finally:
        end.detach()
    if packet and packet[:1] not in _TOLD:
        # A step that writes elsewhere than it means to must not pass for one that was done.
        raise OSError(EPROTO, f"the process that becomes a container says {packet[:64]!r}")
    for level, kind, content in control:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            return packet, int.from_bytes(content[:_DESCRIPTOR], "little")
    return packet, -1


def descriptor_packet(script: Script, kind: bytes) -> tuple[int, Variable]:
    """A struct msghdr that carries a descriptor: (its address, where the descriptor's number goes). sendmsg(2)."""
    vector = script.place(words([script.place(kind), len(kind)], 8))
    control = script.copy(words([16 + _DESCRIPTOR], 8) + words([_socket.SOL_SOCKET, _socket.SCM_RIGHTS, 0, 0], 4))
    # msg_name and its length, msg_iov and how many, msg_control and its length, msg_flags
    header = script.place(words([0, 0, vector, 1, control, _socket.CMSG_SPACE(_DESCRIPTOR), 0], 8))
    return header, Variable(control + 16)


class AwaitGo(Inside):
    """Wait until this process is on record."""

    __slots__ = ()
    settled = True

    def describe(self) -> str:
        return "wait until the process is recorded"

    def write(self, script: Script) -> None:
        # What comes stays: the hooks are told the pid.
        listen(script, PACKET, PACKET_SIZE, GO)


def listen(script: Script, buffer: int, size: int, kind: bytes) -> None:
    """Read a packet of this kind; end where the other end has gone."""
    heard, lost = Label(), Label()
    script.call("read", CHANNEL, buffer, size, into=RESULT)
    script.compare(RESULT, -1, 0, heard)
    script.mark(lost)
    script.call("exit_group", 126)
    script.mark(heard)
    script.compare(buffer, 0xFF, kind[0], lost)


class AwaitHooks(Inside):
    """Let the parent run the hooks of the runtime's namespaces."""

    __slots__ = ()

    def describe(self) -> str:
        return "run the prestart and createRuntime hooks"

    def write(self, script: Script) -> None:
        script.call("write", CHANNEL, HOOKS, 1)
        listen(script, ROOM, PID_WIDTH + 1, GO)


class AwaitStart(Inside):
    """Stand behind the gate until ``start`` sends a byte through it."""

    __slots__ = ()
    settled = True

    def describe(self) -> str:
        return "wait for start"

    def write(self, script: Script) -> None:
        script.call("write", CHANNEL, READY, 1)
        # From now on a failure goes where ``start``, in whatever process, will look for it.
        script.call("dup3", OUTCOME, CHANNEL, os.O_CLOEXEC)
        script.call("read", GATE, ROOM, 1)
