"""Machines that were written down: to go on later, elsewhere, or several times at once.

What makes up a machine that holds still: memory, virtual CPUs, interrupt controllers, devices. The last three are a
few KiB, in parts with names, in the layouts of whoever saved them; ``Saved`` is all of them, with a version. Memory is
a file that is mapped privately: a page is read when it is touched first and copied when it is written first. So a
machine goes on before anything was read, and any number of machines share what none of them has changed.

Where the file comes from makes the difference:

    save    a sparse file in a directory: survives everything
    freeze  the memory of a machine that lives: its own file becomes the one that is shared, and the machine itself goes
            on as the first that maps it privately. Nothing is copied, however much memory there is

Who serves a machine's devices in another process must be given its memory, and private pages cannot be given: such a
machine goes on with a copy (``copied_memory``) of what is not zero.

What a machine maps and cannot change, the files of its image, is not saved: whoever makes it anew maps the same ones.

A machine that was frozen once and ran on has pages of its own. To freeze it again takes a new file. What it has not
changed is copied to that while it still runs (``ready``); when it holds still only its own pages are written.
"""

from __future__ import annotations

import os
from binascii import a2b_base64, b2a_base64

from mamushka import document
from mamushka.errors import Conflict, Invalid, Unsupported
from mamushka.linux.fallocate import data
from mamushka.linux.memory import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    memfd,
    mmap,
    mremap,
    munmap,
    own_pages,
    view_of,
)
from mamushka.machine.machine import PAUSED
from mamushka.machine.memory import PAGE, PMEM, RAM, Memory, Region
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Protocol

    from mamushka.machine.machine import Machine

    Parts = Mapping[str, bytes]

    class Stateful(Protocol):
        """A device, or a transport with one behind it."""

        def save(self) -> Parts:
            """Its state, in the loop's thread while the machine holds still."""

        def restore(self, state: Parts) -> None:
            """Take it, before the machine starts."""


VERSION = 2
_ARCHITECTURE = os.uname().machine  # asked now: a monitor that saves itself may not ask any more
STATE, MEMORY = "machine.json", "memory"
SIZE_MAX = 64 << 20  # 256 virtual CPUs with 64 KiB each are a third of it, in base64
_CHUNK = 2 << 20  # memory is looked through in pieces as large as a huge page
_TABLE = 1 << 30  # what one page table of the second level covers; those of other architectures cover no more
_COPY_MAX = 1 << 30  # a call moves at most 2 GiB less a page: sendfile(2)


@value
class Stretch:
    """A stretch of guest-physical memory, and where its content lies in the memory file."""

    start: int
    length: int
    offset: int
    name: str = ""


@value
class Saved:
    """A machine but for the content of its memory."""

    executor: str
    architecture: str
    vcpus: tuple[Parts, ...]
    shared: Parts  # of all virtual CPUs together
    devices: Mapping[str, Parts]
    stretches: tuple[Stretch, ...]
    files: tuple[Stretch, ...] = ()  # mapped, not saved: where, how long, and the names of their regions
    labels: Mapping[str, str] = EMPTY  # whatever else who saved it wants to find again
    version: int = VERSION


def capture(machine: Machine, devices: Mapping[str, Stateful], labels: Mapping[str, str] = EMPTY) -> Saved:
    """The state of a machine that is paused, without its memory. Conflict where it is not."""
    if machine.state != PAUSED:
        raise Conflict(f"cannot save a machine that is {machine.state}: it must be paused")
    stretches, offset = [], 0
    for region in machine.memory:
        if region.kind == RAM:
            stretches.append(Stretch(region.start, region.length, offset, region.name))
            offset += region.length
    return Saved(
        files=_files(machine),
        executor=machine.executor.name,
        architecture=_ARCHITECTURE,
        vcpus=tuple(vcpu.save() for vcpu in machine.vcpus),
        shared=machine.executor.save(),
        devices=machine.loop.call(lambda: {name: device.save() for name, device in devices.items()}),
        stretches=tuple(stretches),
        labels=labels,
    )


