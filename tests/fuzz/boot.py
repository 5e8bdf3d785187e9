"""Kernels and modules as somebody gave them, broken."""

from __future__ import annotations

import gzip

from mamushka.errors import Invalid, Unsupported
from tests.fuzz.targets import target


def _kernels() -> tuple[bytes, ...]:
    from tests.unit.test_machine_elf import KERNELS
    from tests.unit.test_machine_linux import bzimage

    return *KERNELS, bzimage(), gzip.compress(KERNELS[0])


@target(*_kernels())
def kernel(raw: bytes) -> bool:
    """any bytes are a kernel that is written into memory with an entry, or refused with the reason"""
    from mamushka.machine.boot import load
    from mamushka.machine.memory import Memory, Region

    memory = Memory((Region(0, 32 << 20),))
    try:
        entry = load(memory, raw, command_line=b"quiet", initramfs=[b"070701"], rsdp=0xE0000)
        assert entry.mode in ("long", "protected") and entry.table
        assert entry.mode != "long" or entry.cr3
        return True
    except (Invalid, Unsupported) as error:
        assert str(error)
        return False
    finally:
        memory.close()
