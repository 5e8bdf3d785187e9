"""How bare-metal test programs end their machine with a status."""

from __future__ import annotations

from mamushka.machine.devices.debug_exit.device import BOCHS_PORT, LENGTH, PORT, BochsShutdown, DebugExit

__all__ = ["BOCHS_PORT", "LENGTH", "PORT", "BochsShutdown", "DebugExit"]