def reinstate(machine: Machine, devices: Mapping[str, Stateful], saved: Saved) -> None:
    """Put a machine that has not started, with the same devices, into the state; ``start`` without an entry follows.

    Unsupported or Invalid where the state is of another kind of machine; such a one is good for nothing any more.
    """
    if saved.executor != machine.executor.name or saved.architecture != _ARCHITECTURE:
        raise Unsupported(
            f"the machine was saved by {saved.executor} on {saved.architecture}, "
            f"this is {machine.executor.name} on {_ARCHITECTURE}"
        )
    if len(saved.vcpus) != len(machine.vcpus) or saved.devices.keys() != devices.keys():
        raise Invalid(
            f"the machine was saved with {len(saved.vcpus)} virtual CPUs and the devices {' '.join(saved.devices)}, "
            f"this one has {len(machine.vcpus)} and {' '.join(devices)}"
        )
    if saved.files != _files(machine):
        raise Invalid(f"the machine was saved with other files in its memory: {_named(saved.files)}",
                      hint=f"this one has {_named(_files(machine))}")  # fmt: skip
    for vcpu, parts in zip(machine.vcpus, saved.vcpus, strict=True):
        vcpu.restore(parts)
    machine.executor.restore(saved.shared)
    for name, device in devices.items():
        device.restore(saved.devices[name])


def _files(machine: Machine) -> tuple[Stretch, ...]:
    return tuple(
        Stretch(region.start, region.length, 0, region.name) for region in machine.memory if region.kind == PMEM
    )


def _named(files: tuple[Stretch, ...]) -> str:
    return ", ".join(f"{item.name} ({item.length} bytes)" for item in files) or "none"


# Memory


def private_memory(saved: Saved, fd: int) -> Memory:
    """The machine's RAM out of its memory file, which is only read: what is written stays this machine's."""
    return _memory_over(saved, fd, shared=False)


def _memory_over(saved: Saved, fd: int, *, shared: bool) -> Memory:
    memory = Memory()
    try:
        for item in saved.stretches:
            own = os.dup(fd)
            memory.add(Region(item.start, item.length, fd=own, offset=item.offset, shared=shared, name=item.name))
    except BaseException:
        memory.close()
        raise
    return memory


def copied_memory(saved: Saved, fd: int) -> Memory:
    """The machine's RAM in a file of its own, with what the memory file has in it."""
    size = sum(stretch.length for stretch in saved.stretches)
    own = memfd("mamushka-ram", size)
    try:
        for begin, end in data(fd, 0, size):
            _copy(fd, own, begin, end)
        return _memory_over(saved, own, shared=True)
    finally:
        os.close(own)


def _copy(fd: int, other: int, begin: int, end: int) -> None:
    """From file to file: in a mapping each page would be a fault."""
    os.lseek(other, begin, os.SEEK_SET)
    while begin < end:
        count = os.sendfile(other, fd, begin, min(end - begin, _COPY_MAX))
        if not count:
            raise Invalid(f"the memory of a saved machine ends at {begin}")
        begin += count


class Frozen:
    """Memory as it was at one moment. Owns its descriptor, for ``private_memory``, and what is left to be tidied up."""

    def __init__(self, fd: int, left: tuple[tuple[int, int], ...] = ()) -> None:
        self.fd, self._left = fd, left

    def tidy(self) -> None:
        """Give back what the machine had mapped before. It takes time for each page, so do it when it runs again."""
        left, self._left = self._left, ()
        for address, length in left:
            for start in range(0, length, _CHUNK):  # whoever else wants to map something waits for a piece at most
                madvise(address + start, min(_CHUNK, length - start), MADV_DONTNEED)
            munmap(address, length)

    def close(self) -> None:
        """Once it was given to whoever goes on from it."""
        self.tidy()
        os.close(self.fd)


def _ram(machine: Machine) -> list[Region]:
    return [region for region in machine.memory if region.kind == RAM]


def _in_one_file(ram: list[Region]) -> bool:
    """Whether all that is written goes to a file already."""
    return all(region.shared for region in ram) and len({region.file for region in ram}) == 1 and ram[0].fd >= 0


def ready(machine: Machine) -> int:
    """Before a machine is frozen, and while it runs: a file with what it shares with others; -1 where it needs none.

    What it changes meanwhile are pages of its own, which ``freeze`` writes. The descriptor is for that.
    """
    ram = _ram(machine)
    if _in_one_file(ram):
        return -1
    fd = memfd("mamushka-frozen", sum(region.length for region in ram))
    try:
        for offset, region in _placed(ram):
            if region.fd >= 0:
                for begin, end in _in_file(region):
                    _write_part(fd, region.view, begin, end, offset)
    except BaseException:
        os.close(fd)
        raise
    return fd


