"""Manifests, indexes, configs, descriptors and platforms: what is read, what is refused, what is chosen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.spec import digest, platform
from mamushka.spec.image import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_descriptor,
    parse_manifest,
)

D = "sha256:" + "ab" * 32


def _descriptor(kind: str, **more: object) -> dict[str, Any]:
    return {"mediaType": kind, "digest": D, "size": 7, **more}


def _manifest(**more: object) -> bytes:
    body: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(OCI_CONFIG),
        "layers": [_descriptor(OCI_LAYER_GZIP)],
    }
    return json.dumps({**body, **more}).encode()


def test_manifest_keeps_its_bytes() -> None:
    raw = _manifest(unknown={"kept": 1})
    manifest = parse_manifest(raw)
    assert isinstance(manifest, Manifest)
    assert manifest.raw is raw
    assert manifest.layers[0].is_layer
    assert manifest.config.digest.short == "ab" * 6


def test_docker_types_and_header_fallback() -> None:
    manifest = parse_manifest(_manifest(mediaType=DOCKER_MANIFEST))
    assert manifest.media_type == DOCKER_MANIFEST
    bare = json.loads(_manifest())
    del bare["mediaType"]
    assert parse_manifest(json.dumps(bare).encode(), DOCKER_MANIFEST + "; charset=utf-8").media_type == DOCKER_MANIFEST
    index = json.dumps({"schemaVersion": 2, "manifests": [_descriptor(OCI_MANIFEST)]}).encode()
    assert isinstance(parse_manifest(index), Index)


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b"{}",
        b'{"manifests": 1}',
        _manifest(mediaType="text/html", config=None, layers=None).replace(b'"layers"', b'"x"'),
        _manifest(config=_descriptor(OCI_CONFIG, size=-1)),
        _manifest(config=_descriptor(OCI_CONFIG, size=True)),
        _manifest(config=_descriptor(OCI_CONFIG, size=1 << 60)),
        _manifest(config=_descriptor(OCI_CONFIG, digest="sha256:../../etc")),
        _manifest(layers=[_descriptor(OCI_LAYER_GZIP)] * 501),
        _manifest(manifests=[]),
        json.dumps({"mediaType": OCI_INDEX, "manifests": [], "layers": []}).encode(),
    ],
)
def test_refused(raw: bytes) -> None:
    with pytest.raises(Invalid):
        parse_manifest(raw)


def test_schema_1_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="schema 1"):
        parse_manifest(b'{"schemaVersion": 1, "name": "x"}')


def test_config() -> None:
    raw = json.dumps(
        {
            "architecture": "arm64",
            "os": "linux",
            "config": {"Env": ["A=b"], "Cmd": None, "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}}},
            "rootfs": {"type": "layers", "diff_ids": [D]},
            "history": [{"created_by": "x", "empty_layer": True}],
        }
    ).encode()
    config = parse_config(raw)
    assert str(config.platform) == "linux/arm64"
    assert config.config.env == ("A=b",)
    assert config.config.volumes == ("/data",)
    assert config.diff_ids == (digest.Digest(D),)
    assert config.history[0].empty_layer
    assert config.document["os"] == "linux"


_keys = st.sampled_from(
    ["mediaType", "config", "layers", "manifests", "digest", "size", "platform", "os", "rootfs", "diff_ids", "history"]
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.just(D),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=20,
)


@given(_json)
def test_any_document_is_parsed_or_invalid(body: object) -> None:
    raw = json.dumps(body).encode()
    for parse in (parse_manifest, parse_config):
        try:
            parse(raw)
        except (Invalid, Unsupported):
            pass


def test_descriptor_round_trip() -> None:
    body = _descriptor(
        OCI_MANIFEST, platform={"os": "linux", "architecture": "arm", "variant": "v7"}, annotations={"a": "b"}
    )
    assert parse_descriptor(parse_descriptor(body).document()) == parse_descriptor(body)


def test_digest_verifies() -> None:
    content = b"content"
    right = digest.sha256(content)
    right.verify(content, "x")
    with pytest.raises(Invalid, match="does not match"):
        right.verify(b"other", "x")
    assert right.path == f"blobs/sha256/{right.encoded}"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("Linux/ARM/V6", "linux/arm/v6"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_platform_spelling(text: str, normal: str) -> None:
    assert str(platform.parse(text)) == normal


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/arm 64"])
def test_platform_refused(text: str) -> None:
    with pytest.raises(Invalid):
        platform.parse(text)


def _entries(*names: str) -> list[Descriptor]:
    return [Descriptor(OCI_MANIFEST, digest.sha256(name.encode()), 1, platform.parse(name)) for name in names]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v2"),
        ("linux/arm64", "linux/arm/v7"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v5"),
    ],
)
def test_platform_choice(wanted: str, chosen: str) -> None:
    entries = _entries("linux/386", "linux/arm/v5", "linux/arm/v7", "linux/amd64/v2", "linux/amd64")
    assert str(platform.select(entries, platform.parse(wanted)).platform) == chosen


def test_platform_missing() -> None:
    entries = _entries("linux/s390x", "windows/amd64")
    with pytest.raises(NotFound, match="linux/s390x, windows/amd64"):
        platform.select(entries, platform.parse("amd64"))
    with pytest.raises(NotFound):
        platform.select(_entries("linux/arm/v7"), platform.parse("arm64"), strict=True)
    untyped = Descriptor(DOCKER_INDEX, digest.sha256(b""), 1)
    assert platform.select([*entries, untyped], platform.parse("amd64")) is untyped
