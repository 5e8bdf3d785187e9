"""A reference interpreter for seccomp's classic BPF: slow, obvious, and refusing whatever the kernel refuses."""

from __future__ import annotations

import struct

ALLOW, KILL = 0x7FFF0000, 0x00000000


def errno_action(number: int) -> int:
    return 0x00050000 | number


def run(program: bytes, nr: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """What the filter answers to a system call."""
    padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", nr & 0xFFFFFFFF, arch, 0, *padded)
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        opcode, jt, jf, k = code[at]
        at += 1
        if opcode == 0x20:  # ld [k]
            assert k % 4 == 0 and k < len(data), "a load outside struct seccomp_data"
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif opcode == 0x54:  # and k
            accumulator &= k
        elif opcode == 0x05:  # ja k
            at += k
        elif opcode in _JUMPS:
            at += jt if _JUMPS[opcode](accumulator, k) else jf
        elif opcode == 0x06:  # ret k
            return k
        else:
            raise AssertionError(f"the opcode {opcode:#x} is not one that a filter should have")


_JUMPS = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}
