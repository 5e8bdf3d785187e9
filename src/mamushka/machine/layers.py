"""A root that the guest's own kernel puts together: images of layers below a disk that takes what is written.

    /dev/pmem0p1, p2, …      layers that are mapped: the host's page cache itself, mounted with DAX, cached nowhere else
    /dev/vda                 the top
    /dev/vdb, vdc, …         layers that come as disks
    /run/l/N                 layer N, the uppermost is 0: short, because overlayfs takes one page of options
    /run/top/upper, work     what is written
    /run/root                the overlay of them, the container's root

All mapped layers lie one behind the other in one *window* of memory, of which one device tells; the agent makes
partitions of it. A kernel that comes up finds the window and the top, and remembers nothing of them but their sizes:
what it read while it looked for partitions it forgets when nobody has the disk open, and of memory that is mapped (DAX)
it keeps no copy. Sizes of windows are few. So machines of different images can go on from one saved machine (warm.py),
each with its own files in the same places. What would make too many kinds, layers that come as disks and directories of
the host's, is plugged in *late* (board.py): the guest is told to look at those places when it has called.

Devices are called in the order in which they are looked at: that is what ties a name in the guest to a file here. The
options are those of a container's root (``storage/overlay.py``): attributes in a stranger's layer that say "my content
is over there" are not believed.
"""

from __future__ import annotations

import os
from stat import S_ISREG

from mamushka.errors import Invalid, NotFound
from mamushka.linux import mount as kernel
from mamushka.machine.agent import words
from mamushka.machine.agent.protocol import number as number_
from mamushka.machine.agent.settings import file, mount, partition, step, wait_for
from mamushka.machine.shares import copied
from mamushka.values import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mamushka.machine.board import Board
    from mamushka.machine.devices.virtio.block import Disk
    from mamushka.runtime import Bundle, Disks

    # The disk in a raw file; the second argument says whether it is written.
    OpenDisk = Callable[[str, bool], Disk]

ROOT, UPPER = "/run/root", "/run/top/upper"
_LAYER, _TOP, _FILES = "/run/l", "/run/top", "/run/files"
_PMEM = "/dev/pmem0"
# Inode tables are holes of a file, and zeros already: nobody needs to write them.
_TOP_OPTIONS = "discard,noinit_itable"
# As many as placement (``storage/placement.py``) gives, and a directory.
_DISKS_MAX = 10
# pmem is found by a thread of the kernel's, behind the probe of its device; under emulation that takes a second. An
# answer of the agent's is waited for longer (agent.PATIENCE).
_PATIENCE = 20.0
_OPTIONS = "index=off,metacopy=off"
# Linux maps whole sections of memory only where they begin and end on 2 MiB.
_HUGE = 2 << 20
# How many places for late devices a machine has: few numbers, because each is a kind of machine for a warm start.
_PLACES = (0, 2, 6)
# The smallest window, in bytes: small images are all of one kind.
_WINDOW_MIN = 32 << 20
# As virtio_mmio's driver calls places (drivers/acpi/scan.c: the id and a count), and where one is looked at again.
_PLACE, _BIND = "LNRO0005:{:02x}", "/sys/bus/platform/drivers/virtio-mmio/bind"


def kind(disks: Disks, *, shared: bool) -> tuple[int, tuple[str, ...]]:
    """(how many places for late devices, what else of these disks a guest sees before it calls).

    ``shared`` where a directory of the host's is plugged in, too.
    """
    late = sum(not image.mapped for image in disks.images) + shared
    places = next((count for count in _PLACES if count >= late), _DISKS_MAX)
    return places, (f"window {_window(disks)}", f"top {os.stat(disks.top).st_size}", f"places {places}")


