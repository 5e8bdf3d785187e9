"""Layers stacked by overlayfs, as a detached mount: a descriptor, and nothing in the host's mount table.

A container's init moves the mount into its own mount namespace; whoever is killed before or after that
leaves nothing, because the kernel drops a mount with its last descriptor or namespace.

Options are chosen and never left to the kernel's configuration (Documentation/filesystems/overlayfs.rst):

- ``redirect_dir=nofollow``, ``metacopy=off``: a layer is a stranger's. Attributes in it that say "my content
  is over there" are not believed. The price is that renaming a directory of a lower layer answers EXDEV,
  which mv(1) turns into a copy, as with Docker and podman by default.
- ``index=off``: the index ties a top to exactly its lower layers by file handles and refuses the mount when
  a layer was unpacked again.
- ``volatile`` only where asked for, which is for tops that die with their workload. Without it the last
  unmount writes back everything dirty on the *whole* file system below, which may take seconds when others
  write. With it fsync(2) inside does nothing, so a top that must outlive a crash of the host cannot have it.
"""

from __future__ import annotations

import errno
import os

from mamushka.errors import Invalid, Unsupported
from mamushka.linux import mount as kernel
from mamushka.linux.fd import AT_EMPTY_PATH, AT_FDCWD
from mamushka.linux.process import initial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# fs/overlayfs/params.h: OVL_MAX_STACK
LOWERS_MAX = 500
# fs/fsopen.c: fsconfig takes strings of up to 255 bytes
_STRING_MAX = 255
_O_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def mount(
    lowers: Sequence[str],
    *,
    upper: str | None = None,
    work: str | None = None,
    read_only: bool = False,
    volatile: bool = False,
    userxattr: bool | None = None,
    id_map: int = -1,
) -> int:
    """A detached mount of ``lowers``, uppermost first, below the writable ``upper``; the descriptor is the caller's.

    ``work`` is an empty directory on the file system of ``upper``; both are given or neither. ``userxattr`` is
    for mounts inside a user namespace; None asks which this process is in. ``id_map`` is a descriptor of a user
    namespace, whose ids the owners in the layers are then; so workloads with different maps share layers. The top has
    the mapped owners on disk: overlayfs writes it as whoever mounts, whom the map does not have. Unsupported where the
    kernel refuses, with its own words.
    """
    # The kernel refuses a directory twice. What a layer shows further up hides all that it shows further down.
    lowers = tuple(dict.fromkeys(lowers))
    if not 0 < len(lowers) <= LOWERS_MAX:
        raise Invalid(f"{len(lowers)} layers in one stack: 1 to {LOWERS_MAX} are possible")
    if (upper is None) != (work is None):
        raise Invalid("an upper directory needs a work directory, and the other way round")
    if upper is None and len(lowers) == 1:
        tree = _clone(lowers[0], id_map)
        kernel.set_attributes(tree, set=kernel.MOUNT_ATTR_RDONLY)
        return tree
    if work is not None:
        _forget_volatile(work)
    attributes = kernel.MOUNT_ATTR_RDONLY if read_only or upper is None else 0
    if id_map >= 0:
        return _with_mapped_ids(lowers, upper, work, id_map, volatile=volatile, attributes=attributes)
    options = _options(upper, work, volatile=volatile, userxattr=not initial() if userxattr is None else userxattr)
    try:
        return _by_descriptors(lowers, options, attributes)
    except _NoAppend:
        from mamushka.storage.overlay_page import mount_by_page

        return mount_by_page(lowers, options, attributes)


class _NoAppend(Exception):
    """This kernel's overlayfs has no lowerdir+ (before Linux 6.7)."""


def _clone(directory: str, id_map: int = -1) -> int:
    """A detached mount of one directory (overlayfs itself wants two), with mapped ids if a map is given."""
    tree = kernel.open_tree(AT_FDCWD, os.fsencode(directory), kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC)
    if id_map >= 0:
        attr = kernel.mount_attr(attr_set=kernel.MOUNT_ATTR_IDMAP, userns_fd=id_map)
        try:
            kernel.mount_setattr(tree, b"", AT_EMPTY_PATH, attr, kernel.MOUNT_ATTR_SIZE)
        except OSError as error:
            os.close(tree)
            raise Unsupported(
                f"cannot map the owners in {directory}: {error.strerror}",
                hint="mapped ids need Linux 5.12 and a data root on ext4, xfs, btrfs or, from Linux 6.3, tmpfs",
            ) from error
    return tree


