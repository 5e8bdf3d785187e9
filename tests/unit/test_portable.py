"""Files with holes in a checkpoint's tar file: as GNU tar has them, and back."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from mamushka.engine import portable

MIB = 1 << 20
SHAPES = [
    ((0, b"first"), (7 * MIB, b"x" * 5000)),
    ((3 * MIB, bytes(range(256)) * 9000),),
    (),
    ((0, b"whole" * 1000),),
]


@pytest.mark.parametrize("parts", SHAPES)
@pytest.mark.parametrize("size", [9 * MIB, 9 * MIB - 123])
def test_holes_survive(tmp_path: Path, parts: tuple[tuple[int, bytes], ...], size: int) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        for begin, content in parts:
            file.seek(begin)
            file.write(content)
        file.truncate(size)
    with tarfile.open(tmp_path / "it.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        portable._put_file(tar, "checkpoint/memory", str(source))
    assert (tmp_path / "it.tar").stat().st_size < 3 * MIB
    with tarfile.open(tmp_path / "it.tar") as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.size) == ("checkpoint/memory", size)
        content_of = tar.extractfile(member)
        assert content_of is not None
        with open(tmp_path / "target", "wb") as file:
            portable._take_file(content_of, file, member)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert os.stat(tmp_path / "target").st_blocks * 512 < 3 * MIB
    subprocess.run(["tar", "-xf", "it.tar"], cwd=tmp_path, check=True)
    assert (tmp_path / "checkpoint/memory").read_bytes() == source.read_bytes()
