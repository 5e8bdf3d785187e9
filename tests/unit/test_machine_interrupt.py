"""The I/O APIC: what a driver finds in it, and what its entries mean."""

from __future__ import annotations

from mamushka.machine.interrupt import PINS, IoApic, Message


def version(chip: IoApic) -> int:
    chip.write(0x00, 4, 1)
    return chip.read(0x10, 4)


def test_it_has_the_pins_that_something_is_connected_to() -> None:
    """Linux asks the version register how many there are, and looks at every one ten times."""
    chip = IoApic(lambda changes: None)
    assert version(chip) >> 16 == 0
    for pin in (4, 7, 5):
        chip.connect(pin)
    assert version(chip) == 7 << 16 | 0x11


def test_an_entry_is_told_as_the_message_it_means() -> None:
    told: list[dict[int, Message | None]] = []
    chip = IoApic(lambda changes: told.append(dict(changes)))
    for register, value in ((0x10 + 2 * 5 + 1, 3 << 24), (0x10 + 2 * 5, 0x41), (0x10 + 2 * 5, 1 << 16)):
        chip.write(0x00, 4, register)
        chip.write(0x10, 4, value)
    assert told == [{5: Message(0xFEE00000 | 3 << 12, 0x4041)}, {5: None}]


def test_the_state_tells_every_line_anew_at_once() -> None:
    chip = IoApic(lambda changes: None)
    chip.write(0x00, 4, 0x10 + 2 * 6)
    chip.write(0x10, 4, 0x52)
    told: list[dict[int, Message | None]] = []
    other = IoApic(lambda changes: told.append(dict(changes)))
    other.restore(chip.save())
    assert other.save() == chip.save()
    assert told == [{pin: Message(0xFEE00000, 0x4052) if pin == 6 else None for pin in range(PINS)}]
