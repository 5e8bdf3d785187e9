"""Handing a descriptor to a caller's unix socket: --console-socket, --pidfd-socket."""

from __future__ import annotations

import _socket

from mamushka.errors import Invalid


def send(path: str, descriptor: int, name: bytes) -> None:
    """Connect, send the descriptor with a name, and close."""
    line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        line.connect(path)
        rights = descriptor.to_bytes(4, "little")
        line.sendmsg([name], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    except OSError as error:
        raise Invalid(f"cannot send a descriptor to the socket {path}: {error.strerror}") from error
    finally:
        line.close()
