"""Where an initramfs and a command line go, whichever kind of kernel wants them."""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.machine.boot import layout
from mamushka.machine.memory import PAGE
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mamushka.machine.boot.memory_map import Stretch
    from mamushka.machine.memory import Memory


@value
class Told:
    """What a kernel is told, whichever way its kind is told; fields as in ``boot.load``."""

    command_line: bytes = b""
    initramfs: Sequence[bytes | memoryview] = ()
    rsdp: int = 0
    extra: Iterable[Stretch] = ()
    name: str = "kernel"


def place_initramfs(memory: Memory, pieces: Sequence[bytes | memoryview], *, above: int, below: int) -> tuple[int, int]:
    """Write the pieces one after the other, as high as can be; where and how many bytes. Zeros where there are none.

    High, because the kernel unpacks itself upwards from below. Each piece begins at a multiple of four: that is where
    the kernel looks for the next archive (Documentation/driver-api/early-userspace/buffer-format.rst).
    """
    offsets, length = [], 0
    for piece in pieces:
        length += -length % 4
        offsets.append(length)
        length += len(piece)
    if not length:
        return 0, 0
    address = (below - length) // PAGE * PAGE
    if address < above:
        raise Invalid(
            f"the machine's memory is too small: an initramfs of {length >> 10} KiB does not fit between "
            f"{above:#x}, where the kernel ends, and {below:#x}",
            hint="give the machine more memory",
        )
    for offset, piece in zip(offsets, pieces, strict=True):
        memory.write(address + offset, piece)
    return address, length


def place_command_line(memory: Memory, text: bytes, most: int) -> int:
    """Write the command line with its final NUL; where it lies. ``most`` is the kernel's own limit, without the NUL."""
    limit = min(most, layout.COMMAND_LINE_MAX - 1)
    if len(text) > limit:
        raise Invalid(f"the kernel's command line has {len(text)} bytes: this kernel takes {limit}")
    if b"\0" in text:
        raise Invalid("the kernel's command line has a NUL byte in it")
    memory.write(layout.COMMAND_LINE, text + b"\0")
    return layout.COMMAND_LINE
