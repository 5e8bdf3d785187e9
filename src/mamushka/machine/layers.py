"""A root that the guest's own kernel puts together: images of layers below a disk that takes what is written.

    /dev/pmem0, 1, …         layers that are mapped: the host's page cache itself, mounted with DAX, cached nowhere else
    /dev/vda, vdb, …         layers that come as disks, then the top
    /run/l/N                 layer N, the uppermost is 0: short, because overlayfs takes one page of options
    /run/top/upper, work     what is written
    /run/root                the overlay of them, the container's root

Devices are called in the order in which they are plugged in: that is what ties a name in the guest to a file here. The
options are those of a container's root (``storage/overlay.py``): attributes in a stranger's layer that say "my content
is over there" are not believed.
"""

from __future__ import annotations

import os
from stat import S_ISREG

from mamushka.errors import Invalid, NotFound
from mamushka.linux import mount as kernel
from mamushka.machine.agent import words
from mamushka.machine.agent.protocol import number
from mamushka.machine.agent.settings import file, mount, step, wait_for
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

ROOT = "/run/root"
_LAYER, _TOP, _FILES = "/run/l", "/run/top", "/run/files"
# Drivers find devices while the first process starts already; under emulation that takes a second. An answer of the
# agent's is waited for longer (agent.PATIENCE).
_PATIENCE = 20.0
_OPTIONS = "index=off,metacopy=off"
# Linux maps whole sections of memory only where they begin and end on 2 MiB.
_HUGE = 2 << 20


def plug(board: Board, disks: Disks, open_disk: OpenDisk) -> list[bytes]:
    """Plug all of it in; the steps that make it ``ROOT`` in the guest."""
    steps, mapped, letters = [], 0, 0
    for place, image in enumerate(disks.images):
        if image.mapped:
            board.pmem(*_open(image.path), name=f"layer {place}")
            device, data, mapped = f"/dev/pmem{mapped}", "dax=always", mapped + 1
        else:
            device, data, letters = _add(board, letters, open_disk(image.path, False)), "", letters + 1
        steps += [wait_for(device, _PATIENCE), mount(f"{_LAYER}/{place}", "erofs", device, kernel.MS_RDONLY, data)]
    device = _add(board, letters, open_disk(disks.top, True))
    lowers = ":".join(f"{_LAYER}/{place}" for place in range(len(disks.images)))
    options = f"{_OPTIONS},{'userxattr' if disks.user_attributes else 'redirect_dir=nofollow'}"
    owner = number(words.K_UID, disks.uid), number(words.K_GID, disks.gid)
    return [
        *steps,
        wait_for(device, _PATIENCE),
        mount(_TOP, "ext4", device, kernel.MS_NOATIME, "discard"),
        step(words.MKDIR, f"{_TOP}/upper", number(words.K_MODE, disks.mode), *owner),
        step(words.MKDIR, f"{_TOP}/work", number(words.K_MODE, 0o700)),
        mount(ROOT, "overlay", "overlay", 0, f"lowerdir={lowers},upperdir={_TOP}/upper,workdir={_TOP}/work,{options}"),
    ]


def _add(board: Board, letters: int, disk: Disk) -> str:
    from mamushka.machine.devices.virtio.block import Block

    board.add(f"disk{letters}", Block(disk, name=str(letters), serial=f"mamushka-{letters}"))
    return f"/dev/vd{chr(ord('a') + letters)}"


def _open(path: str) -> tuple[int, int]:
    """(descriptor, length) of an image that is mapped."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"the layer's image {path} is not there", hint="pull the image again") from error
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
