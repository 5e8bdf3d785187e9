"""Sockets, beyond what Python's own module says: one that is connected again and again."""

from __future__ import annotations

from struct import pack

from mamushka.linux.abi import syscall

AF_UNSPEC, AF_INET = 0, 2


@syscall(x86_64=42, aarch64=203, riscv64=203)
def connect(fd: int, address: bytes, length: int) -> None:
    """Connect; with AF_UNSPEC, let go of who it is connected to. BlockingIOError while it takes time. connect(2)."""


def connect_ipv4(fd: int, address: bytes, port: int) -> None:
    """Connect it to a port of ``address``, four bytes. ip(7)."""
    where = pack("=H", AF_INET) + pack("!H4s8x", port, address)
    connect(fd, where, len(where))


def disconnect(fd: int) -> None:
    """Let go; it can be connected anew, also a TCP socket. connect(2)."""
    nobody = pack("=H14x", AF_UNSPEC)
    connect(fd, nobody, len(nobody))
