"""Every word that a mount may have, seen by the kernel's own account of the mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka.errors import Invalid, MamushkaError, Unsupported
from mamushka.linux.mount import MNT_DETACH, mount, umount2
from mamushka.spec.runtime import Device, IDMapping, Mount
from mamushka.values import replace
from tests import peers

from .conftest import Ground

pytestmark = [pytest.mark.root, pytest.mark.lab]

IDS = (IDMapping(1000, 5000, 1),)


def mounts(text: str) -> dict[str, tuple[set[str], set[str], set[str]]]:
    """By place: options of the mount, tags of its propagation, options of its filesystem. proc_pid_mountinfo(5)."""
    found = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        found[fields[4]] = (set(fields[5].split(",")), {*fields[6:]}, set(right.split(" ")[2].split(",")))
    return found


def seen(ground: Ground, *given: Mount) -> dict[str, tuple[set[str], set[str], set[str]]]:
    return mounts(ground.output(ground.config("cat /proc/self/mountinfo", mounts=given)))


@pytest.fixture
def tree(tmp_path: Any) -> Iterator[str]:
    """A mount with a mount in it."""
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    outer.mkdir()
    mount(b"outer", os.fsencode(outer), b"tmpfs", 0, None)
    inner.mkdir()
    mount(b"inner", os.fsencode(inner), b"tmpfs", 0, None)
    (outer / "file").write_text("")
    (inner / "file").write_text("")
    os.chown(outer / "file", 1000, 1000)
    os.chown(inner / "file", 1000, 1000)
    try:
        yield str(outer)
    finally:
        umount2(os.fsencode(outer), MNT_DETACH)


# word: (what is in the options then, what is not)
WORDS = {
    "ro": ("ro", "rw"), "rw": ("rw", "ro"), "nosuid": ("nosuid", ""), "suid": ("", "nosuid"), "nodev": ("nodev", ""),
    "dev": ("", "nodev"), "noexec": ("noexec", ""), "exec": ("", "noexec"), "nodiratime": ("nodiratime", ""),
    "diratime": ("", "nodiratime"), "noatime": ("noatime", "relatime"), "atime": ("relatime", "noatime"),
    "relatime": ("relatime", "noatime"), "norelatime": ("", "noatime"), "strictatime": ("", "relatime"),
    "nostrictatime": ("relatime", ""), "nosymfollow": ("nosymfollow", ""), "symfollow": ("", "nosymfollow"),
}  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_attributes_of_one_mount_and_of_a_whole_tree(ground: Ground, tree: str, word: str) -> None:
    opposite = {"suid": "nosuid", "dev": "nodev", "exec": "noexec", "rw": "ro", "diratime": "nodiratime",
                "symfollow": "nosymfollow", "atime": "noatime", "relatime": "strictatime",
                "nostrictatime": "strictatime"}.get(word)  # fmt: skip
    before = (opposite,) if opposite else ()
    found = seen(
        ground,
        Mount("/own", "tmpfs", "t", (*before, word)),
        Mount("/one", "none", tree, ("rbind", *before, word)),
        Mount("/all", "none", tree, ("rbind", *(f"r{other}" for other in before), f"r{word}")),
    )
    there, absent = WORDS[word]
    for place in ("/own", "/one", "/all", "/all/inner"):
        options = found[place][0]
        assert not there or there in options, (place, options)
        assert not absent or absent not in options, (place, options)
    if there in ("ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"):
        assert there not in found["/one/inner"][0], "without an r only the topmost mount changes"


@pytest.mark.parametrize(
    ("word", "tags"),
    [
        ("private", set()), ("rprivate", set()), ("shared", {"shared"}), ("rshared", {"shared"}),
        ("unbindable", {"unbindable"}), ("runbindable", {"unbindable"}), ("slave", set()), ("rslave", set()),
    ],
)  # fmt: skip
def test_propagation(ground: Ground, tree: str, word: str, tags: set[str]) -> None:
    found = seen(ground, Mount("/x", "none", tree, ("rbind", word)))
    assert {tag.partition(":")[0] for tag in found["/x"][1]} == tags
    if word.startswith("r"):
        assert {tag.partition(":")[0] for tag in found["/x/inner"][1]} == tags


def test_what_the_host_mounts_later_reaches_a_slave(ground: Ground, tree: str) -> None:
    """And what is mounted inside does not reach the host."""
    mount(None, os.fsencode(tree), None, 1 << 20, None)  # MS_SHARED
    config = ground.config("sleep 60", mounts=(Mount("/x", "none", tree, ("rbind", "rslave")),), capabilities=None)
    config = replace(config, linux=replace(config.linux, seccomp=None))
    ground.start(config)
    os.mkdir(f"{tree}/late")
    mount(b"late", os.fsencode(f"{tree}/late"), b"tmpfs", 0, None)
    assert "/x/late" in ground.exec("cat /proc/self/mounts")[1]


@pytest.mark.parametrize("word", ["sync", "dirsync", "lazytime"])
def test_flags_of_a_filesystem(ground: Ground, word: str) -> None:
    assert word in seen(ground, Mount("/x", "tmpfs", "t", (word,)))["/x"][2]


@pytest.mark.parametrize(
    "word", ["defaults", "async", "nomand", "nolazytime", "noiversion", "silent", "loud", "nofail", "_netdev"]
)
def test_words_for_what_is_so_anyhow(ground: Ground, word: str) -> None:
    assert "/x" in seen(ground, Mount("/x", "tmpfs", "t", (word, "size=1m")))


def test_a_remount_changes_what_is_there(ground: Ground, tree: str) -> None:
    found = seen(
        ground,
        Mount("/x", "none", tree, ("rbind", "ro", "noexec")),
        Mount("/x", "", "", ("remount", "rw", "nosuid")),
        Mount("/dev/shm", "", "", ("remount", "bind", "ro")),
    )
    assert {"rw", "nosuid", "noexec"} <= found["/x"][0] and "ro" in found["/dev/shm"][0]
    with pytest.raises(Unsupported, match="more than a mount's own attributes"):
        seen(ground, Mount("/dev/shm", "", "", ("remount", "size=1m")))
    with pytest.raises(MamushkaError, match="remount"):
        seen(ground, Mount("/nowhere", "", "", ("remount", "ro")))


@pytest.mark.parametrize(("word", "inside"), [("idmap", "1000"), ("ridmap", "5000")])
def test_ids_are_mapped_for_one_mount_or_for_all(ground: Ground, tree: str, word: str, inside: str) -> None:
    given = (Mount("/x", "none", tree, ("rbind", word), IDS, IDS),)
    try:
        text = ground.output(ground.config("stat -c %u /x/file /x/inner/file", mounts=given))
    except Unsupported:
        pytest.skip("a kernel whose tmpfs maps no ids (before Linux 6.3)")
    assert text.split() == ["5000", inside]


def test_a_mapping_that_is_nowhere(ground: Ground, tree: str) -> None:
    with pytest.raises(Invalid, match="map ids"):
        seen(ground, Mount("/x", "none", tree, ("rbind", "idmap")))


@pytest.mark.parametrize("word", ["slave", "private", "shared", "unbindable", "rslave", "rshared"])
def test_the_propagation_of_the_root(ground: Ground, word: str) -> None:
    """Whatever it is, nothing that is mounted inside is seen by the host."""
    config = ground.config("cat /proc/self/mountinfo", linux={"rootfs_propagation": word})
    tags = {tag.partition(":")[0] for tag in mounts(ground.output(config))["/"][1]}
    plain = word.removeprefix("r") if word != "r" else word
    assert tags == {"shared": {"shared"}, "unbindable": {"unbindable"}}.get(plain, set())
    with pytest.raises(Invalid, match="no propagation"):
        ground.run(ground.config("true", linux={"rootfs_propagation": "sideways"}))


def test_a_slave_root_is_told_of_what_the_host_mounts_in_it(ground: Ground) -> None:
    peers.need("busybox")
    root = os.fsencode(ground.rootfs)
    os.mkdir(f"{ground.rootfs}/late")
    mount(root, root, None, 4096, None)  # MS_BIND
    try:
        mount(None, root, None, 1 << 20, None)  # MS_SHARED
        ground.start(ground.config("sleep 60", linux={"rootfs_propagation": "slave"}))
        mount(b"late", root + b"/late", b"tmpfs", 0, None)
        assert " /late tmpfs " in ground.exec("cat /proc/self/mounts")[1]
        assert any(tag.startswith("master:") for tag in mounts(ground.exec("cat /proc/self/mountinfo")[1])["/"][1])
    finally:
        umount2(root, MNT_DETACH)


def test_every_kind_of_device(ground: Ground) -> None:
    devices = (
        Device("/dev/c", "c", 1, 3), Device("/srv/u", "u", 1, 5, 0o600, 3, 4), Device("/dev/b", "b", 7, 0, 0o640),
        Device("/tmp/fifo", "p", file_mode=0o622),
    )  # fmt: skip
    script = "stat -c '%n %F %t %T %a %u %g' /dev/c /srv/u /dev/b /tmp/fifo"
    assert ground.output(ground.config(script, linux={"devices": devices})).splitlines() == [
        "/dev/c character special file 1 3 666 0 0",
        "/srv/u character special file 1 5 600 3 4",
        "/dev/b block special file 7 0 640 0 0",
        "/tmp/fifo fifo 0 0 622 0 0",
    ]


def test_a_place_that_is_taken_by_something_else(ground: Ground) -> None:
    with pytest.raises(MamushkaError, match="no such device"):
        ground.run(ground.config("true", linux={"devices": (Device("/bin/busybox", "c", 1, 3),)}))
    with pytest.raises(Invalid, match="cannot be made"):
        ground.run(ground.config("true", linux={"devices": (Device("/dev/x", "x", 1, 3),)}))
