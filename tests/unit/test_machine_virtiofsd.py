"""How virtiofsd is started: the two programs of that name, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mamushka.errors import Unsupported
from mamushka.machine.devices.virtio.fs import Program, Share, find, virtiofsd


def test_the_one_in_c() -> None:
    words = virtiofsd.arguments(Program("/v", rust=False), Share(3, cache="none"), "/place", 7, 4096)
    assert words[:3] == ("/v", "--fd=7", "--rlimit-nofile=4096")
    options = words[4::2]
    assert set(words[3::2]) == {"-o"}
    assert {"source=/place", "cache=none", "sandbox=namespace", "xattr"} <= set(options)


def test_the_one_in_rust() -> None:
    words = virtiofsd.arguments(Program("/v", rust=True), Share(3, cache="none", xattr=False), "/place", 7)
    assert {"--shared-dir=/place", "--cache=never", "--sandbox=namespace", "--fd=7"} <= set(words)
    assert "--xattr" not in words and "-o" not in words


def test_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "_PATHS", ())
    with pytest.raises(Unsupported, match="not installed") as caught:
        find()
    assert "apt-get install virtiofsd" in caught.value.hint


@pytest.mark.parametrize(("text", "rust"), [("--shared-dir <SHARED_DIR>", True), ("    -o source=PATH  x", False)])
def test_they_are_told_apart_by_their_help(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, rust: bool
) -> None:
    program = tmp_path / "virtiofsd"
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setattr(virtiofsd, "_PATHS", ("/nowhere", str(program)))
    monkeypatch.setattr(virtiofsd, "_programs", {})
    assert find() == Program(str(program), rust)


def test_nobody_else_can_connect() -> None:
    ours, listening = virtiofsd.connection()
    other = type(ours)(ours.family, ours.type)
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.connect(listening.getsockname())
    accepted, _ = listening._accept()
    type(ours)(fileno=accepted).send(b"x")
    assert ours.recv(1) == b"x"
    for socket in (ours, listening, other):
        socket.close()
