"""Mount options: words of mount(8) and of runtime-spec's config.md, turned into what the mount calls take."""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.filesystems import ATTRIBUTES, NOTHING, OTHERS, PROPAGATION, attributes_of
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Flags of the whole filesystem, which fsconfig takes by name.
_SUPERBLOCK = ("sync", "dirsync", "mand", "lazytime", "iversion")


def known() -> tuple[str, ...]:
    """Every word that means something whatever the filesystem."""
    trees = tuple("r" + word for word in ATTRIBUTES)
    return (*ATTRIBUTES, *trees, *PROPAGATION, *_SUPERBLOCK, *NOTHING, *OTHERS, "bind", "rbind")


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
        attributes = attributes_of(word)
        if attributes:
            adds, clears, tree = attributes
            setting[tree] = setting[tree] & ~clears | adds
            clearing[tree] = clearing[tree] & ~adds | clears
        elif word in PROPAGATION:
            propagation.append(PROPAGATION[word])
        elif word in ("bind", "rbind"):
            bind, recursive = True, recursive or word == "rbind"
        elif word in _SUPERBLOCK:
            flags.append(word)
        elif word.partition("=")[0] in OTHERS:
            others.append(word)
        elif word and word not in NOTHING:
            parameters.append(word)
    if bind and parameters:
        raise Invalid(f"the bind mount at {destination} has the option {parameters[0]!r}, which no bind mount has")
    return Options(
        setting[0], clearing[0], setting[1], clearing[1], tuple(propagation), tuple(flags), tuple(parameters),
        bind, recursive, tuple(others),
    )  # fmt: skip