def _with_mapped_ids(
    lowers: Sequence[str], upper: str | None, work: str | None, id_map: int, *, volatile: bool, attributes: int
) -> int:
    """Stack mapped clones of the layers; overlayfs takes each with the map that its mount has. Linux 5.19."""
    held: list[int] = []

    try:
        for lower in lowers:
            held.append(_clone(lower, id_map))
        if upper is not None:  # its root is the root that is seen
            root = os.fstat(held[0])
            os.chown(upper, root.st_uid, root.st_gid)
        options = _options(upper, work, volatile=volatile, userxattr=False)
        try:
            return _by_descriptors([f"/proc/self/fd/{fd}" for fd in held], options, attributes)
        except (_NoAppend, Unsupported):  # only since Linux 6.15 are layers taken that are mounted nowhere
            from mamushka.storage.overlay_page import mount_by_page

            return mount_by_page(lowers, options, attributes, trees=held)
    finally:
        for fd in held:
            os.close(fd)


def _options(upper: str | None, work: str | None, *, volatile: bool, userxattr: bool) -> list[tuple[str, str]]:
    options = [("index", "off"), ("metacopy", "off")]
    # userxattr implies nofollow and the kernel refuses to hear it twice
    options.append(("userxattr", "") if userxattr else ("redirect_dir", "nofollow"))
    if upper is not None and work is not None:
        options += [("upperdir", upper), ("workdir", work)]
        if volatile:
            options.append(("volatile", ""))
    return options


def _by_descriptors(lowers: Sequence[str], options: Sequence[tuple[str, str]], attributes: int) -> int:
    if _takes_any_word():
        raise _NoAppend
    fs = kernel.fsopen(b"overlay", kernel.FSOPEN_CLOEXEC)
    held: list[int] = []
    try:
        kernel.fsconfig(fs, kernel.FSCONFIG_SET_STRING, b"source", b"overlay", 0)
        for number, lower in enumerate(lowers):
            try:
                _set(fs, "lowerdir+", lower, held)
            except OSError as error:
                if number == 0 and error.errno == errno.EINVAL:
                    raise _NoAppend from error
                raise
        for key, setting in options:
            _set(fs, key, setting, held)
        kernel.fsconfig(fs, kernel.FSCONFIG_CMD_CREATE, None, None, 0)
        return kernel.fsmount(fs, kernel.FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        raise refused(error, list(_messages(fs))) from error
    finally:
        for fd in (*held, fs):
            os.close(fd)


def _takes_any_word() -> bool:
    """Whether this overlayfs is one of before Linux 6.5, whose words nobody looks at before the mount is made.

    Then the kernel's log would have a line about each that it does not know.
    """
    fs = kernel.fsopen(b"overlay", kernel.FSOPEN_CLOEXEC)
    try:
        kernel.fsconfig(fs, kernel.FSCONFIG_SET_FLAG, b"no-such-word", None, 0)
        return True
    except OSError:
        return False
    finally:
        os.close(fs)


def _set(fs: int, key: str, setting: str, held: list[int]) -> None:
    if not setting:
        kernel.fsconfig(fs, kernel.FSCONFIG_SET_FLAG, key.encode(), None, 0)
        return
    text = os.fsencode(setting)
    if len(text) > _STRING_MAX:  # said in fewer bytes
        held.append(os.open(text, _O_PATH))
        text = b"/proc/self/fd/%d" % held[-1]
    kernel.fsconfig(fs, kernel.FSCONFIG_SET_STRING, key.encode(), text, 0)


def _messages(fs: int) -> Iterator[str]:
    """What the kernel has to say about a configuration: lines "e text", "w text", "i text"."""
    while True:
        try:
            yield os.read(fs, 4096).decode("utf-8", "replace").strip()
        except OSError:  # ENODATA
            return


def refused(error: OSError, messages: list[str]) -> OSError | Unsupported:
    """What to raise: errors of the host's resources as they are, a refusal in the kernel's own words."""
    if error.errno in (errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return error
    words = "; ".join(line.partition(" ")[2] for line in messages) or str(error)
    return Unsupported(
        f"cannot stack the layers: {words}",
        hint="overlayfs needs root (or a user namespace with userxattr) and a data root on ext4, xfs, btrfs or tmpfs",
    )


def _forget_volatile(work: str) -> None:
    """A volatile mount leaves a mark that refuses the next one, for it cannot know whether the host crashed.

    Tops that are mounted volatile end with their workload, at the latest when the host has started anew; so
    all that comes here is a restart, or a look into the top, while the page cache still has everything.
    """
    mark = f"{work}/work/incompat/volatile"
    try:
        os.unlink(f"{mark}/dirty")
        os.rmdir(mark)
    except FileNotFoundError:
        pass
