"""Small images made by other people's tools: what Debian's busybox-static and umoci yield, we must run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests import peers

Change = Callable[[str], None]

# Few, because umoci reads a file once for each of its names.
HARD_LINKED = ("cat", "echo", "sh", "true")


class Layout(NamedTuple):
    """An image in an OCI layout directory."""

    path: str
    tag: str

    @property
    def skopeo(self) -> str:
        """As skopeo names it."""
        return f"oci:{self.path}:{self.tag}"

    @property
    def umoci(self) -> str:
        """As umoci names it."""
        return f"{self.path}:{self.tag}"


def build(directory: str, tag: str, changes: Sequence[Change], configuration: Sequence[str] = ()) -> Layout:
    """An image with one layer per change; each change gets the root filesystem as the layers below left it."""
    peers.need("umoci")
    image = Layout(os.path.join(directory, "layout"), tag)
    if not os.path.exists(image.path):
        peers.run("umoci", "init", "--layout", image.path)
    peers.run("umoci", "new", "--image", image.umoci)
    for number, change in enumerate(changes):
        bundle = os.path.join(directory, f"{tag}-{number}")
        peers.run("umoci", "unpack", "--image", image.umoci, bundle)
        change(os.path.join(bundle, "rootfs"))
        peers.run("umoci", "repack", "--image", image.umoci, bundle)
        shutil.rmtree(bundle)
    if configuration:
        peers.run("umoci", "config", "--image", image.umoci, *configuration)
    return image


def busybox(directory: str) -> Layout:
    """One layer: a static busybox with its applets, a user and a group of its own."""
    return build(
        directory,
        "busybox",
        [add_busybox],
        ["--config.cmd", "sh", "--config.env", "PATH=/usr/bin:/bin", "--config.label", "org.example.made-by=umoci"],
    )


def layered(directory: str) -> Layout:
    """Five layers with everything a layer can say: whiteouts, opaque directories, hard links, xattrs, nodes."""
    return build(
        directory,
        "layered",
        [add_busybox, _add_tree, _remove_some, _replace_directory, _add_privileges],
        ["--config.entrypoint", "/bin/echo", "--config.cmd", "from the image", "--config.workingdir", "/work"],
    )


def add_busybox(root: str) -> None:
    """A root filesystem in which a shell, and little else, runs."""
    peers.need("busybox")
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "home", "usr/bin"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    os.chmod(os.path.join(root, "tmp"), 0o1777)
    program = os.path.join(root, "bin/busybox")
    shutil.copyfile(peers.find("busybox"), program)
    os.chmod(program, 0o755)
    for applet in peers.run("busybox", "--list").decode().split():
        if applet in HARD_LINKED:
            os.link(program, os.path.join(root, "bin", applet))
        elif applet != "busybox":
            os.symlink("busybox", os.path.join(root, "bin", applet))
    _write(root, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nada:x:1815:1815:Ada:/home/ada:/bin/sh\n")
    _write(root, "etc/group", "root:x:0:\nada:x:1815:\nanalysts:x:1842:ada\n")


def _add_tree(root: str) -> None:
    for name in ("work/keep", "work/drop", "work/old/a", "work/old/b", "work/deep/er/still/here"):
        _write(root, name, f"{name}\n")
    os.link(os.path.join(root, "work/keep"), os.path.join(root, "work/keep-too"))
    os.symlink("keep", os.path.join(root, "work/to-keep"))
    os.symlink("/work/keep", os.path.join(root, "work/to-keep-absolute"))
    os.symlink("/nowhere", os.path.join(root, "work/dangling"))
    os.mkfifo(os.path.join(root, "work/fifo"))
    _write(root, "work/" + "long/" * 30 + "n" * 120, "a name that needs an extended header\n")
    _write(root, "work/naïve-ünïcode", "utf-8\n")
    with open(os.path.join(root, "work/sparse"), "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"an island")


def _remove_some(root: str) -> None:
    os.unlink(os.path.join(root, "work/drop"))
    shutil.rmtree(os.path.join(root, "work/deep"))


def _replace_directory(root: str) -> None:
    shutil.rmtree(os.path.join(root, "work/old"))
    _write(root, "work/old/c", "what was below is gone\n")


def _add_privileges(root: str) -> None:
    _write(root, "work/set-user-id", "#!/bin/sh\n")
    os.chmod(os.path.join(root, "work/set-user-id"), 0o4755)
    _write(root, "work/owned", "by somebody\n")
    os.chown(os.path.join(root, "work/owned"), 1815, 1842)
    os.utime(os.path.join(root, "work/owned"), ns=(10**18 + 123456789, 10**18 + 123456789))
    os.setxattr(os.path.join(root, "work/owned"), "user.mamushka", b"an attribute\0of bytes")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # version 2: cap_net_raw=ep
    shutil.copyfile(peers.find("busybox"), os.path.join(root, "work/capable"))
    os.chmod(os.path.join(root, "work/capable"), 0o755)
    os.setxattr(os.path.join(root, "work/capable"), "security.capability", capability)


def _write(root: str, name: str, text: str) -> None:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