def freeze(machine: Machine, ready: int = -1, pagemap: int = -1) -> Frozen:
    """The machine's memory as it is now. It goes on with private pages over the same file.

    The machine is paused. Its mapping is moved aside as it is, by whole page tables; to map something else over it
    would first take every page out of it, one by one. ``ready`` is what that gave, and becomes ours; ``pagemap`` a
    descriptor of PAGEMAP, by which a machine's own pages are known.
    """
    ram = _ram(machine)
    if _in_one_file(ram):
        return Frozen(os.dup(ram[0].fd), tuple(_make_private(region) for region in ram))
    fd = ready if ready >= 0 and pagemap >= 0 else memfd("mamushka-frozen", sum(region.length for region in ram))
    try:
        if fd == ready:
            _write_own(ram, fd, pagemap)
        else:
            write_memory(machine.memory, fd)
        return Frozen(fd, tuple(_move_to(fd, offset, region) for offset, region in _placed(ram)))
    except BaseException:
        os.close(fd)
        raise


def _placed(ram: list[Region]) -> Iterator[tuple[int, Region]]:
    offset = 0
    for region in ram:
        yield offset, region
        offset += region.length


def _write_own(ram: list[Region], fd: int, pagemap: int) -> None:
    """A machine's own pages, also those that are zero now: others may be in the file."""
    for offset, region in _placed(ram):
        for begin, end in own_pages(pagemap, region.hva, region.length):
            for start in range(begin, end, _CHUNK):
                _write(fd, region.view[start : min(start + _CHUNK, end)], offset + start)


def _move_to(fd: int, offset: int, region: Region) -> tuple[int, int]:
    """Have a region that has pages of its own go on over a file with all of them."""
    old, region.fd, region.offset = region.fd, os.dup(fd), offset
    if old >= 0:
        os.close(old)
    return _make_private(region)


