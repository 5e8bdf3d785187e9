"""Mount options: words of mount(8) and of runtime-spec's config.md, turned into what the mount calls take."""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.linux.mount import (
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
)
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# word: (attributes to set, attributes to clear); each also exists with an r in front, for the whole tree.
# The access time words share one field of the attributes: setting one clears the others.
_ATTRIBUTES = {
    "ro": (MOUNT_ATTR_RDONLY, 0),
    "rw": (0, MOUNT_ATTR_RDONLY),
    "nosuid": (MOUNT_ATTR_NOSUID, 0),
    "suid": (0, MOUNT_ATTR_NOSUID),
    "nodev": (MOUNT_ATTR_NODEV, 0),
    "dev": (0, MOUNT_ATTR_NODEV),
    "noexec": (MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, MOUNT_ATTR_NOEXEC),
    "nodiratime": (MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, MOUNT_ATTR_NOSYMFOLLOW),
    "noatime": (MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME),
    "atime": (0, MOUNT_ATTR__ATIME),
    "relatime": (0, MOUNT_ATTR__ATIME),
    "norelatime": (0, MOUNT_ATTR__ATIME),
    "strictatime": (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
    "nostrictatime": (0, MOUNT_ATTR__ATIME),
}
PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
# Flags of the whole filesystem, which fsconfig takes by name.
_SUPERBLOCK = ("sync", "dirsync", "mand", "lazytime", "iversion")
_NOTHING = ("defaults", "async", "nomand", "nolazytime", "noiversion", "silent", "loud", "nofail", "_netdev")
_OTHERS = ("remount", "tmpcopyup", "idmap", "ridmap", "src-nofollow", "dest-nofollow", "copy-symlink")


def known() -> tuple[str, ...]:
    """Every word that means something whatever the filesystem."""
    trees = tuple("r" + word for word in _ATTRIBUTES)
    return (*_ATTRIBUTES, *trees, *PROPAGATION, *_SUPERBLOCK, *_NOTHING, *_OTHERS, "bind", "rbind")


@value
class Options:
    """What a list of words asks for."""

    set: int = 0
    clear: int = 0
    recursive_set: int = 0
    recursive_clear: int = 0
    propagation: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()  # of the filesystem, without a value
    parameters: tuple[str, ...] = ()  # of the filesystem: key=value, or a key it knows
    bind: bool = False
    recursive: bool = False  # rbind
    words: tuple[str, ...] = ()  # the specification's further ones


def parse(words: Sequence[str], destination: str) -> Options:
    """Later words win. What is no known word is the filesystem's own business."""
    setting = [0, 0]
    clearing = [0, 0]
    propagation: list[int] = []
    flags: list[str] = []
    parameters: list[str] = []
    others: list[str] = []
    bind = recursive = False
    for word in words:
        tree = word not in _ATTRIBUTES and word[:1] == "r" and word[1:] in _ATTRIBUTES
        attributes = _ATTRIBUTES.get(word[1:] if tree else word)
        if attributes:
            adds, clears = attributes
            setting[tree] = setting[tree] & ~clears | adds
            clearing[tree] = clearing[tree] & ~adds | clears
        elif word in PROPAGATION:
            propagation.append(PROPAGATION[word])
        elif word in ("bind", "rbind"):
            bind, recursive = True, recursive or word == "rbind"
        elif word in _SUPERBLOCK:
            flags.append(word)
        elif word.partition("=")[0] in _OTHERS:
            others.append(word)
        elif word and word not in _NOTHING:
            parameters.append(word)
    if bind and parameters:
        raise Invalid(f"the bind mount at {destination} has the option {parameters[0]!r}, which no bind mount has")
    return Options(
        setting[0], clearing[0], setting[1], clearing[1], tuple(propagation), tuple(flags), tuple(parameters),
        bind, recursive, tuple(others),
    )  # fmt: skip
