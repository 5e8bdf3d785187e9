"""Executables of a few pages, written here and executed from a memory file that nobody can change any more."""

from __future__ import annotations

import os
from errno import EINVAL

from mamushka.linux.fd import fcntl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}  # ELF's numbers for those that we have instructions for
ALIGNMENT = 0x10000  # of segments: the largest page of these machines
READ, WRITE, EXECUTE = 4, 2, 1

MFD_EXEC = 0x10
F_ADD_SEALS = 1033
F_SEAL_SEAL = 1
F_SEAL_SHRINK = 2
F_SEAL_GROW = 4
F_SEAL_WRITE = 8
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474E551


def words(numbers: Sequence[int], size: int) -> bytes:
    """Numbers as the machines above have them in memory."""
    return b"".join([number.to_bytes(size, "little") for number in numbers])


def headers_size(segments: int) -> int:
    """Bytes before the first segment's content: Elf64_Ehdr, an Elf64_Phdr each, and that of the stack. elf(5)."""
    return 64 + 56 * (segments + 1)


def headers(machine: str, entry: int, segments: Sequence[tuple[int, int, int, int, int]]) -> bytes:
    """ELF64, little endian, ET_EXEC. A segment is (flags, offset in the file, address, size, further zeros)."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + words([2, MACHINES[machine]], 2) + words([1], 4)
    head += words([entry, 64, 0], 8) + words([0], 4) + words([64, 56, len(segments) + 1, 0, 0, 0], 2)
    for flags, offset, address, size, zeros in segments:
        head += words([_PT_LOAD, flags], 4) + words([offset, address, address, size, size + zeros, ALIGNMENT], 8)
    return head + words([_PT_GNU_STACK, READ | WRITE], 4) + bytes(48)


def create(name: str) -> int:
    """An empty file in memory that can be executed once it is written and sealed; close-on-exec.

    OSError where the system forbids it: sysctl vm.memfd_noexec=2.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | MFD_EXEC)  # Linux 6.3
    except OSError as error:
        if error.errno != EINVAL:  # an older kernel, where every memory file can be executed
            raise
        return os.memfd_create(name, flags)


def seal(fd: int) -> None:
    """Nobody can change the file any more, nor this."""
    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)


def memory_file(name: str, content: bytes) -> int:
    """A sealed file that can be executed; the caller's to close."""
    fd = create(name)
    os.write(fd, content)
    seal(fd)
    return fd
