"""What test programs for virtual machines drive their monitor with."""

from __future__ import annotations

from mamushka.machine.devices.testdev.device import (
    FLUSH_LENGTH,
    FLUSH_PORT,
    LINES,
    LINES_PORT,
    SCRATCH_LENGTH,
    SCRATCH_PORT,
    Flush,
    Lines,
)

__all__ = [
    "FLUSH_LENGTH", "FLUSH_PORT", "LINES", "LINES_PORT", "SCRATCH_LENGTH", "SCRATCH_PORT", "Flush", "Lines",
]  # fmt: skip
