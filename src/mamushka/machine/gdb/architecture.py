"""What gdb must know of a processor, as data: registers in gdb's order, and the bytes of a breakpoint."""

from __future__ import annotations

from mamushka.values import value


@value
class Register:
    """``source`` is our name for it (``Vcpu.registers``, ``system_registers``), empty where we do not show it."""

    name: str
    bits: int
    source: str
    kind: str = "int"  # gdb's name of a type
    writable: bool = True


@value
class Feature:
    """Registers that gdb knows, or not, as a set by this name. GDB manual, appendix G."""

    name: str
    registers: tuple[Register, ...]


@value
class Architecture:
    """``name`` is gdb's; the breakpoint is one instruction's bytes."""

    name: str
    features: tuple[Feature, ...]
    breakpoint: bytes
    program_counter: str

    @property
    def registers(self) -> tuple[Register, ...]:
        """All, by their numbers."""
        return tuple(register for feature in self.features for register in feature.registers)

    def description(self) -> bytes:
        """target.xml. GDB manual, appendix G.2."""
        lines = [
            '<?xml version="1.0"?>',
            '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
            f"<target><architecture>{self.name}</architecture>",
        ]
        for feature in self.features:
            lines.append(f'<feature name="{feature.name}">')
            lines += [f'<reg name="{reg.name}" bitsize="{reg.bits}" type="{reg.kind}"/>' for reg in feature.registers]
            lines.append("</feature>")
        return "\n".join([*lines, "</target>"]).encode()
