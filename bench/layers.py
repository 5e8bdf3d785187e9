"""One tar archive as an image of several layers, as ``docker build`` would have made it over time."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile


def split(archive: str, layout: str, *, layers: int) -> None:
    """Deal the members out to ``layers`` gzip layers, directories first, and write an OCI layout, tag bench."""
    blobs = os.path.join(layout, "blobs", "sha256")
    os.makedirs(blobs)
    descriptors, diff_ids = [], []
    with tarfile.open(archive) as source:
        for members in _deal(source, layers):
            path = os.path.join(layout, "layer")
            _write(source, members, path)
            diff_ids.append(_compress(path))
            descriptors.append(_keep(path, blobs, "application/vnd.oci.image.layer.v1.tar+gzip"))
    configuration = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _keep_json(configuration, layout, blobs, "application/vnd.oci.image.config.v1+json"),
        "layers": descriptors,
    }
    entry = _keep_json(manifest, layout, blobs, "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "bench"}
    _write_json(os.path.join(layout, "index.json"), {"schemaVersion": 2, "manifests": [entry]})
    _write_json(os.path.join(layout, "oci-layout"), {"imageLayoutVersion": "1.0.0"})


def _deal(source: tarfile.TarFile, layers: int) -> list[list[tarfile.TarInfo]]:
    """Equal shares by size; a hard link goes where its file went, and every layer names its directories."""
    members = [member for member in source if not member.name.startswith("./dev/")]
    share = sum(member.size for member in members) / layers
    dealt: list[list[tarfile.TarInfo]] = [[]]
    place: dict[str, int] = {}
    filled = 0
    for member in members:
        if filled > share and len(dealt) < layers:
            dealt.append([])
            filled = 0
        where = place.get(member.linkname, len(dealt) - 1) if member.islnk() else len(dealt) - 1
        place[member.name] = where
        dealt[where].append(member)
        filled += member.size
    return dealt


def _write(source: tarfile.TarFile, members: list[tarfile.TarInfo], path: str) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as target:
        for member in members:
            target.addfile(member, source.extractfile(member) if member.isreg() else None)


def _compress(path: str) -> str:
    """Compress in place with gzip's default level; the digest of what it was."""
    digest = hashlib.sha256()
    with open(path, "rb") as plain, gzip.GzipFile(path + ".gz", "wb", 6, mtime=0) as packed:
        while piece := plain.read(1 << 20):
            digest.update(piece)
            packed.write(piece)
    os.replace(path + ".gz", path)
    return f"sha256:{digest.hexdigest()}"


def _keep(path: str, blobs: str, media_type: str) -> dict[str, object]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = os.path.getsize(path)
    os.replace(path, os.path.join(blobs, digest))
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _keep_json(item: object, layout: str, blobs: str, media_type: str) -> dict[str, object]:
    path = os.path.join(layout, "document")
    _write_json(path, item)
    return _keep(path, blobs, media_type)


def _write_json(path: str, item: object) -> None:
    with open(path, "w") as file:
        json.dump(item, file)


def _architecture() -> str:
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
