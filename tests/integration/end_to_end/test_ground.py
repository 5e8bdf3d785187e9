"""The ground the other tests stand on: the images and the registry are what they claim to be."""

from __future__ import annotations

import json

import pytest

from tests import peers


@pytest.mark.registry
@pytest.mark.peer
def test_the_layered_image_has_five_layers(layered_reference: str) -> None:
    seen = json.loads(peers.run("skopeo", "inspect", "--tls-verify=false", f"docker://{layered_reference}"))
    assert len(seen["Layers"]) == 5


@pytest.mark.registry
@pytest.mark.peer
def test_the_busybox_image_says_who_made_it(busybox_reference: str) -> None:
    seen = json.loads(peers.run("skopeo", "inspect", "--tls-verify=false", f"docker://{busybox_reference}"))
    assert seen["Labels"] == {"org.example.made-by": "umoci"}
