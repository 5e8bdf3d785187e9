"""Mounts, masks, devices; and every way in which a hostile root would like them to land on the host."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mamushka.errors import Invalid, MamushkaError, NotFound
from mamushka.runtime import Stdio
from mamushka.spec.runtime import Device, IDMapping, Mount, Root
from mamushka.values import replace

from .conftest import Ground

pytestmark = [pytest.mark.root, pytest.mark.lab]


def options(text: str, destination: str) -> set[str]:
    """The options of the last mount at a destination, by /proc/mounts."""
    lines = [line.split() for line in text.splitlines()]
    return set(next(line[3] for line in reversed(lines) if line[1] == destination).split(","))


def test_the_default_filesystems(ground: Ground) -> None:
    text = ground.output(ground.config("cat /proc/mounts"))
    assert {"nosuid", "noexec", "nodev"} <= options(text, "/proc")
    assert {"ro", "nosuid", "noexec", "nodev"} <= options(text, "/sys")
    assert {"mode=755", "size=65536k", "nosuid"} <= options(text, "/dev")
    assert {"gid=5", "mode=620", "ptmxmode=666"} <= options(text, "/dev/pts")
    assert "mqueue /dev/mqueue mqueue" in text
    assert not any(line.startswith("/") and " / " not in line for line in text.splitlines()), "a mount of the host's"


def test_only_the_containers_processes_are_seen(ground: Ground) -> None:
    assert ground.output(ground.config("echo /proc/[0-9]*")).split() == ["/proc/1"]


def test_devices_and_links(ground: Ground) -> None:
    device = Device("/dev/deep/fuse", "c", 10, 229, 0o640, 7, 8)
    script = (
        "stat -c '%F %t %T %a %u %g' /dev/null /dev/deep/fuse; readlink /dev/fd; readlink /dev/ptmx; "
        "echo x > /dev/full || echo full"
    )
    lines = ground.output(ground.config(script, linux={"devices": (device,)})).splitlines()
    assert lines[0] == "character special file 1 3 666 0 0"
    assert lines[1] == "character special file a e5 640 7 8"
    assert lines[2:4] == ["/proc/self/fd", "pts/ptmx"]
    assert lines[-1] == "full"


def test_masked_and_read_only_paths(ground: Ground) -> None:
    script = (
        "cat /proc/kcore | echo kcore $?; ls -A /sys/firmware | echo firmware; ls -A /proc/acpi /sys/firmware; "
        "echo 1 > /proc/sys/kernel/panic; touch /sys/x; echo alive"
    )
    code, text = ground.run(ground.config(script))
    assert code == 0
    assert "/proc/sys/kernel/panic: Read-only file system" in text and "/sys/x: Read-only file system" in text
    assert text.strip().endswith("alive")


def test_a_read_only_root(ground: Ground) -> None:
    config = ground.config("touch /x; touch /dev/shm/x && echo shm")
    _, text = ground.run(replace(config, root=Root(ground.rootfs, readonly=True)))
    assert "Read-only file system" in text and "shm" in text
    assert not os.path.exists(f"{ground.rootfs}/x")


def test_bind_mounts(ground: Ground, tmp_path: Any) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("content")
    (tmp_path / "one").write_text("single")
    mounts = (
        Mount("/made/on/the/way", "bind", str(tmp_path / "data"), ("rbind", "ro", "nosuid")),
        Mount("/etc/one", "bind", "one", ("bind",)),
    )
    script = "cat /made/on/the/way/file /etc/one; touch /made/on/the/way/x; echo more >> /etc/one"
    _, text = ground.run(ground.config(script, mounts=mounts))
    assert text.startswith("contentsingle") and "Read-only" in text
    assert (tmp_path / "one").read_text() == "singlemore\n"


def test_recursive_read_only(ground: Ground, tmp_path: Any) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    os.system(f"mount -t tmpfs none {tmp_path}/outer/inner")
    try:
        mounts = (
            Mount("/shallow", "bind", str(tmp_path / "outer"), ("rbind", "ro")),
            Mount("/deep", "bind", str(tmp_path / "outer"), ("rbind", "rro")),
        )
        _, text = ground.run(ground.config("touch /shallow/inner/a && echo ok; touch /deep/inner/b", mounts=mounts))
    finally:
        os.system(f"umount {tmp_path}/outer/inner")
    assert "ok" in text and "/deep/inner/b: Read-only" in text


def test_what_is_mounted_inside_stays_inside(ground: Ground, tmp_path: Any) -> None:
    (tmp_path / "shared").mkdir()
    mounts = (Mount("/shared", "bind", str(tmp_path / "shared"), ("rbind", "rprivate")),)
    config = ground.config("mount -t tmpfs none /shared && touch /shared/inside && echo ok", mounts=mounts)
    process = replace(config.process, capabilities=None, no_new_privileges=False)
    config = replace(config, process=process, linux=replace(config.linux, seccomp=None))
    assert "ok" in ground.output(config)
    assert not os.listdir(tmp_path / "shared")


def test_tmpfs_with_a_copy_of_what_is_there(ground: Ground) -> None:
    os.makedirs(f"{ground.rootfs}/srv/deep")
    with open(f"{ground.rootfs}/srv/deep/file", "w") as file:
        file.write("kept")
    os.chown(f"{ground.rootfs}/srv/deep", 12, 34)
    os.symlink("deep/file", f"{ground.rootfs}/srv/link")
    mounts = (Mount("/srv", "tmpfs", "tmpfs", ("tmpcopyup", "size=1m", "ro")),)
    script = "cat /srv/link; stat -c ' %u %g' /srv/deep; touch /srv/x"
    _, text = ground.run(ground.config(script, mounts=mounts))
    assert text.startswith("kept 12 34") and "Read-only" in text


def test_mapped_ids(ground: Ground, tmp_path: Any) -> None:
    (tmp_path / "owned").write_text("")
    os.chown(tmp_path / "owned", 1000, 1000)
    ids = (IDMapping(1000, 5000, 1),)
    mounts = (Mount("/owned", "bind", str(tmp_path / "owned"), ("bind",), ids, ids),)
    assert ground.output(ground.config("stat -c '%u %g' /owned", mounts=mounts)).split() == ["5000", "5000"]


@pytest.mark.parametrize(
    ("mount", "kind", "message"),
    [
        (Mount("/x", "bind", "/nowhere/at/all", ("bind",)), NotFound, "/nowhere/at/all"),
        (Mount("/x", "", "a"), Invalid, "neither a type nor the option bind"),
        (Mount("/x", "tmpfs", "t", ("size=many",)), MamushkaError, "size"),
        (Mount("/x", "nosuchfs", "t"), MamushkaError, "nosuchfs"),
        (Mount("/x", "bind", "/tmp", ("bind", "uid=3")), Invalid, "uid=3"),
        (Mount("", "tmpfs", "t"), Invalid, "empty destination"),
    ],
)
def test_wrong_mounts_are_named_and_leave_nothing(
    ground: Ground, mount: Mount, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ground.run(ground.config("true", mounts=(mount,)))
    assert os.listdir(ground.state) == []


# What a hostile root tries


def test_a_dev_that_is_a_link_stays_inside(ground: Ground, tmp_path: Any) -> None:
    """CVE-2026-41579: device set-up through the image's own link would land on the host."""
    target = tmp_path / "outside"
    target.mkdir()
    os.symlink(str(target), f"{ground.rootfs}/dev")
    config = ground.config("true")
    bare = replace(config, mounts=tuple(mount for mount in config.mounts if not mount.destination.startswith("/dev")))
    with pytest.raises(MamushkaError):
        ground.run(bare)
    assert os.listdir(target) == []
    os.makedirs(ground.rootfs + str(target))
    ground.run(bare)
    assert os.listdir(target) == []
    assert "null" in os.listdir(ground.rootfs + str(target))


