"""Chains of links in a layer, of the kind that got past tarfile's ``data`` filter: whatever they are, they end inside.

CVE-2025-4330, CVE-2025-4517, CVE-2026-11940: each link alone is harmless, and so is its target when it is checked.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mamushka.errors import Invalid
from mamushka.spec.tar import DIRECTORY, LINK, SYMLINK

from .test_apply import member, unpack

LONG = "d" * 247  # as a path of sixteen is longer than PATH_MAX
STEPS = "abcdefghijklmnop"


def longest() -> list[bytes]:
    """Directories with long names, and beside each a short link to it: what the links spell is beyond PATH_MAX."""
    members, path = [], ""
    for step in STEPS:
        members.append(member(f"{path}{LONG}", DIRECTORY))
        members.append(member(f"{path}{step}", SYMLINK, link=LONG))
        path += f"{step}/"
    # Through the short names to the deepest directory, and up again as many steps.
    members.append(member(f"{'/'.join(STEPS)}/{'l' * 254}", SYMLINK, link="../" * len(STEPS)))
    members.append(member("escape", SYMLINK, link=f"{'/'.join(STEPS)}/{'l' * 254}/../../../outside"))
    return [*members, member("escape/file", content=b"escaped"), member("hard", LINK, link="escape/kept")]


def chains(outside: str) -> dict[str, list[bytes]]:
    up = "../../../../../../../../../.." + outside
    return {
        "a hard link to a link": [
            member("one", SYMLINK, link=up), member("two", LINK, link="one"), member("two/file", content=b"escaped"),
        ],
        "a hard link to a link, overwritten": [
            member("one", SYMLINK, link=f"{up}/kept"), member("two", LINK, link="one"),
            member("two", content=b"escaped"),
        ],
        "a hard link through two links": [
            member("one", SYMLINK, link="two"), member("two", SYMLINK, link=up), member("hard", LINK, link="one/kept"),
            member("hard", content=b"escaped"),
        ],
        "a link that becomes another": [
            member("in", DIRECTORY), member("way", SYMLINK, link="in"), member("way", SYMLINK, link=outside),
            member("way/file", content=b"escaped"),
        ],
        "a directory whose link is replaced below it": [
            member("deep", DIRECTORY), member("deep/self", SYMLINK, link="."),
            member("deep/self/way", SYMLINK, link=up), member("deep/way/file", content=b"escaped"),
        ],
        "links that climb step by step": [
            *(member("/".join(["s"] * (count + 1)), SYMLINK, link="..") for count in range(8)),
            member("s/" * 8 + outside[1:] + "/file", content=b"escaped"),
        ],
        "the parent through the root itself": [
            member("here", SYMLINK, link="."), member("up", SYMLINK, link="here/.."),
            member("up/outside/file", content=b"escaped"),
        ],
        "longer than any path": longest(),
    }  # fmt: skip


@pytest.mark.parametrize("name", chains("/x"))
def test_a_chain_of_links_ends_inside(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    os.utime(outside / "kept", (1, 1))
    try:
        unpack(tmp_path / "root", *chains(str(outside))[name])
    except (Invalid, OSError):
        pass  # refused: also inside
    assert os.listdir(outside) == ["kept"] and (outside / "kept").read_text() == "kept"
    assert (outside / "kept").stat().st_nlink == 1 and (outside / "kept").stat().st_mtime == 1
    assert sorted(os.listdir(tmp_path)) == ["outside", "root"]
