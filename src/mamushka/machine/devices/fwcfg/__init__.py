"""fw_cfg: what bare-metal guests ask the machine about itself."""

from __future__ import annotations

from mamushka.machine.devices.fwcfg.device import LENGTH, PORT, FwCfg

__all__ = ["LENGTH", "PORT", "FwCfg"]