@pytest.mark.parametrize("link", ["/", "../../../../..", "/proc/self/root"])
def test_a_mount_target_through_a_link_stays_inside(ground: Ground, tmp_path: Any, link: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "f").write_text("x")
    os.symlink(link, f"{ground.rootfs}/way")
    place = f"/mamushka-{ground.name}"
    mounts = (Mount(f"/way{place}", "bind", str(tmp_path / "data"), ("bind",)),)
    try:
        assert "f" in ground.output(ground.config(f"ls {place}", mounts=mounts))
    except MamushkaError:
        pass  # a link of procfs is refused
    assert not os.path.exists(place)


def test_masks_do_not_trust_the_images_null(ground: Ground) -> None:
    """CVE-2025-31133: what masks must be the null device, whatever lies at its name."""
    config = ground.config("true")
    mounts = tuple(mount for mount in config.mounts if mount.destination != "/dev")
    os.makedirs(f"{ground.rootfs}/dev")
    os.symlink("/proc/sys/kernel/core_pattern", f"{ground.rootfs}/dev/null")
    with pytest.raises(MamushkaError, match="dev"):
        ground.run(replace(config, mounts=mounts))


def test_the_console_is_not_found_by_path(ground: Ground) -> None:
    """CVE-2025-52565: /dev/console as a link must not decide what the terminal is mounted on."""
    config = ground.config("tty; ls -l /dev/console", terminal=True)
    mounts = tuple(mount for mount in config.mounts if mount.destination != "/dev")
    os.makedirs(f"{ground.rootfs}/dev/pts")
    os.symlink("/proc/sysrq-trigger", f"{ground.rootfs}/dev/console")
    try:
        ground.start(replace(config, mounts=mounts))
    except MamushkaError:
        return
    assert not os.path.exists("/proc/sysrq-trigger/x")


def test_a_fake_procfs_is_not_written_to(ground: Ground) -> None:
    """CVE-2025-52881: a sysctl goes to the procfs that we mounted, or nowhere."""
    os.makedirs(f"{ground.rootfs}/proc/sys/net/ipv4")
    with open(f"{ground.rootfs}/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("fake")
    config = ground.config(
        "true", linux={"sysctl": {"net.ipv4.ip_forward": "1"}, "masked_paths": (), "readonly_paths": ()}
    )
    with pytest.raises(MamushkaError, match="proc"):
        ground.run(replace(config, mounts=tuple(mount for mount in config.mounts if mount.type != "proc")))
    with open(f"{ground.rootfs}/proc/sys/net/ipv4/ip_forward") as file:
        assert file.read() == "fake"


def test_without_pivot_root(ground: Ground) -> None:
    config = ground.config("sleep 60")
    ground.made.append(ground.runtime.run(ground.name, ground.bundle(config), Stdio(), no_pivot=True))
    code, text = ground.exec("ls /; readlink /proc/1/exe")
    assert code == 0 and "boot" not in text.split() and "/bin/busybox" in text
