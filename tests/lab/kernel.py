"""Debian's cloud kernel: fetched as a package and unpacked, never installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import NamedTuple

META = "linux-image-cloud-amd64"


class Unavailable(RuntimeError):
    """The kernel's package cannot be had here: no archive, or none that answers."""


class Kernel(NamedTuple):
    """An unpacked kernel: its image, and its directory of modules."""

    image: str
    modules: str


def kernel(cache: str) -> Kernel:
    """The kernel, from the cache or from Debian's archive; or Unavailable."""
    ready = f"{cache}/kernel"
    if not os.path.isdir(ready):
        for program in ("apt-get", "apt-cache", "dpkg-deb", "depmod"):
            if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
                raise Unavailable(f"the lab needs {program}: Debian or Ubuntu with kmod")
        _fetch(cache, ready)
    (version,) = os.listdir(f"{ready}/lib/modules")
    return Kernel(f"{ready}/boot/vmlinuz-{version}", f"{ready}/lib/modules/{version}")


def _fetch(cache: str, ready: str) -> None:
    staged = f"{cache}/new.{os.getpid()}"
    os.makedirs(staged)
    try:
        package = _package() or _package(update=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=staged, check=True, stderr=subprocess.DEVNULL)
        (archive,) = os.listdir(staged)
        subprocess.run(["dpkg-deb", "-x", archive, "tree"], cwd=staged, check=True)
        (version,) = os.listdir(f"{staged}/tree/lib/modules")
        depmod = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin") or "depmod"
        subprocess.run([depmod, "-b", f"{staged}/tree", version], check=True)
        os.rename(f"{staged}/tree", ready)
    except (subprocess.CalledProcessError, ValueError) as error:
        raise Unavailable(f"the kernel for the lab cannot be had: {error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _package(*, update: bool = False) -> str:
    """The newest kernel's package; empty where nothing is known of any."""
    if update:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
    depends = subprocess.run(["apt-cache", "depends", META], capture_output=True, text=True, check=False).stdout
    return next((line.split()[-1] for line in depends.splitlines() if "Depends:" in line), "")


def default_cache() -> str:
    """Beside the environment that runs the tests, so that it goes with it."""
    path = f"{sys.prefix}/lab"
    os.makedirs(path, exist_ok=True)
    return path