def _window(disks: Disks) -> int:
    """The stretch of memory that the mapped layers lie in: a power of two, or one and a half."""
    needed = sum(_length(image.path) for image in disks.images if image.mapped)
    if not needed:
        return 0
    power = 1 << max(needed, _WINDOW_MIN).bit_length() - 1
    return next(length for length in (power, power + power // 2, 2 * power) if length >= needed)


def bind(board: Board, name: str) -> bytes:
    """The step that has the guest look at a late device's place; its node is there when the step is done."""
    return file(_BIND, place(board, name).encode(), 0o200)


def place(board: Board, name: str) -> str:
    """What the guest's kernel calls a device's place."""
    return _PLACE.format(list(board.transports).index(name))


def plug(board: Board, disks: Disks, open_disk: OpenDisk) -> tuple[list[bytes], list[bytes]]:
    """Plug all of it in; (steps after which a guest has found what is not late, those that make it ``ROOT``)."""
    from mamushka.machine.devices.virtio.block import Block

    found, steps, sources = _map(board, disks)
    board.add("disk0", Block(open_disk(disks.top, True), name="0", serial="mamushka-0"))
    for number, (place, image) in enumerate(((at, it) for at, it in enumerate(disks.images) if not it.mapped), 1):
        name, disk = f"disk{number}", open_disk(image.path, False)
        board.add(name, Block(disk, name=str(number), serial=f"mamushka-{number}"), late=True)
        steps.append(bind(board, name))
        sources[place] = _disk(number)
    for place, image in enumerate(disks.images):
        data = "dax=always" if image.mapped else ""
        steps.append(mount(f"{_LAYER}/{place}", "erofs", sources[place], kernel.MS_RDONLY, data))
    lowers = ":".join(f"{_LAYER}/{place}" for place in range(len(disks.images)))
    options = f"{_OPTIONS},{'userxattr' if disks.user_attributes else 'redirect_dir=nofollow'}"
    owner = number_(words.K_UID, disks.uid), number_(words.K_GID, disks.gid)
    steps += [
        mount(_TOP, "ext4", _disk(0), kernel.MS_NOATIME, _TOP_OPTIONS),
        step(words.MKDIR, UPPER, number_(words.K_MODE, disks.mode), *owner),
        step(words.MKDIR, f"{_TOP}/work", number_(words.K_MODE, 0o700)),
        mount(ROOT, "overlay", "overlay", 0, f"lowerdir={lowers},upperdir={UPPER},workdir={_TOP}/work,{options}"),
    ]
    return [*found, wait_for(_disk(0), _PATIENCE)], steps


def _map(board: Board, disks: Disks) -> tuple[list[bytes], list[bytes], dict[int, str]]:
    """Map what is to be mapped: (steps as of ``plug``, the disk of each layer by its place)."""
    from mamushka.machine.devices.virtio.pmem import Pmem

    mapped = [place for place, image in enumerate(disks.images) if image.mapped]
    if not mapped:
        return [], [], {}
    files = [_open(disks.images[place].path) for place in mapped]
    length = _window(disks)
    board.add("layers", Pmem(board.window(length, files, name="layer"), length))
    offset, steps = 0, []
    for count, (_, size) in enumerate(files, 1):
        steps.append(partition(_PMEM, count, offset, size))
        offset += size
    return [wait_for(_PMEM, _PATIENCE)], steps, {place: f"{_PMEM}p{count}" for count, place in enumerate(mapped, 1)}


def _length(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError as error:
        raise _lost(path) from error


def _lost(path: str) -> NotFound:
    return NotFound(f"the layer's image {path} is not there", hint="pull the image again")


def _disk(number: int) -> str:
    return f"/dev/vd{chr(ord('a') + number)}"


def _open(path: str) -> tuple[int, int]:
    """(descriptor, length) of an image that is mapped."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _lost(path) from error
    found = os.fstat(fd)
    if not S_ISREG(found.st_mode) or not found.st_size or found.st_size % _HUGE:
        os.close(fd)
        raise Invalid(f"{path} is no layer's image: {found.st_size} bytes")
    return fd, found.st_size


def files(bundle: Bundle, before: Mapping[str, str] = EMPTY) -> tuple[list[bytes], Mapping[str, str]]:
    """(steps that write what is told and not shared, its paths in the guest by destination).

    ``before`` are those paths in a guest that has them already, bound where they belong: nothing else is written then.
    """
    steps, sources = [], {}
    for place, (destination, source) in enumerate(copied(bundle).items()):
        if before and destination not in before:
            continue
        with open(source, "rb", buffering=0) as opened:
            found = os.fstat(opened.fileno())
            content = opened.read()
        target = sources[destination] = before.get(destination, f"{_FILES}/{place}")
        steps.append(file(target, content, found.st_mode & 0o7777, found.st_uid, found.st_gid))
    return steps, sources
