"""A kernel's file, whatever it is, made ready to run: its format is told by its bytes, and refused with the reason."""

from __future__ import annotations

import mmap
import os

from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.machine.boot import compressed, elf, linux, multiboot, pvh
from mamushka.machine.boot.placing import Told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mamushka.machine.boot.memory_map import Stretch
    from mamushka.machine.memory import Memory
    from mamushka.machine.vcpu import Entry


def load(
    memory: Memory,
    kernel: str | bytes | memoryview,
    *,
    command_line: bytes = b"",
    initramfs: Sequence[bytes | memoryview] = (),
    rsdp: int = 0,
    extra: Iterable[Stretch] = (),
) -> Entry:
    """Write a kernel and what it is told into memory, and say how the first virtual CPU begins.

    ``kernel`` is a path or the file's content; ``initramfs`` are archives one after the other (for multiboot: modules);
    ``rsdp`` is what ``acpi.install`` gave; ``extra`` adds to the memory map. Invalid for a broken kernel or too little
    memory, Unsupported for a format that is not known, each saying why.
    """
    told = Told(command_line, initramfs, rsdp, extra, kernel if isinstance(kernel, str) else "kernel")
    return _loader(kernel)(memory, told)


def check(kernel: str | bytes | memoryview) -> None:
    """Unsupported, Invalid or NotFound where ``load`` would say so of the file alone."""
    _loader(kernel)


def _loader(kernel: str | bytes | memoryview) -> Callable[[Memory, Told], Entry]:
    """What loads a kernel, by what its file has in it."""
    name = kernel if isinstance(kernel, str) else "the kernel"
    image = _content(kernel)
    if not linux.recognise(image):
        image = memoryview(compressed.unpack(image, name))
    if linux.recognise(image):
        return lambda memory, told: linux.load(memory, image, told)
    file = elf.parse(image) if elf.recognise(image) else None
    if file is not None:
        entry = pvh.entry_point(image, file) if file.machine in (elf.I386, elf.X86_64) else None
        if entry is not None:
            return lambda memory, told: pvh.load(memory, image, file, entry, told)
    header = multiboot.find(image)
    if header is not None:
        return lambda memory, told: multiboot.load(memory, image, header, told)
    if file is not None and linux.is_vmlinux(file):
        return lambda memory, told: linux.load_vmlinux(memory, image, file, told)
    why = _why(image) if file is None else _why_not_elf(file)
    raise Unsupported(f"{name} cannot be booted: {why}", hint="a bzImage (vmlinuz) for x86_64 is needed")


def is_program(kernel: str) -> bool:
    """Whether it is a bare-metal program: one with a multiboot header that does not boot in an operating system's way.

    Such a one may do with what a processor cannot do; a kernel cannot. NotFound or Invalid as ``load`` says it.
    """
    image = _content(kernel)
    if linux.recognise(image) or multiboot.find(image) is None:
        return False
    if not elf.recognise(image):
        return True
    file = elf.parse(image)
    return file.machine not in (elf.I386, elf.X86_64) or pvh.entry_point(image, file) is None


def _content(kernel: str | bytes | memoryview) -> memoryview:
    """The file's bytes; of a path, mapped and not copied."""
    if not isinstance(kernel, str):
        return memoryview(kernel)
    try:
        fd = os.open(kernel, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"there is no kernel {kernel}", hint="name an image, such as /boot/vmlinuz-VERSION") from error
    try:
        if not os.fstat(fd).st_size:
            raise Invalid(f"the kernel {kernel} is empty", hint="name an image, such as /boot/vmlinuz-VERSION")
        return memoryview(mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ))
    finally:
        os.close(fd)


def _why(image: memoryview) -> str:
    """What it is instead, where that can be told."""
    head = bytes(image[:64])
    if head[0x38:0x3C] == b"ARM\x64":
        return "it is an image for 64-bit ARM"
    if head[0x38:0x3C] == b"RSC\x05" or head[0x30:0x38] == b"RISCV\0\0\0":
        return "it is an image for RISC-V"
    if head[:2] == b"MZ":
        return "it is an EFI program without a Linux setup header, and there is no firmware here to run one"
    if head[:4] == b"\x27\x05\x19\x56":
        return "it is a U-Boot image"
    return f"its format is not known (it begins with {head[:8].hex(' ')})"


def _why_not_elf(file: elf.Elf) -> str:
    if file.machine != elf.X86_64:
        return f"it is an ELF file for {elf.MACHINES.get(file.machine, f'processors of kind {file.machine}')}"
    if any(segment.kind == elf.INTERPRETER for segment in file.segments) or file.kind != elf.EXECUTABLE:
        return "it is a program for an operating system, not a kernel"
    return "it is an ELF file without a PVH note or multiboot header, and its entry lies in none of its segments"
