"""KVM's own counters of a machine or virtual CPU: a file that describes itself. Documentation/virt/kvm/api.rst 4.133.

    header | id string | descriptors: name, kind, count of values, place | data: 64-bit values

Header and descriptors never change while the file is open and are read once; a sample is one pread of the data. New
kernels have new counters, so nothing but the layout is known here. No privilege is needed.
"""

from __future__ import annotations

import os
import sys

from mamushka.errors import Unsupported
from mamushka.linux.abi import s16, sizeof, struct, u16, u32, unpack
from mamushka.linux.kvm import KVM_GET_STATS_FD
from mamushka.values import value

KVM_STATS_TYPE_MASK = 0xF
KVM_STATS_TYPE_CUMULATIVE = 0
KVM_STATS_TYPE_INSTANT = 1
KVM_STATS_TYPE_PEAK = 2
KVM_STATS_TYPE_LINEAR_HIST = 3
KVM_STATS_TYPE_LOG_HIST = 4

# No kernel has more than some 60 counters of 64 values, with names of 48 bytes: what lies beyond is another format.
_DESCRIPTORS_MAX = 1024
_NAME_MAX = 256
_DATA_MAX = 1 << 20


@struct
class kvm_stats_header:
    """Where everything lies, in bytes from the file's beginning."""

    flags: u32 = 0
    name_size: u32 = 0  # of each name, with its end
    num_desc: u32 = 0
    id_offset: u32 = 0
    desc_offset: u32 = 0
    data_offset: u32 = 0


@struct
class kvm_stats_desc:
    """One counter; its name follows."""

    flags: u32 = 0
    exponent: s16 = 0
    size: u16 = 0  # 64-bit values; more than one for a histogram
    offset: u32 = 0  # of the first, in the data
    bucket_size: u32 = 0


@value
class Counter:
    """A counter's place. ``kind`` is one of KVM_STATS_TYPE_*; ``count`` 64-bit values from ``offset`` in the data."""

    name: str
    kind: int
    count: int
    offset: int


def header_of(raw: bytes) -> kvm_stats_header:
    """The first bytes of the file. Unsupported where they make no sense."""
    if len(raw) < sizeof(kvm_stats_header):
        raise Unsupported(f"KVM's statistics have a header of {len(raw)} bytes")
    header = unpack(kvm_stats_header, raw)
    if header.num_desc > _DESCRIPTORS_MAX or not 0 < header.name_size <= _NAME_MAX:
        raise Unsupported(f"KVM's statistics claim {header.num_desc} counters, names of {header.name_size} bytes")
    return header


def counters_of(header: kvm_stats_header, raw: bytes) -> tuple[Counter, ...]:
    """The descriptors. Unsupported where they are cut off or point too far."""
    size = sizeof(kvm_stats_desc)
    step = size + header.name_size
    if len(raw) < step * header.num_desc:
        raise Unsupported(f"KVM's statistics are cut off: {len(raw)} bytes for {header.num_desc} counters")
    found = []
    for at in range(0, step * header.num_desc, step):
        entry = unpack(kvm_stats_desc, raw, at)
        name = raw[at + size : at + step].partition(b"\0")[0].decode("ascii", "replace")
        if entry.offset % 8 or entry.offset + 8 * entry.size > _DATA_MAX:
            raise Unsupported(f"KVM's counter {name!r} has {entry.size} values at {entry.offset}")
        found.append(Counter(name, entry.flags & KVM_STATS_TYPE_MASK, entry.size, entry.offset))
    return tuple(found)


class Statistics:
    """The counters of one machine or virtual CPU. Owns its descriptor; the machine may be closed before it."""

    def __init__(self, fd: int) -> None:
        """``fd`` is the machine's or the virtual CPU's. OSError, mostly ENOTTY, where the kernel has none (5.14)."""
        self.fd = KVM_GET_STATS_FD(fd, 0)
        try:
            header = header_of(os.pread(self.fd, sizeof(kvm_stats_header), 0))
            length = (sizeof(kvm_stats_desc) + header.name_size) * header.num_desc
            self.counters = counters_of(header, os.pread(self.fd, length, header.desc_offset))
        except BaseException:
            os.close(self.fd)
            raise
        self._start = header.data_offset
        self._length = max((item.offset + 8 * item.count for item in self.counters), default=0)
        self._single = tuple((item.name, item.offset // 8) for item in self.counters if item.count == 1)

    def read(self) -> dict[str, int]:
        """What all counters say now that have one value, by the kernel's names."""
        data = self._data()
        return {name: data[place] for name, place in self._single}

    def histogram(self, name: str) -> tuple[int, ...]:
        """The values of a counter that has several. KeyError where there is none of the name."""
        for item in self.counters:
            if item.name == name:
                return tuple(self._data()[item.offset // 8 : item.offset // 8 + item.count])
        raise KeyError(name)

    def _data(self) -> memoryview[int]:
        assert sys.byteorder == "little"
        raw = os.pread(self.fd, self._length, self._start)
        return memoryview(raw.ljust(self._length, b"\0")).cast("Q")

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
