"""Why there is no KVM is told in one way, whoever asks for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mamushka.errors import Unsupported
from mamushka.machine.executors.kvm import open_device
from tests import peers


def test_a_host_without_kvm(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"kvm is not there") as refused:
        open_device(str(tmp_path / "kvm"))
    assert "modprobe" in refused.value.hint and "--runtime container" in refused.value.hint


def test_a_node_with_nothing_behind_it(tmp_path: Path) -> None:
    """Opening a socket fails as a node does whose module is not loaded: ENXIO."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "kvm"))
        with pytest.raises(Unsupported, match=r"its module is not loaded"):
            open_device(str(tmp_path / "kvm"))


def test_a_user_who_may_not(tmp_path: Path) -> None:
    peers.need_root()
    node = tmp_path / "kvm"
    node.touch(0o600)
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(0o711)
    os.seteuid(65534)
    try:
        with pytest.raises(Unsupported, match=r"may not be opened") as refused:
            open_device(str(node))
    finally:
        os.seteuid(0)
    assert "group" in refused.value.hint
