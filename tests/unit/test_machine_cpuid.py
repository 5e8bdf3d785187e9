"""What a virtual CPU is told it is, of a host that offers everything."""

from __future__ import annotations

import struct

import pytest

from mamushka.machine.executors.kvm import x86

LEAF = struct.Struct("<7I12x")  # kvm_cpuid_entry2: function, index, flags, eax to edx
EVERYTHING = 0xFFFFFFFF


def answer(function: int, index: int, *, subleaf: int = 0) -> tuple[int, ...]:
    """eax to edx of one leaf, of a host that has all bits set in it."""
    offered = LEAF.pack(function, subleaf, 0, *(EVERYTHING,) * 4)
    return LEAF.unpack(x86.told(offered, index, interrupts=True))[3:]


def test_a_guest_has_no_virtualization_of_its_own() -> None:
    assert not answer(1, 0)[2] & 1 << 5  # VMX. Intel SDM volume 2, CPUID, table 3-10
    assert not answer(0x80000001, 0)[2] & 1 << 2  # SVM. AMD APM volume 3, appendix E.4.2
    assert answer(0x8000000A, 0) == (0, 0, 0, 0)
    assert answer(1, 0)[2] & 1 << 31  # and it may know that it is in a machine


@pytest.mark.parametrize("index", (0, 1, 31, 254, 255, 256, 4095))
def test_each_has_its_number_however_many_there_are(index: int) -> None:
    assert answer(1, index)[1] >> 24 == index & 0xFF  # eight bits, and all of them where there are more:
    assert answer(0xB, index)[3] == answer(0x1F, index, subleaf=1)[3] == index
