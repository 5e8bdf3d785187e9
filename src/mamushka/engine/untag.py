"""Removing images: names first, then what no name leads to any more.

Whoever relies on blobs or layers that are not recorded yet holds the store's lease: a pull, a push, an archive,
the making of a workload. Images are deleted by who has it alone, so that between "nobody uses it" and its
removal nobody can begin to. An image that a workload uses loses its names at most.
"""

from __future__ import annotations

import time

from mamushka.engine import names
from mamushka.engine.catalogue import stored
from mamushka.engine.pruning import labelled, split
from mamushka.errors import Conflict, Invalid, Unavailable
from mamushka.spec import reference as references

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mamushka.engine.catalogue import Catalogue, Present
    from mamushka.engine.images import Users
    from mamushka.image.store import Entry
    from mamushka.linux.flock import Lock
    from mamushka.spec.digest import Digest

    Removed = list[tuple[str, str]]

UNTAGGED, DELETED = "untagged", "deleted"


class Removal:
    """Removes and prunes; ``users`` answers which workloads use an image's id."""

    def __init__(self, catalogue: Catalogue, users: Users) -> None:
        self._catalogue, self._store, self._users = catalogue, catalogue.store, users

    def remove(self, name: str, *, force: bool, prune: bool) -> Removed:
        """Take away a name, or an image by its id with all its names, and the image with its last name.

        While others pull or load, an image only becomes nameless, and goes with the next prune.
        """
        alone = self._alone()
        try:
            return self._remove(name, force, delete=alone is not None, prune=prune)
        finally:
            if alone is not None:
                alone.close()

    def _remove(self, name: str, force: bool, *, delete: bool, prune: bool) -> Removed:
        present = self._catalogue.find(name)
        mine = self._names_of(present)
        by_id = not any(str(stored(references.parse(name))) == entry.name for entry in mine) if _is_name(name) else True
        doomed = mine if by_id else _without(mine, name)
        last = by_id or not any(references.parse(entry.name).tag for entry in mine if entry not in doomed)
        users = self._users_of(present.id) if last else []
        if by_id and not force and len({references.parse(entry.name).name for entry in mine}) > 1:
            raise Conflict(
                f"image {present.id.short} is named in several repositories", hint="remove its names, or force it"
            )
        if users and (by_id or not force):
            raise Conflict(
                f"image {name} is used by workload {users[0][:12]}",
                hint="remove the workload first" + ("" if by_id else ", or force it to take only the name away"),
            )
        if last and not users and delete:
            return self._delete(present, mine, prune)
        names.drop(self._store, [entry.name for entry in doomed], keep=[present.top])
        return [(UNTAGGED, references.parse(entry.name).familiar) for entry in doomed]

    def prune(self, *, all: bool, filters: Mapping[str, Sequence[str]]) -> tuple[Removed, int]:
        """Remove what has no tag, or with ``all`` what no workload uses. Unavailable while others pull or load."""
        fits, rest = split(filters)
        _check(rest)
        alone = self._alone()
        if alone is None:
            raise Unavailable(
                "cannot prune images: another process pulls, pushes, loads or saves some", hint="try again afterwards"
            )
        removed: Removed = []
        with alone:
            for summary in self._catalogue.summaries():
                if (summary.names and not all) or self._users_of(summary.id):
                    continue
                missing = [text for text in rest.get("label", ()) if not labelled(summary.labels, text)]
                if missing or not fits(summary.created, summary.labels):
                    continue
                removed += [(UNTAGGED, name) for name in (*summary.names, *summary.digests)]
                names.forget(self._store, self._tops(summary.id, self._store.entries()))
                removed.append((DELETED, summary.id))
            freed, layers = self._collect(partial=True)
        return removed + [(DELETED, layer) for layer in layers], freed

    def collect(self, *, partial: bool = False) -> None:
        """Delete blobs and layers that nothing leads to, unless others are at work."""
        alone = self._alone(patience=0.0)
        if alone is not None:
            with alone:
                self._collect(partial=partial)

    def _alone(self, patience: float = 2.0) -> Lock | None:
        """The store's lease for nobody but us; None when others keep it for longer than ``patience`` seconds.

        Making a workload takes milliseconds and is waited for; pulling takes minutes and is not.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._store.lease(exclusive=True)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.02)

    def _collect(self, *, partial: bool = False) -> tuple[int, list[str]]:
        """Alone: the bytes freed, and the layers that went."""
        layers = self._catalogue.layers
        blobs, diff_ids = self._catalogue.reachable()
        freed = self._store.collect(blobs, partial=partial)
        gone = [layer for layer in layers.layers() if layer.diff_id not in diff_ids]
        for layer in gone:
            freed += layers.occupied(layer)
            layers.remove(layer.diff_id)
        layers.clean()
        return freed, [layer.diff_id for layer in gone]

    def _delete(self, present: Present, mine: list[Entry], prune: bool) -> Removed:
        removed = [(UNTAGGED, references.parse(entry.name).familiar) for entry in mine]
        names.forget(self._store, {entry.descriptor.digest for entry in mine} | {present.top.digest})
        removed.append((DELETED, str(present.id)))
        if prune:
            removed += [(DELETED, layer) for layer in self._collect()[1]]
        return removed

    def _users_of(self, id: str) -> list[str]:
        """Workloads of an image, and of the other platforms' images that its names also lead to."""
        entries = self._store.entries()
        tops = self._tops(id, entries)
        ids = {present.id for present in self._catalogue.all(entries) if present.top.digest in tops}
        return [user for each in sorted(ids) for user in self._users(str(each))]

    def _names_of(self, present: Present) -> list[Entry]:
        """Every name that leads to an image, whichever manifest or index it goes through."""
        entries = self._store.entries()
        tops = self._tops(present.id, entries)
        return [entry for entry in entries if entry.name and entry.descriptor.digest in tops]

    def _tops(self, id: str, entries: tuple[Entry, ...]) -> set[Digest]:
        return {present.top.digest for present in self._catalogue.all(entries) if present.id == id}


def _is_name(name: str) -> bool:
    try:
        references.parse(name)
    except Invalid:
        return False
    return True


def _without(mine: list[Entry], name: str) -> list[Entry]:
    """The entry of that name, and its repository's digest when no tag of the repository is left for it."""
    wanted = stored(references.parse(name))
    doomed = [entry for entry in mine if entry.name == str(wanted)]
    siblings = [references.parse(entry.name) for entry in mine if entry not in doomed]
    if wanted.tag and not any(sibling.tag and sibling.name == wanted.name for sibling in siblings):
        doomed += [entry for entry in mine if entry.name.startswith(wanted.name + "@")]
    return doomed


def _check(filters: Mapping[str, Sequence[str]]) -> None:
    """Raises Invalid for a filter that Docker's prune does not have."""
    for key in filters:
        if key not in ("label", "dangling"):
            raise Invalid(f"invalid filter {key!r}", hint="filters are until, label, label! and dangling")
