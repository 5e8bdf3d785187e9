"""A tree as one comparable value: every path with every attribute, and layers taken out of an OCI layout."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mamushka.storage.layers import LayerStore
from tests.images import Layout


def look(root: str | Path, *, times: bool = True, directory_times: bool = True) -> dict[str, tuple[object, ...]]:
    """Paths below ``root``, and "." itself, with kind, mode, owner, size, times, device, attributes, names, content."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[tuple[int, int], list[str]] = {}
    top = os.fspath(root)
    for directory, below, files in os.walk(top):
        for name in [*below, *files, *(["."] if directory == top else [])]:
            path = os.path.join(directory, name)
            inode = os.lstat(path)
            names.setdefault((inode.st_dev, inode.st_ino), []).append(os.path.relpath(path, top))
    for paths in names.values():
        path = os.path.join(top, paths[0])
        seen = os.lstat(path)
        is_directory = stat.S_ISDIR(seen.st_mode)
        row = (
            oct(seen.st_mode),
            (seen.st_uid, seen.st_gid),
            0 if is_directory else seen.st_size,
            seen.st_mtime_ns if times and (directory_times or not is_directory) else 0,
            seen.st_rdev,
            {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if not key.startswith("trusted.overlay.")
            },
            sorted(paths) if not is_directory else [],
            content(path, seen),
        )
        found.update(dict.fromkeys(paths, row))
    return found


def content(path: str, seen: os.stat_result) -> str:
    if stat.S_ISLNK(seen.st_mode):
        return os.readlink(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if stat.S_ISREG(seen.st_mode) else ""


def layers(image: Layout) -> Iterator[tuple[str, bytes]]:
    """(diff_id, tar) of each layer, lowest first."""

    def blob(digest: str) -> bytes:
        return Path(image.path, "blobs", digest.replace(":", "/")).read_bytes()

    index = json.loads(Path(image.path, "index.json").read_text())
    name = "org.opencontainers.image.ref.name"
    manifest = json.loads(
        blob(next(entry["digest"] for entry in index["manifests"] if entry["annotations"][name] == image.tag))
    )
    config = json.loads(blob(manifest["config"]["digest"]))
    for diff_id, layer in zip(config["rootfs"]["diff_ids"], manifest["layers"], strict=True):
        yield diff_id, gzip.decompress(blob(layer["digest"]))


def apply(store: LayerStore, image: Layout) -> list[str]:
    """Apply a whole image; the directories to stack, uppermost first."""
    diff_ids = []
    for diff_id, raw in layers(image):
        store.apply(diff_id, [raw[start : start + 65536] for start in range(0, len(raw), 65536)])
        diff_ids.append(diff_id)
    store.adopt(diff_ids)
    return [store.path(diff_id) for diff_id in reversed(diff_ids)]
