"""What QEMU's own programs make of images: the peer that ours are compared with."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None,
    reason="qemu-img or qemu-io is missing (Debian: qemu-utils)",
)


def img(*words: str | Path) -> str:
    """What qemu-img says; it must succeed."""
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def io(path: Path, *commands: str, kind: str = "qcow2") -> None:
    """Perform qemu-io's commands on an image."""
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", kind, *words, str(path)], check=True, stdout=subprocess.DEVNULL)


def check(path: Path, *, leaks: bool = False) -> None:
    """The image has no corruption, and unless ``leaks`` are allowed none of those."""
    done = subprocess.run(["qemu-img", "check", "-f", "qcow2", path], capture_output=True, text=True, check=False)
    assert done.returncode in ((0, 3) if leaks else (0,)), f"{done.returncode}\n{done.stdout[:3000]}{done.stderr}"


def content(path: Path, kind: str = "qcow2") -> bytes:
    """All that the image reads as, by qemu-img convert."""
    raw = path.with_suffix(".content")
    img("convert", "-f", kind, "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def pattern(size: int, seed: int) -> bytes:
    """Bytes that are neither zeros nor all different, with holes: what compresses, and what does not."""
    dice = random.Random(seed)
    parts = []
    while size > 0:
        length = min(size, dice.choice((512, 4096, 65536, 70000 // 512 * 512)))
        kind = dice.randrange(3)
        parts.append(bytes(length) if kind == 0 else dice.randbytes(length) if kind == 1 else bytes((kind,)) * length)
        size -= length
    return b"".join(parts)
