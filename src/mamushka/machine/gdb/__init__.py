"""A debugger for machines: gdb's remote protocol, over a Unix socket or a port of the loopback interface.

protocol.py  packets, as bytes in and out, without I/O
architecture.py, x86.py   the registers of a processor, as gdb is told of them
target.py    a machine as a debugger sees it: threads, memory, breakpoints
session.py   what is said to one debugger
server.py    the socket, and one conversation after the other

    with Server(machine, unix="/run/…/gdb") as server: ...      gdb -ex 'target remote /run/…/gdb' vmlinux
"""

from mamushka.machine.gdb.server import Conversation, Server, accept, listen

__all__ = ["Conversation", "Server", "accept", "listen"]
