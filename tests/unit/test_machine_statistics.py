"""KVM's counters as they describe themselves, and what is made of two samples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Unsupported
from mamushka.linux.abi import pack
from mamushka.linux.kvm_stats import Counter, counters_of, header_of, kvm_stats_desc, kvm_stats_header
from mamushka.machine.statistics import OTHER, MemoryUse, Sample, memory_use, rates


def test_a_file_that_describes_itself() -> None:
    header = header_of(pack(kvm_stats_header(name_size=16, num_desc=2)))
    raw = b"".join(
        pack(kvm_stats_desc(flags=flags, size=size, offset=offset)) + name.ljust(16, b"\0")
        for flags, size, offset, name in ((0, 1, 0, b"exits"), (0x24, 32, 8, b"halt_wait_hist"))
    )
    assert counters_of(header, raw) == (Counter("exits", 0, 1, 0), Counter("halt_wait_hist", 4, 32, 8))
    with pytest.raises(Unsupported, match="cut off"):
        counters_of(header, raw[:-1])


@given(st.binary(max_size=40), st.binary(max_size=4096))
def test_any_bytes_are_counters_or_unsupported(head: bytes, rest: bytes) -> None:
    try:
        header = header_of(head)
        for counter in counters_of(header, rest):
            assert counter.offset + 8 * counter.count <= 1 << 20
    except Unsupported:
        pass


def test_rates_of_two_samples() -> None:
    before = Sample(10.0, {"exits": 100, "io_exits": 50, "insn_emulation": 5}, {"Write": 40})
    after = Sample(
        12.0,
        {"exits": 300, "io_exits": 150, "halt_exits": 40, "pf_taken": 20, "pf_fixed": 8, "insn_emulation": 25},
        {"Write": 60, "Read": 20},
        MemoryUse(1, 2, 3),
    )
    figures = rates(before, after, instructions=1000)
    assert (figures.seconds, figures.exits, figures.user, figures.user_share) == (2.0, 100.0, 20.0, 0.2)
    assert figures.by_class["port"] == 50.0 and figures.by_class["halt"] == figures.halts == 20.0
    assert figures.by_class[OTHER] == (200 - 100 - 40 - 20) / 2
    assert figures.user_by_kind == {"Write": 10.0, "Read": 10.0}
    assert (figures.emulated, figures.emulated_share, figures.faults_fixed) == (10.0, 0.02, 4.0)
    assert figures.memory == MemoryUse(1, 2, 3)


def test_no_time_and_counters_that_went_back() -> None:
    sample = Sample(1.0, {"exits": 9}, {"Read": 9})
    figures = rates(sample, Sample(1.0, {"exits": 3}, {"Read": 3}))
    assert (figures.exits, figures.user, figures.user_share, figures.emulated_share) == (0.0, 0.0, 0.0, None)


def test_memory_by_mappings() -> None:
    lines = b"""\
1000-3000 rw-p 00000000 00:00 0
Size:                  8 kB
Pss:                   6 kB
Private_Dirty:         4 kB
VmFlags: rd wr mr mw me nr sd
3000-4000 r-xp 00000000 08:01 123 /usr/bin/python3.11
Pss:                   3 kB
Private_Dirty:         1 kB
""".splitlines(keepends=True)
    assert memory_use(lines, [(0x1000, 0x3000)]) == MemoryUse(4096, 6144, 3072)
    assert memory_use(lines, []) == MemoryUse(0, 0, 9216)
