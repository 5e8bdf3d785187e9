"""How a machine gets each of its layers: as memory that is a disk (pmem), or as a block device.

*pmem* maps an image's page cache into the guest's address space (an e820 range of type 12, no device at all). What the
guest reads is the host's page, shared with every other machine; nothing is copied and no request is made. The price is
one ``struct page``, 64 bytes, for each 4 KiB of the *whole* image, in the guest's own memory, never given back, read or
not: 1/64 of the image (drivers/nvdimm, ``memremap_pages``).

A *block* device costs the guest memory only for what it reads, and gives that back under pressure; but each page is
there twice, in the host's cache and once per guest, each miss is a request that leaves the guest, and the device takes
an interrupt line and a probe at boot.

So pmem wins as soon as more than a sixty-fourth of an image is read, which is nearly always; it loses where the bulk
is large against the guest's memory: a model of 10 GiB would take 160 MiB of a 256 MiB guest before its first
instruction. Hence the rule: map the smallest layers first, because that maps the most layers, as long as all that are
mapped together cost at most a sixteenth of the guest's memory (images of four times its size); what is left comes as
block devices. Of equal layers the upper one goes first: programs live above their distribution.
"""

from __future__ import annotations

from mamushka.errors import Unsupported
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PMEM, BLOCK = "pmem", "block"

# struct page of 64-bit Linux, and the page it is for.
_STRUCT_PAGE, _PAGE = 64, 4096
_SHARE = 16
# Past this share of its memory a guest has too little left to boot.
_SHARE_MAX = 4
# The zero page has room for 128 ranges; the guest's memory and holes need a few.
PMEM_MAX = 96
# Lines 5 to 23 of the I/O APIC are for all devices of a machine: half of them for its layers.
BLOCK_MAX = 9


@value
class Layer:
    """One image as a machine gets it: ``length`` bytes of ``path``, a multiple of 2 MiB, as PMEM or BLOCK."""

    path: str
    length: int
    kind: str


def cost(length: int) -> int:
    """Bytes of guest memory that mapping an image of ``length`` bytes takes."""
    return -(-length // _PAGE) * _STRUCT_PAGE


def placement(lengths: Sequence[int], memory: int) -> tuple[str, ...]:
    """PMEM or BLOCK for each image, given uppermost first, in a guest with ``memory`` bytes.

    Where more would come as block devices than there are lines for, the smallest of those are mapped too. Unsupported
    where that takes a quarter of the guest's memory or more ranges than a memory map has.
    """
    order = sorted(range(len(lengths)), key=lambda number: (lengths[number], number))
    mapped = taken = 0
    while mapped < min(len(order), PMEM_MAX):
        price = cost(lengths[order[mapped]])
        needed = len(order) - mapped > BLOCK_MAX
        if taken + price > memory // (_SHARE_MAX if needed else _SHARE):
            break
        mapped, taken = mapped + 1, taken + price
    if len(order) - mapped > BLOCK_MAX:
        raise Unsupported(
            f"cannot give a machine with {memory >> 20} MiB of memory {len(order)} layers of {sum(lengths) >> 20} MiB",
            hint="give it more memory, or flatten the image: docker export, then mamushka import",
        )
    kinds = [BLOCK] * len(order)
    for number in order[:mapped]:
        kinds[number] = PMEM
    return tuple(kinds)
