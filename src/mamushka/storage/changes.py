"""What a writable top changes: told in Docker's letters, and packed as the layer that makes the same change.

overlayfs writes into the top only what differs from the layers, with one exception that matters here: it
copies up directories on the way to a change, and files that were opened for writing and not written. So each
entry is compared with what the layers show at its path. The layers are looked through from the uppermost
down, as overlayfs does: a whiteout or something that is no directory ends the search, an opaque directory
too once it has been seen.
"""

from __future__ import annotations

import os
import stat

from mamushka.linux import xattr
from mamushka.linux.fd import open_beneath
from mamushka.spec.tar import Member
from mamushka.spec.tar_write import END, header
from mamushka.storage.apply import OPAQUE_MARK, WHITEOUT
from mamushka.storage.make import FOREIGN_XATTRS, is_whiteout
from mamushka.storage.pack import Packer, walk
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ADDED, CHANGED, DELETED = "A", "C", "D"
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


@value
class Change:
    """One path that differs. ``opaque`` hides all that layers have below it; ``implied`` follows from that."""

    path: bytes
    kind: str
    opaque: bool = False
    implied: bool = False


def changes(upper: str, lowers: Sequence[str], mount_points: Iterable[str] = ()) -> list[Change]:
    """All differences in path order; a directory counts as changed when something below it is.

    ``mount_points`` are where something was mounted: what was made there only to mount on is no change.
    """
    below: dict[bytes, list[bytes]] = {b"": [os.fsencode(lower) for lower in lowers]}
    found: dict[bytes, Change] = {}
    root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, at, name in walk(root):
            layers = below.get(path.rpartition(b"/")[0], [])
            try:
                now = os.lstat(name, dir_fd=at)
            except FileNotFoundError:
                continue
            attributes = xattr.read_at(at, name)
            before, merged = _look_down(layers, path)
            opaque = any(attributes.get(key) == b"y" for key in _OPAQUE)
            if stat.S_ISDIR(now.st_mode):
                below[path] = [] if opaque else merged
                opaque = opaque and bool(merged)
                if opaque:
                    _imply(found, path, merged, set(_entries(at, name)))
            kind = _kind(now, attributes, before, path, layers)
            if kind or opaque:
                found[path] = Change(path, kind or CHANGED, opaque)
    finally:
        os.close(root)
    _drop_mount_points(found, mount_points)
    _mark_parents(found)
    return [found[path] for path in sorted(found)]


def pack_changes(upper: str, lowers: Sequence[str], mount_points: Iterable[str] = ()) -> Iterator[bytes]:
    """The tar stream of a layer that turns what ``lowers`` show into what the top shows."""
    packer = Packer()
    root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _differs(os.fstat(root), os.stat(lowers[0])):
            yield from packer.add(b".", root, b".")
        for change in changes(upper, lowers, mount_points):
            parent, _, name = change.path.rpartition(b"/")
            prefix = parent + b"/" if parent else b""
            if change.kind == DELETED:
                if not change.implied:
                    yield header(Member(prefix + WHITEOUT + name, mode=0))
                continue
            try:
                at = open_beneath(root, parent, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:  # gone meanwhile
                continue
            try:
                yield from packer.add(change.path, at, name)
            finally:
                os.close(at)
            if change.opaque:
                yield header(Member(change.path + b"/" + OPAQUE_MARK, mode=0))
    finally:
        os.close(root)
    yield END


def _look_down(layers: Sequence[bytes], path: bytes) -> tuple[os.stat_result | None, list[bytes]]:
    """What the layers show at a path, and those that contribute to it when it is a directory."""
    shown: os.stat_result | None = None
    merged: list[bytes] = []
    for layer in layers:
        whole = layer + b"/" + path
        try:
            found = os.lstat(whole)
        except FileNotFoundError:
            continue
        if is_whiteout(found):
            break
        shown = shown or found
        if not stat.S_ISDIR(found.st_mode):
            break
        merged.append(layer)
        if _is_opaque(whole):
            break
    return shown, merged if shown and stat.S_ISDIR(shown.st_mode) else []


def _is_opaque(path: bytes) -> bool:
    for key in _OPAQUE:
        try:
            if os.getxattr(path, key, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False


def _entries(at: int, name: bytes) -> list[bytes]:
    try:
        fd = open_beneath(at, name, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        return [os.fsencode(entry) for entry in os.listdir(fd)]
    finally:
        os.close(fd)


def _imply(found: dict[bytes, Change], path: bytes, merged: list[bytes], kept: set[bytes]) -> None:
    """An opaque directory deletes each entry of the layers that the top does not have itself."""
    seen = set(kept)
    for layer in merged:
        for name in os.listdir(layer + b"/" + path):
            if name not in seen:
                seen.add(name)
                whole = path + b"/" + name
                if not is_whiteout(os.lstat(layer + b"/" + whole)):
                    found[whole] = Change(whole, DELETED, implied=True)


def _kind(
    now: os.stat_result,
    attributes: dict[str, bytes],
    before: os.stat_result | None,
    path: bytes,
    layers: Sequence[bytes],
) -> str:
    if is_whiteout(now):
        return DELETED if before else ""
    if before is None:
        return ADDED
    if _differs(now, before):
        return CHANGED
    if not stat.S_ISDIR(now.st_mode) and (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
        return CHANGED
    return CHANGED if _own(attributes) != _own(_xattrs_below(layers, path)) else ""


def _differs(now: os.stat_result, before: os.stat_result) -> bool:
    return (now.st_mode, now.st_uid, now.st_gid, now.st_rdev) != (
        before.st_mode,
        before.st_uid,
        before.st_gid,
        before.st_rdev,
    )


def _own(attributes: dict[str, bytes]) -> dict[str, bytes]:
    return {key: item for key, item in attributes.items() if not key.startswith(FOREIGN_XATTRS)}


def _xattrs_below(layers: Sequence[bytes], path: bytes) -> dict[str, bytes]:
    for layer in layers:
        whole = layer + b"/" + path
        if os.path.lexists(whole):
            return {
                key: os.getxattr(whole, key, follow_symlinks=False)
                for key in os.listxattr(whole, follow_symlinks=False)
            }
    return {}


def _drop_mount_points(found: dict[bytes, Change], mount_points: Iterable[str]) -> None:
    made: set[bytes] = set()
    for point in mount_points:
        path = os.fsencode(point).strip(b"/")
        while path and path not in made:
            made.add(path)
            path = path.rpartition(b"/")[0]
    with_changes: set[bytes] = set()
    for path in sorted(found, reverse=True):
        if path in made and path not in with_changes and found[path].kind == ADDED:
            del found[path]
        else:
            with_changes.add(path.rpartition(b"/")[0])


def _mark_parents(found: dict[bytes, Change]) -> None:
    for path in list(found):
        parent = path.rpartition(b"/")[0]
        while parent and parent not in found:
            found[parent] = Change(parent, CHANGED)
            parent = parent.rpartition(b"/")[0]
