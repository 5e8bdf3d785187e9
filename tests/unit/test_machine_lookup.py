"""A program that is certainly not in a root is refused before there is a guest; whatever may be there is let pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mamushka.machine.lookup import candidates, check
from mamushka.runtime import Bundle, CommandNotFound, Disks, Image
from mamushka.spec.runtime import Config, Hook, Hooks, Mount, Process, Root

NONE = Disks()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A bundle's directory with a root."""
    (tmp_path / "rootfs/usr/bin").mkdir(parents=True)
    (tmp_path / "rootfs/bin").symlink_to("/usr/bin")
    (tmp_path / "rootfs/usr/bin/there").write_text("")
    (tmp_path / "rootfs/usr/bin/link").symlink_to("/volume/elsewhere")
    (tmp_path / "file").write_text("")
    return tmp_path


def bundle(place: Path, *words: str, mounts: tuple[Mount, ...] = (), disks: Disks = NONE, **more: object) -> Bundle:
    process = Process(args=words, env=("PATH=/sbin:/bin",), cwd="/usr")
    config = Config("1.0.0", process=process, root=Root("rootfs"), mounts=mounts, **more)  # type: ignore[arg-type]
    return Bundle(str(place), config, disks)


@pytest.mark.parametrize("name", ["there", "/bin/there", "bin/there", "link", "/usr/../bin/there"])
def test_what_is_there_passes(place: Path, name: str) -> None:
    check(bundle(place, name), -1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nope", r'exec: "nope": executable file not found in \$PATH'),
        ("/bin/nope", "stat /bin/nope: no such file or directory"),
        ("./there", "no such file or directory"),
        ("/nowhere/there", "no such file or directory"),
    ],
)
def test_what_is_missing_is_called_as_other_engines_read_it(place: Path, name: str, said: str) -> None:
    with pytest.raises(CommandNotFound, match=said):
        check(bundle(place, name), -1)
    root = os.open(place / "rootfs", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(CommandNotFound, match=said):
            check(bundle(place, name), root)
        os.fstat(root)  # it stays the caller's
    finally:
        os.close(root)


@pytest.mark.parametrize(
    ("mount", "passes"),
    [
        (Mount("/proc", "proc", "proc"), False),
        (Mount("/dev/shm", "tmpfs", "shm"), False),
        (Mount("/etc/hosts", "bind", "file", ("bind",)), False),
        (Mount("/usr/bin/nope", "bind", "file", ("bind",)), True),
        (Mount("/opt", "bind", "rootfs", ("rbind",)), True),
        (Mount("/opt", "bind", "absent", ("rbind",)), True),
        (Mount("/t", "tmpfs", "tmpfs"), True),
    ],
)
def test_what_a_mount_may_show_is_not_judged(place: Path, mount: Mount, passes: bool) -> None:
    given = bundle(place, "nope", mounts=(mount,))
    if passes:
        check(given, -1)
    else:
        with pytest.raises(CommandNotFound):
            check(given, -1)


def test_what_is_not_seen_from_here_is_not_judged(place: Path) -> None:
    check(bundle(place, "nope", disks=Disks((Image("/image", True),))), -1)
    check(bundle(place, "nope", hooks=Hooks(prestart=(Hook("/bin/true"),))), -1)
    check(bundle(place / "elsewhere", "nope"), -1)


def test_where_it_looks() -> None:
    process = Process(args=("x",), env=("PATH=/a::b",), cwd="/c")
    assert candidates(process) == ["/a/x", "/c/x", "/c/b/x"]
    assert candidates(Process(args=("x",)))[0] == "/usr/local/sbin/x"
    assert candidates(Process(args=("./x",), cwd="/c")) == ["/c/./x"]
