"""Giving and taking names of images in the store's index.

Rules that hold after every change: what lost its last name stays as a nameless image until it is removed or
pruned; what has a name is not nameless.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mamushka.image.store import ImageStore
    from mamushka.spec.digest import Digest
    from mamushka.spec.image import Descriptor


def assign(store: ImageStore, names: Mapping[str, Descriptor], nameless: Collection[Descriptor] = ()) -> None:
    """Let whole references name descriptors, and keep further ones without a name."""

    def change(named: dict[str, Descriptor], without: dict[Digest, Descriptor]) -> None:
        left = [named[name] for name in names if name in named] + list(nameless)
        named.update(names)
        _settle(named, without, left)

    store.edit(change)


def drop(store: ImageStore, names: Collection[str], *, keep: Collection[Descriptor] = ()) -> None:
    """Take names away; what loses its last name is dropped with it, unless it is in ``keep``."""

    def change(named: dict[str, Descriptor], without: dict[Digest, Descriptor]) -> None:
        for name in names:
            named.pop(name, None)
        _settle(named, without, list(keep))

    store.edit(change)


def forget(store: ImageStore, tops: Collection[Digest]) -> None:
    """Drop images with all their names."""

    def change(named: dict[str, Descriptor], without: dict[Digest, Descriptor]) -> None:
        for name in [name for name, descriptor in named.items() if descriptor.digest in tops]:
            del named[name]
        for digest in tops:
            without.pop(digest, None)

    store.edit(change)


def _settle(named: dict[str, Descriptor], without: dict[Digest, Descriptor], left: list[Descriptor]) -> None:
    without.update((descriptor.digest, descriptor) for descriptor in left)
    for descriptor in named.values():
        without.pop(descriptor.digest, None)
