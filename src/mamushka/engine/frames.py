"""What a shim and its clients say to each other: one message of a SOCK_SEQPACKET socket each.

The kernel keeps messages whole and in order, so a message needs no length: its first byte is its kind, the rest its
content. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from struct import Struct

from mamushka import document, errors, runtime
from mamushka.runtime import Exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# From the shim
OUT, ERR, EXIT, STARTED, FAILED, DONE, TRACE = 1, 2, 3, 4, 5, 6, 7
# To the shim
ATTACH, STDIN, END, RESIZE, QUIET, POLICY, NAMES = 16, 17, 18, 19, 20, 21, 22
# What a client wants to hear and may say: flags of ATTACH
OUTPUT, INPUT = 1, 2
# Set by the shim alone: standard input ends when this client goes, as with Docker for the one who started it.
ONCE = 4

# A pipe holds so much, and the socket's default buffer three such messages.
DATA_MAX = 65536
MESSAGE_MAX = DATA_MAX + 1

_EXIT = Struct("<iiB")
_SIZE = Struct("<HH")
_STARTED = Struct("<id")
_FLAGS = Struct("<B")
_KINDS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
_KINDS |= {kind.__name__: kind for kind in (runtime.CommandNotFound, runtime.CannotExecute, runtime.NotRunning)}


def data(kind: int, content: bytes) -> bytes:
    """OUT, ERR or STDIN."""
    return bytes((kind,)) + content


def plain(kind: int) -> bytes:
    """END, QUIET or DONE."""
    return bytes((kind,))


def exit(how: Exit) -> bytes:
    """EXIT."""
    return bytes((EXIT,)) + _EXIT.pack(how.code, how.signal, how.oom_killed)


def started(pid: int, when: float) -> bytes:
    """STARTED; ``when`` in seconds since the epoch."""
    return bytes((STARTED,)) + _STARTED.pack(pid, when)


def resize(rows: int, columns: int) -> bytes:
    """RESIZE; a terminal has at most 65535 of each."""
    return bytes((RESIZE,)) + _SIZE.pack(min(max(rows, 0), 65535), min(max(columns, 0), 65535))


def attach(flags: int) -> bytes:
    """ATTACH."""
    return bytes((ATTACH,)) + _FLAGS.pack(flags)


def policy(policy: str, retries: int) -> bytes:
    """POLICY: another restart policy."""
    return bytes((POLICY,)) + document.dump([policy, retries])


def names(index: str, servers: Sequence[str]) -> bytes:
    """NAMES: the file that says where the names are, and which servers know others."""
    return bytes((NAMES,)) + document.dump([index, *servers])


def failed(error: BaseException) -> bytes:
    """FAILED: an error on its way to another process."""
    kind = type(error).__name__ if type(error).__name__ in _KINDS else ""
    parts = [kind, str(error)[:4096], getattr(error, "hint", "")[:4096]]
    return bytes((FAILED,)) + document.dump(parts)


def traced(name: str, fields: dict[str, object]) -> bytes:
    """TRACE: an event for the sinks of the process that asked for the start."""
    return bytes((TRACE,)) + document.dump([name, {key: str(field)[:4096] for key, field in fields.items()}])


def parse(message: bytes) -> tuple[int, Any]:
    """(kind, content): bytes, a number, a tuple of numbers, an Exit or an error. Invalid for anything else."""
    if not message:
        raise errors.Invalid("an empty message")
    kind, content = message[0], message[1:]
    if kind in (OUT, ERR, STDIN):
        return kind, content
    if kind in (END, QUIET, DONE):
        return kind, None
    try:
        return kind, _content(kind, content)
    except (struct.error, ValueError, TypeError) as error:
        raise errors.Invalid(f"a message of kind {kind} with {len(content)} bytes: {error}") from error


def _content(kind: int, content: bytes) -> Any:
    if kind == EXIT:
        code, signal, oom = _EXIT.unpack(content)
        return Exit(code, signal, bool(oom))
    if kind == STARTED:
        return _STARTED.unpack(content)
    if kind == RESIZE:
        return _SIZE.unpack(content)
    if kind == ATTACH:
        return _FLAGS.unpack(content)[0]
    if kind == POLICY:
        name, retries = document.parse(content, "a restart policy")
        return str(name), int(retries)
    if kind == NAMES:
        index, *servers = map(str, document.parse(content, "names"))
        return index, tuple(servers)
    if kind == TRACE:
        name, fields = document.parse(content, "a trace event")
        return str(name), dict(fields)
    if kind == FAILED:
        name, message, hint = document.parse(content, "an error")
        return _KINDS.get(name, errors.MamushkaError)(str(message), hint=str(hint))
    raise errors.Invalid(f"a message of unknown kind {kind}")
