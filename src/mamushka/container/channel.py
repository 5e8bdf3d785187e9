"""The line between who builds a container and the process that becomes it.

    child to parent   E errno about \0 operation \0 text   it failed; nothing follows
                      C (a descriptor)                    the terminal's master side
                      H                                   run the hooks that belong here, then go on
                      R                                   ready behind the gate
                      end of file                         the program runs
    parent to child   G pid                               go on; pid is the child's as the host counts

Packets keep their bounds (SOCK_SEQPACKET). The child that reads the end of file instead of G has lost its parent
before it was recorded, and ends: nothing nameless goes on living.
"""

from __future__ import annotations

import _socket
import os

from mamushka.container.operation import Inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.operation import Site

FAILED, CONSOLE, HOOKS, READY, GO = b"E", b"C", b"H", b"R", b"G"
# An operation's own sentence, with a path of at most 4096 bytes.
PACKET_MAX = 8192
_DESCRIPTION_MAX = 1024  # an execve's arguments may fill megabytes
_DESCRIPTOR = 4  # bytes of an int, which SCM_RIGHTS carries


def pair() -> tuple[int, int]:
    """(parent's end, child's end); both close-on-exec."""
    parent, child = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return parent.detach(), child.detach()


def send_descriptor(channel: int, kind: bytes, descriptor: int) -> None:
    """Send a packet with a descriptor."""
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, channel)
    rights = descriptor.to_bytes(_DESCRIPTOR, "little")
    end.sendmsg([kind], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    end.detach()


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
    for level, kind, content in control:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            return packet, int.from_bytes(content[:_DESCRIPTOR], "little")
    return packet, -1


def failure(operation: Inside | None, error: BaseException) -> bytes:
    """What a failed operation sends."""
    number = error.errno if isinstance(error, OSError) and error.errno else 0
    text = error.strerror or os.strerror(number) if isinstance(error, OSError) else f"unexpected {error!r}"
    if isinstance(error, OSError) and error.filename is not None:
        text += f": {os.fsdecode(error.filename)!r}"
    about, description = (operation.about, operation.describe()) if operation else ("", "enter the namespaces")
    packet = f"{number} {about}\0{description[:_DESCRIPTION_MAX]}\0{text}"
    return FAILED + packet.encode(errors="surrogateescape")[: PACKET_MAX - 1]


def parse_failure(packet: bytes) -> tuple[int, str, str, str]:
    """(errno or 0, what it is about, the operation, what went wrong)."""
    number, _, rest = packet[1:].decode(errors="surrogateescape").partition(" ")
    about, operation, text = rest.split("\0", 2)
    return int(number), about, operation, text


def wait(channel: int) -> int:
    """In the child: wait for G; the pid that it tells."""
    packet = os.read(channel, PACKET_MAX)
    if packet[:1] != GO:
        os._exit(1)
    return int(packet[1:])


class AwaitGo(Inside):
    """Wait until this process is on record, and its ids are mapped."""

    __slots__ = ("site",)

    def __init__(self, site: Site) -> None:
        self.site = site

    def describe(self) -> str:
        return "wait until the process is recorded"

    def execute(self) -> None:
        self.site.pid = wait(self.site.channel)


class AwaitHooks(Inside):
    """Let the parent run the hooks of the runtime's namespaces."""

    __slots__ = ("site",)

    def __init__(self, site: Site) -> None:
        self.site = site

    def describe(self) -> str:
        return "run the prestart and createRuntime hooks"

    def execute(self) -> None:
        os.write(self.site.channel, HOOKS)
        wait(self.site.channel)


class AwaitStart(Inside):
    """Stand behind the gate until ``start`` sends a byte through it."""

    __slots__ = ("site",)

    def __init__(self, site: Site) -> None:
        self.site = site

    def describe(self) -> str:
        return "wait for start"

    def execute(self) -> None:
        site = self.site
        os.write(site.channel, READY)
        # From now on a failure goes where ``start``, in whatever process, will look for it.
        os.dup2(site.status, site.channel, inheritable=False)
        os.read(site.gate, 1)
