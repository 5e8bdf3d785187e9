"""Layers as memory: EROFS images that a stock kernel mounts with DAX out of e820 ranges, without any device.

A whole Linux in a machine of ours, so only where /dev/kvm runs one: in the lab, a guest inside of a guest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mamushka.machine.memory import PMEM
from mamushka.storage import erofs
from tests.integration.machine.linux_guest import Guest, linux, needs_linux

pytestmark = [pytest.mark.root, *needs_linux]

# Files that the guest reads: their digests, whether they are mapped (DAX), and what its own page cache took meanwhile.
SCRIPT = """mkdir -p /0 /1 /o
i=0; while [ ! -b /dev/pmem{last} ] && [ $i -lt 50 ]; do i=$((i+1)); sleep 0.1; done
[ -b /dev/pmem{last} ] || { cat /proc/iomem; ls /sys/bus/nd/devices; }
{work}
echo "says: end"
"""


def told_by(text: str) -> dict[str, str]:
    """What the script told, by its first word."""
    lines = text.splitlines()
    told = [line.partition("says: ")[2].partition(" ") for line in lines if "says: " in line]
    return {key: rest for key, _, rest in told}


def image(tree: Path, path: Path) -> int:
    """An open image of a tree."""
    root = os.open(tree, os.O_RDONLY)
    out = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    erofs.write(root, out, bytes(16))
    os.close(root)
    return out


@contextmanager
def layers(images: Sequence[int], work: str) -> Iterator[Guest]:
    """A started guest whose /dev/pmem0, 1, … are the images."""
    script = SCRIPT.replace("{work}", work).replace("{last}", str(len(images) - 1))
    with linux(script, modules=("nd_e820", "nd_pmem", "erofs", "overlay")) as guest:
        for fd in images:
            guest.board.pmem(os.dup(fd), os.fstat(fd).st_size)
        guest.start()
        yield guest
        print(guest.said)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_layers_are_mapped_stacked_and_equal(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "hidden").mkdir(parents=True)
    (lower / "hidden/below").write_text("below")
    (lower / "gone").write_text("gone")
    (lower / "large").write_bytes(os.urandom(24 << 20))
    (lower / "small").write_bytes(b"small")
    with open(lower / "sparse", "wb") as file:
        file.write(os.urandom(70_000))
        file.truncate(5 << 20)
    (upper / "hidden").mkdir(parents=True)
    (upper / "hidden/above").write_text("above")
    os.setxattr(upper / "hidden", "trusted.overlay.opaque", b"y")
    os.mknod(upper / "gone", 0o020000, 0)
    images = [image(lower, tmp_path / "0"), image(upper, tmp_path / "1")]
    work = """
        mount -t erofs -o ro,dax=always /dev/pmem0 /0 && mount -t erofs -o ro,dax=always /dev/pmem1 /1
        mount -t overlay -o ro,lowerdir=/1:/0 overlay /o
        echo "says: mounts $(grep -c dax=always /proc/mounts)"
        cached() { sed -n 's/^Cached: *//p' /proc/meminfo; }
        before=$(cached)
        for file in large small sparse; do set -- $(sha256sum /o/$file); echo "says: $file $1"; done
        echo "says: cached $before $(cached)"
        echo "says: names $(ls /o /o/hidden | tr '\\n' ' ')"
    """
    with layers(images, work) as guest:
        told = told_by(guest.finish(240))
    assert "end" in told
    assert told["mounts"] == "2"
    assert [told[name] for name in ("large", "small", "sparse")] == [
        digest(lower / name) for name in ("large", "small", "sparse")
    ]
    assert told["names"].split() == ["/o:", "hidden", "large", "small", "sparse", "/o/hidden:", "above"]
    before, after = (int(text) for text in told["cached"].split() if text.isdigit())
    assert after - before < 4096, "24 MiB were read, and the guest's own page cache has none of them"


def test_two_machines_share_the_hosts_pages(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/large").write_bytes(os.urandom(24 << 20))
    shared = image(tmp_path / "tree", tmp_path / "image")
    work = """
        mount -t erofs -o ro,dax=always /dev/pmem0 /0
        echo "says: large $(sha256sum /0/large)"
    """
    found = []
    with layers([shared], work) as one, layers([shared], work) as two:
        for guest in (one, two):
            assert told_by(guest.finish(400))["large"].startswith(digest(tmp_path / "tree/large"))
        for guest in (one, two):
            region = next(item for item in guest.machine.memory if item.kind == PMEM)
            found.append(resident(region.hva))
    for rows in found:
        assert rows["Rss"] >= 24 << 10, "all that was read is mapped"
        assert rows["Private_Dirty"] == 0 and rows["Anonymous"] == 0, "none of it is a copy"
        assert rows["Pss"] <= rows["Rss"] * 0.55, "and each pays half"


def resident(address: int) -> dict[str, int]:
    """Kilobytes of the mapping that begins at an address. proc(5), smaps."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            rows = (next(lines).split() for _ in range(20))
            return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) == 3}
    raise AssertionError(f"nothing is mapped at {address:#x}")