def _make_private(region: Region) -> tuple[int, int]:
    """Map a region's file privately at the same place; where what was there lies now, and how long it is."""
    # Page tables are moved as they are where both places lie at the same distance from a border of theirs.
    room = mmap(0, region.length + _TABLE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    aside = room + (region.hva - room) % _TABLE
    mremap(region.hva, region.length, region.length, MREMAP_MAYMOVE | MREMAP_FIXED, aside)
    flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE
    mmap(region.hva, region.length, PROT_READ | PROT_WRITE, flags, region.fd, region.offset)
    region.shared = False
    if aside > room:
        munmap(room, aside - room)
    end = aside + region.length
    if end < room + region.length + _TABLE:
        munmap(end, room + region.length + _TABLE - end)
    return aside, region.length


def write_memory(memory: Memory, fd: int) -> int:
    """Write all RAM to a file that has nothing but holes, one stretch behind the other; bytes that were written.

    What is zero stays a hole.
    """
    return sum(
        _write_part(fd, region.view, begin, end, offset)
        for offset, region in _placed([region for region in memory if region.kind == RAM])
        for begin, end in _parts_to_write(region)
    )


def copy_memory(source: int, target: int) -> None:
    """A memory file's copy in an empty file, but for pages that are zero: of a large page most may be."""
    size = os.fstat(source).st_size
    address = mmap(0, size, PROT_READ, MAP_PRIVATE, source, 0)
    view = view_of(address, size)
    try:
        for begin, end in data(source, 0, size):
            _write_part(target, view, begin, end, 0)
        os.ftruncate(target, size)
    finally:
        view.release()
        munmap(address, size)


def _write_part(fd: int, view: memoryview, begin: int, end: int, offset: int) -> int:
    """A part of memory that begins at ``offset`` in a file, but for what is zero; bytes that were written."""
    written = 0
    for start in range(begin, end, _CHUNK):
        piece = view[start : min(start + _CHUNK, end)]
        if piece != _ZEROS[: len(piece)]:
            written += _write_pages(fd, piece, offset + start)
    return written


def _parts_to_write(region: Region) -> Iterator[tuple[int, int]]:
    """What may be no zeros. To look at a hole of a shared file would fill it; private pages are seen by none but us."""
    if not region.shared or region.fd < 0:
        yield 0, region.length
        return
    yield from _in_file(region)


def _in_file(region: Region) -> Iterator[tuple[int, int]]:
    """What of a region its file has no holes for."""
    for begin, end in data(region.fd, region.offset, region.offset + region.length):
        yield begin - region.offset, end - region.offset


_ZEROS = memoryview(bytes(_CHUNK))


def _write_pages(fd: int, piece: memoryview, offset: int) -> int:
    """Write a piece's pages that are not zero, as many as follow each other at once."""
    written = 0
    begin = -1
    for start in range(0, len(piece) + PAGE, PAGE):
        page = piece[start : start + PAGE]
        if len(page) and page != _ZEROS[: len(page)]:
            begin = start if begin < 0 else begin
        elif begin >= 0:
            written += _write(fd, piece[begin:start], offset + begin)
            begin = -1
    return written


def _write(fd: int, rest: memoryview, offset: int) -> int:
    length = len(rest)
    while rest:
        count = os.pwrite(fd, rest, offset)
        rest, offset = rest[count:], offset + count
    return length


# On a disk


def write(saved: Saved, memory: Memory, directory: str) -> None:
    """Write a machine into a directory that exists and has none; the state comes last, so it is whole or not there."""
    fd = os.open(f"{directory}/{MEMORY}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, sum(stretch.length for stretch in saved.stretches))
        write_memory(memory, fd)
    finally:
        os.close(fd)
    temporary = f"{directory}/.{STATE}"
    with open(temporary, "wb") as file:
        file.write(dump(saved))
    os.rename(temporary, f"{directory}/{STATE}")


def read(directory: str) -> tuple[Saved, int]:
    """A machine that ``write`` wrote, and a descriptor of its memory. Invalid where it is cut short."""
    with open(f"{directory}/{STATE}", "rb") as file:
        saved = load(file.read(SIZE_MAX + 1))
    fd = os.open(f"{directory}/{MEMORY}", os.O_RDONLY | os.O_CLOEXEC)
    wanted = sum(stretch.length for stretch in saved.stretches)
    if os.fstat(fd).st_size != wanted:
        size = os.fstat(fd).st_size
        os.close(fd)
        raise Invalid(f"the memory in {directory} has {size} bytes, its machine {wanted}")
    return saved, fd


def dump(saved: Saved) -> bytes:
    """As a document."""
    return document.dump(
        {
            "version": saved.version,
            "executor": saved.executor,
            "architecture": saved.architecture,
            "vcpus": [_text(parts) for parts in saved.vcpus],
            "shared": _text(saved.shared),
            "devices": {name: _text(parts) for name, parts in saved.devices.items()},
            "stretches": [[item.start, item.length, item.offset, item.name] for item in saved.stretches],
            "files": [[item.start, item.length, item.name] for item in saved.files],
            "labels": dict(saved.labels),
        }
    )


def load(content: bytes) -> Saved:
    """Out of a document. Invalid where it is none, or of a version that is not known here."""
    try:
        item: Any = document.parse(content, "the saved machine", size_max=SIZE_MAX)
        if item["version"] != VERSION:
            raise Unsupported(f"the machine was saved in version {item['version']}, this knows {VERSION}")
        return Saved(
            executor=item["executor"],
            architecture=item["architecture"],
            vcpus=tuple(_parts(parts) for parts in item["vcpus"]),
            shared=_parts(item["shared"]),
            devices={str(name): _parts(parts) for name, parts in item["devices"].items()},
            stretches=_checked(tuple(Stretch(*fields) for fields in item["stretches"])),
            files=tuple(Stretch(start, length, 0, name) for start, length, name in item["files"]),
            labels={str(name): str(said) for name, said in item["labels"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Invalid(f"the saved machine's state is broken: {error}") from error


def _checked(stretches: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
    """Stretches as ``capture`` makes them: whole pages, one behind the other, in the guest and in the file."""
    end = offset = 0
    for item in stretches:
        if item.length <= 0 or (item.start | item.length) % PAGE or item.start < end or item.offset != offset:
            raise ValueError(f"memory of {item.length} bytes at {item.start} and {item.offset}")
        end, offset = item.start + item.length, offset + item.length
    return stretches


def _text(parts: Parts) -> dict[str, str]:
    return {name: b2a_base64(content, newline=False).decode() for name, content in parts.items()}


def _parts(item: Mapping[str, str]) -> Parts:
    return {str(name): a2b_base64(content) for name, content in item.items()}
