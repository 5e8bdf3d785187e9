"""A process that waits for descriptors in one page of memory, then becomes a program again.

An idle Python process keeps megabytes: interpreter, modules, heap. One that only waits needs none of it. So
it replaces itself by a static executable of a few dozen instructions, written here, that calls ppoll and,
when a descriptor is ready or the time is up, execve with an argument vector that was prepared beforehand:

    ppoll(fds, n, timeout or NULL, NULL, 0);  execve(path, argv, envp);  exit(127);

Same pid, same children, same open descriptors before, during and after. The image is one page: ELF header,
one program header, code, poll set, strings and vectors at fixed addresses. It is executed from a sealed
memory file, so no file system has to allow execution. See docs/decisions/0020-sleeping-shim.md.
"""

from __future__ import annotations

import os

from mamushka.linux.executable import EXECUTE, READ, WRITE, headers, headers_size, memory_file, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POLLIN = 1

_BASE = 0x400000  # where a traditional static executable lies; free in every address space layout
_HEADERS = headers_size(1)
# x86_64, aarch64, riscv64: the calls ppoll, execve, exit
_CALLS = {"x86_64": (271, 59, 60), "aarch64": (73, 221, 93), "riscv64": (73, 221, 93)}


def _x86_64(number: int, arguments: Sequence[int]) -> bytes:
    """mov r32, imm32 for rdi rsi rdx r10 r8 and eax, then syscall. Addresses stay below 4 GiB."""
    registers = (b"\xbf", b"\xbe", b"\xba", b"\x41\xba", b"\x41\xb8")
    moves = [register + item.to_bytes(4, "little") for register, item in zip(registers, arguments, strict=False)]
    return b"".join(moves) + b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x05"


def _aarch64(number: int, arguments: Sequence[int]) -> bytes:
    """movz and movk for x0 to x4 and x8, then svc 0."""
    words = []
    for register, item in [*enumerate(arguments), (8, number)]:
        words.append(0xD2800000 | (item & 0xFFFF) << 5 | register)
        words.append(0xF2A00000 | (item >> 16) << 5 | register)
    return b"".join(word.to_bytes(4, "little") for word in [*words, 0xD4000001])


def _riscv64(number: int, arguments: Sequence[int]) -> bytes:
    """lui and addiw for a0 to a4 and a7, then ecall. addiw's immediate is signed, so lui rounds."""
    words = []
    for register, item in [*enumerate(arguments, 10), (17, number)]:
        words.append(((item + 0x800) & 0xFFFFF000) | register << 7 | 0x37)
        words.append((item & 0xFFF) << 20 | register << 15 | register << 7 | 0x1B)
    return b"".join(word.to_bytes(4, "little") for word in [*words, 0x73])


_ENCODERS = {"x86_64": _x86_64, "aarch64": _aarch64, "riscv64": _riscv64}


def image(
    descriptors: Sequence[int],
    arguments: Sequence[bytes],
    environment: Mapping[bytes, bytes],
    *,
    timeout: float | None = None,
    machine: str = os.uname().machine,
) -> bytes:
    """The executable that waits for any of ``descriptors`` to be readable, then executes ``arguments``.

    ``arguments[0]`` is the program's absolute path. ``timeout`` in seconds also wakes it.
    Raises KeyError for a machine that it has no instructions for.
    """
    encode, calls = _ENCODERS[machine], _CALLS[machine]
    length = len(encode(0, [0] * 5)) + len(encode(0, [0] * 3)) + len(encode(0, [0]))
    data = bytearray()
    start = _BASE + (_HEADERS + length + 7 & ~7)

    def place(piece: bytes) -> int:
        address = start + len(data)
        data.extend(piece + bytes(-len(piece) % 8))
        return address

    polls = place(b"".join(words([fd], 4) + words([POLLIN, 0], 2) for fd in descriptors))
    seconds = 0 if timeout is None else int(timeout)
    clock = place(words([seconds, int(((timeout or 0) - seconds) * 1e9)], 8)) if timeout is not None else 0
    argv = [place(item + b"\0") for item in arguments]
    envp = [place(name + b"=" + item + b"\0") for name, item in environment.items()]
    vectors = place(words([*argv, 0], 8)), place(words([*envp, 0], 8))

    code = encode(calls[0], [polls, len(descriptors), clock, 0, 0])
    code += encode(calls[1], [argv[0], *vectors])
    code += encode(calls[2], [127])
    body = code.ljust(start - _BASE - _HEADERS, b"\0") + data
    # One segment, writable because ppoll answers in place.
    segment = (READ | WRITE | EXECUTE, 0, _BASE, _HEADERS + len(body), 0)
    return headers(machine, _BASE + _HEADERS, [segment]) + body


def sleep(executable: bytes, name: str) -> None:
    """Become ``executable`` (from ``image``), shown as ``name``; never returns, raises OSError if it cannot.

    The caller has made the descriptors that must live on inheritable.
    """
    fd = memory_file(name, executable)
    os.execve(fd, [name], {})
