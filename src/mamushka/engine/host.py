"""The reserved image ``host``: a root that shows this machine's programs and nothing of its users.

Its layer is a directory of links, empty directories and a few small files; the programs are bind mounts on top,
read-only and without set-user-id. Of /etc only what programs need to find libraries, names of protocols, certificates
and the time is visible, one by one; accounts are reduced to those of the system, no password, key or configuration of
a service is there. /home, /root, /tmp, /var and /run are fresh and the workload's own.
"""

from __future__ import annotations

import os
import stat

from mamushka.errors import Unsupported
from mamushka.spec.runtime import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.engine.images import ImageSummary

NAME = "host"
ID = "host"

_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "debian_version", "gai.conf", "host.conf",
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "locale.alias", "locale.conf", "locale.gen",
    "login.defs", "lsb-release", "magic", "mime.types", "networks", "nsswitch.conf", "os-release", "pki/ca-trust",
    "pki/tls/certs", "protocols", "redhat-release", "rpc", "services", "shells", "ssl/certs",
    "ssl/openssl.cnf", "terminfo", "timezone", "xattr.conf",
)  # fmt: skip
_FRESH = (
    "dev",
    "etc",
    "home",
    "mnt",
    "opt",
    "proc",
    "run",
    "srv",
    "sys",
    "var/cache",
    "var/lib",
    "var/log",
    "var/spool",
)
_BIND = ("rbind", "rprivate", "rro", "rnosuid", "rnodev")
# Accounts below this belong to the system, those from it on to people. login.defs(5), UID_MIN.
_PEOPLE = 1000
_NOBODY = 65534


def _check_platform(asked: str) -> None:
    from mamushka.spec import platform

    wanted, own = platform.parse(asked), platform.host()
    if (wanted.os, wanted.architecture) != (own.os, own.architecture):
        raise Unsupported(
            f"the image {NAME} is this machine's, {own}, and not {wanted}",
            hint="leave --platform out, or run an image that was made for that platform",
        )


def image(asked: str = "") -> ImageSummary:
    """What the engine's images answer for the name. Unsupported when ``asked`` is another platform than this one."""
    from mamushka.engine.images import ImageSummary

    if asked:
        _check_platform(asked)
    document = config()
    platform = f"linux/{document['architecture']}"
    return ImageSummary(ID, "", (NAME,), (), 0.0, 0, platform, (), config=document)


def config() -> dict[str, object]:
    """The image configuration document, as if it came from a registry."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": [f"PATH={path}"], "Cmd": ["/bin/sh"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": []},
    }


def mounts() -> list[Mount]:
    """The machine's programs, over the skeleton."""
    found = [path for path in _PROGRAMS if os.path.isdir(path) and not os.path.islink(path)]
    found += [f"/etc/{name}" for name in _ETC if _bindable(f"/etc/{name}")]
    return [Mount(path, "bind", path, _BIND) for path in found]


def _bindable(path: str) -> bool:
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(kind) or stat.S_ISDIR(kind)


def skeleton(directory: str) -> str:
    """The layer below the mounts, made once and anew when the accounts change; its path."""
    path = f"{directory}/{_fingerprint():016x}"
    if not os.path.isdir(path):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        from mamushka.linux.flock import Lock

        with Lock(f"{directory}/{_BUILDING}", shared=True):
            _make(path)
    return path


_BUILDING = "building"  # locked by all who make one, so that what a killed maker left is told from what is being made


def _make(path: str) -> None:
    staged = f"{path}.{os.getpid()}.new"
    _build(staged)
    try:
        os.rename(staged, path)
    except OSError:  # another process was faster, and made the same
        from mamushka.storage.remove import remove

        remove(staged)


def sweep(directory: str) -> None:
    """Remove what was made for accounts and links as they were before; nobody may run on it."""
    from mamushka.linux.flock import Lock
    from mamushka.storage.remove import remove

    if not os.path.isdir(directory):
        return
    try:
        with Lock(f"{directory}/{_BUILDING}", wait=False):
            for name in os.listdir(directory):
                if name not in (f"{_fingerprint():016x}", _BUILDING):
                    remove(f"{directory}/{name}")
    except BlockingIOError:  # one is being made
        return


def _fingerprint() -> int:
    """Changes when something that is copied changes: the version of this file, accounts, links."""
    state: list[object] = [2]
    for path in ("/etc/passwd", "/etc/group", "/etc", "/"):
        status = os.stat(path)
        state += [status.st_mtime_ns, status.st_ino]
    return hash(tuple(state)) & 0xFFFFFFFFFFFFFFFF


def _build(root: str) -> None:
    for name in _FRESH:
        os.makedirs(f"{root}/{name}", exist_ok=True)
    os.chmod(root, 0o755)
    for name, mode in (("root", 0o700), ("tmp", 0o1777), ("var/tmp", 0o1777)):
        os.mkdir(f"{root}/{name}")
        os.chmod(f"{root}/{name}", mode)
    for path in _PROGRAMS:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.mkdir(root + path)
    os.symlink("/run", f"{root}/var/run")
    os.symlink("/run/lock", f"{root}/var/lock")
    for name in _ETC:
        _place(f"/etc/{name}", f"{root}/etc/{name}")
    for name in ("hostname", "hosts", "resolv.conf"):  # to mount on; else each workload makes them in its own top
        _write(f"{root}/etc/{name}", ())
    _write(f"{root}/etc/passwd", _accounts("/etc/passwd", shell=True))
    _write(f"{root}/etc/group", _accounts("/etc/group", shell=False))


def _place(source: str, target: str) -> None:
    """A link as it is; a place to mount on for a file or directory."""
    if not os.path.lexists(source):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    elif os.path.isdir(source):
        os.mkdir(target)
    elif os.path.isfile(source):
        _write(target, ())


def _accounts(path: str, *, shell: bool) -> Iterator[str]:
    """The system's own entries, without passwords, and of groups without members."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(":")
            number = fields[2] if len(fields) >= 4 else ""
            if number.isdecimal() and (int(number) < _PEOPLE or int(number) == _NOBODY):
                fields[1] = "x"
                if not shell:
                    fields[3] = ""
                yield ":".join(fields) + "\n"


def _write(path: str, lines: tuple[str, ...] | Iterator[str]) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(lines)
    os.chmod(path, 0o644)
