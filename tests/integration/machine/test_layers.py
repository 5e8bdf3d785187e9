"""A machine whose kernel puts its root together: layers as mapped images, and a disk for what it writes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mamushka.storage import top
from tests import peers

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow, pytest.mark.usefixtures("machines")]
DISKS = ("--runtime", "vm", "--network", "none", "--annotation", "com.mamushka.machine.root=layers")
APPLETS = "cat cut dd df echo find grep id ls mkdir rm sed sh sha256sum sleep sort stat sync touch true wc xargs"

# Everything of a root but what is mounted over it: type, mode, owner, size but of directories, device, link, content.
LOOK = (
    "cd /; find . -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' ! -path './etc/hosts' "
    "! -path './etc/hostname' ! -path './etc/resolv.conf' | sort | while read -r f; do "
    '[ -d "$f" ] && s="%n %F %f %u %g" || s="%n %F %f %u %g %s %t %T %Y"; stat -c "$s" "$f"; '
    '[ -f "$f" ] && sha256sum < "$f"; done; true'
)


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a layer."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o644, 1_500_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def directory(name: str, mode: int = 0o755, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def link(name: str, to: str, type: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=type, linkname=to)


def base() -> list[tuple[tarfile.TarInfo, bytes]]:
    peers.need("busybox")
    program = Path(peers.find("busybox") or "").read_bytes()
    return [
        *(directory(name) for name in ("bin", "etc", "proc", "sys", "dev", "root", "data", "replaced")),
        directory("tmp", 0o1777),
        member("bin/busybox", program, mode=0o755),
        *(link(f"bin/{name}", "busybox") for name in APPLETS.split()),
        member("etc/passwd", b"root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/data:/bin/sh\n"),
        member("etc/group", b"root:x:0:\n"),
        member("data/gone", b"gone"),
        member("data/stays", b"stays" * 4000, uid=1000, gid=7, mode=0o4751),
        link("data/hard", "data/stays", tarfile.LNKTYPE),
        member("replaced/below", b"below"),
        member("data/fifo", type=tarfile.FIFOTYPE),
    ]


def upper() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        directory("data", 0o2775, gid=1000),
        member("data/.wh.gone"),
        directory("replaced"),
        member("replaced/.wh..wh..opq"),
        member("replaced/above", b"above"),
        member("data/sparse", bytes(3 << 20) + b"end"),
    ]


def image(path: Path, name: str, layers: Sequence[Sequence[tuple[tarfile.TarInfo, bytes]]]) -> str:
    """A docker-archive of these layers, lowest first."""
    ids: list[str] = []
    with tarfile.open(path, "w") as archive:
        for number, entries in enumerate(layers):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as layer:
                for info, content in entries:
                    layer.addfile(info, io.BytesIO(content))
            ids.append(f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}")
            archive.addfile(*_file(f"{number}/layer.tar", packed.getvalue()))
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["true"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ids},
        }
        archive.addfile(*_file("config.json", json.dumps(config).encode()))
        manifest = [
            {
                "Config": "config.json",
                "RepoTags": [f"{name}:latest"],
                "Layers": [f"{number}/layer.tar" for number in range(len(layers))],
            }
        ]
        archive.addfile(*_file("manifest.json", json.dumps(manifest).encode()))
    return str(path)


def _file(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, io.BytesIO(content)


@pytest.mark.parametrize("count", [1, 5, 60])
def test_the_root_is_the_one_that_a_container_has(mamushka: Command, tmp_path: Path, count: int) -> None:
    middle = [[member(f"data/{number}", b"%d" % number)] for number in range(count - 2)]
    layers = [base(), *middle, upper()][: max(count, 1)] if count > 1 else [base()]
    loaded = mamushka("load", "-i", image(tmp_path / "i.tar", "some", layers))
    assert loaded.returncode == 0, loaded.stderr
    seen = {}
    for wall in (("--network", "none"), DISKS):
        done = mamushka("run", "--rm", *wall, "some", "sh", "-c", LOOK)
        assert done.returncode == 0, done.stderr
        seen[wall] = done.stdout.decode().splitlines()
    container, machine = seen.values()
    assert len(container) > 50 and container == machine
    assert any("data/stays" in line for line in machine)
    assert any("data/gone" in line for line in machine) == (count == 1)


def test_what_it_writes_stays_and_is_reached_whether_it_runs_or_not(mamushka: Command, tmp_path: Path) -> None:
    mamushka("load", "-i", image(tmp_path / "i.tar", "some", [base(), upper()]))
    script = (
        "cat /data/kept 2>/dev/null && exit 4; rm /data/stays; echo written > /data/kept; echo added:x:77:88::/: >> "
        "/etc/passwd; ls -d /run/host; grep -c virtiofs /proc/mounts; grep ' / ' /proc/mounts; cat /etc/hostname; "
        "while [ ! -e /data/stop ]; do sleep 0.1; done; exit 3"
    )
    made = mamushka("run", "-d", "--name", "box", *DISKS, "-h", "called", "some", "sh", "-c", script)
    assert made.returncode == 0, made.stderr
    _until(lambda: b"called" in mamushka("logs", "box").stdout)
    said = mamushka("logs", "box").stdout.split()
    assert said[0] == b"0" and b"overlay" in said
    assert subprocess.run(["pgrep", "virtiofsd"], capture_output=True).stdout == b""
    changed = {b"C /data", b"A /data/kept", b"D /data/stays", b"C /etc", b"C /etc/passwd"}
    _can_be_copied(mamushka, tmp_path, "/tmp/running", changed)
    found = mamushka("exec", "-u", "added", "box", "id", "-u")
    assert found.stdout == b"77\n", found.stderr
    assert mamushka("exec", "box", "cat", "/tmp/running/file").stdout == b"content"
    # What is mounted over the root is the machine's too.
    assert b"called" in mamushka("cp", "box:/etc/hostname", "-").stdout
    assert b"Linux version" in mamushka("exec", "box", "cat", "/proc/version").stdout
    assert mamushka("exec", "box", "touch", "/data/stop").returncode == 0
    _until(lambda: mamushka("inspect", "-f", "{{.State.ExitCode}}", "box").stdout == b"3\n")
    changed |= {b"C /tmp", b"A /tmp/running", b"A /tmp/running/file", b"A /tmp/running/link", b"A /data/stop"}
    _can_be_copied(mamushka, tmp_path, "/tmp/stopped", changed)
    again = mamushka("start", "-a", "box")
    assert again.returncode == 4 and again.stdout.endswith(b"written\n"), again
    assert subprocess.run(["pgrep", "-x", "mamushka-vm"], capture_output=True).stdout == b""
    place = mamushka("inspect", "-f", "{{.Id}}", "box").stdout.decode().strip()
    assert mamushka("rm", "box").returncode == 0
    assert not [path for path in tmp_path.parent.rglob("top.ext4") if place in str(path)]


def _can_be_copied(mamushka: Command, tmp_path: Path, place: str, changed: set[bytes]) -> None:
    """cp in both directions, diff and export say the same as of a container."""
    name = place.rpartition("/")[2]
    found = mamushka("diff", "box")
    assert set(found.stdout.splitlines()) == changed, found
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("content")
    os.chmod(tmp_path / name / "file", 0o750)
    os.symlink("file", tmp_path / name / "link")
    done = mamushka("cp", str(tmp_path / name), "box:/tmp")
    assert done.returncode == 0, done.stderr
    done = mamushka("cp", f"box:{place}", str(tmp_path / f"{name}-back"))
    assert done.returncode == 0, done.stderr
    back = tmp_path / f"{name}-back"
    assert (back / "file").read_text() == "content" and os.readlink(back / "link") == "file"
    assert stat.S_IMODE((back / "file").stat().st_mode) == 0o750
    with tarfile.open(fileobj=io.BytesIO(mamushka("cp", "box:/data/kept", "-").stdout)) as archive:
        assert archive.getnames() == ["kept"] and (archive.extractfile("kept") or io.BytesIO()).read() == b"written\n"
    with tarfile.open(fileobj=io.BytesIO(mamushka("cp", "box:/", "-").stdout)) as archive:
        names = {each.strip("./") for each in archive.getnames()}
        assert {"data/kept", "bin/busybox", "bin/ls"} <= names and "data/stays" not in names
    for words, why in (
        (("cp", "box:/none", "-"), b"none"),
        (("cp", str(tmp_path / name), "box:/none/below"), b"none"),
    ):
        done = mamushka(*words)
        assert done.returncode and why in done.stderr, done


def test_volumes_are_shared_as_ever_beside_it(mamushka: Command, tmp_path: Path) -> None:
    mamushka("load", "-i", image(tmp_path / "i.tar", "some", [base()]))
    (tmp_path / "v").mkdir()
    done = mamushka(
        "run", "--rm", *DISKS, "-v", f"{tmp_path}/v:/volume", "--read-only", "some", "sh", "-c",
        "echo x > /volume/made; touch /data/x; wc -l < /etc/hosts",
    )  # fmt: skip
    assert done.returncode == 0 and b"Read-only file system" in done.stderr, done
    assert (tmp_path / "v/made").read_text() == "x\n"


def test_what_a_workload_has_written_decides(mamushka: Command, tmp_path: Path) -> None:
    """Files that were copied into its shared root are in it."""
    mamushka("load", "-i", image(tmp_path / "i.tar", "some", [base()]))
    assert mamushka("create", "--name", "box", *DISKS, "some", "cat", "/data/file").returncode == 0
    (tmp_path / "file").write_text("copied\n")
    assert mamushka("cp", f"{tmp_path}/file", "box:/data/").returncode == 0
    done = mamushka("start", "-a", "box")
    assert done.returncode and b"written into its shared root" in done.stderr


def test_a_warm_one_has_its_own_image_and_its_own_top(
    mamushka: Command, tmp_path: Path, roots: tuple[str, str]
) -> None:
    """Machines of two images go on from one saved machine; a saved one that is broken costs a cold boot, no start."""
    for name in ("first", "other"):
        layers = [base(), [member(f"data/{name}", name.encode() * 100_000)]]
        mamushka("load", "-i", image(tmp_path / f"{name}.tar", name, layers))
    told = []
    for name, wanted in (("first", b"machine.cold"), ("other", b"machine.warm"), ("first", b"machine.warm")):
        script = f"sha256sum /data/{name}; ls /data /; echo x > /written"
        done = mamushka("--debug", "run", "--rm", *DISKS, name, "sh", "-c", script)
        assert done.returncode == 0 and wanted in done.stderr, done
        told.append(done.stdout.decode())
        assert hashlib.sha256(name.encode() * 100_000).hexdigest() in told[-1]
        assert "written" not in told[-1]
    assert "other" not in told[0] and "first" not in told[1] and told[0] == told[2]
    (memory,) = Path(roots[0], "machines", "warm").glob("*.memory")
    with memory.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(0)
        file.truncate(size)
    done = mamushka("--debug", "run", "--rm", *DISKS, "first", "cat", "/etc/group")
    assert done.returncode == 0 and done.stdout == b"root:x:0:\n", done
    for event in (b"machine.warm", b"warm.stale", b"machine.cold", b"warm.kept"):
        assert event in done.stderr, done.stderr
    assert b"machine.warm" in mamushka("--debug", "run", "--rm", *DISKS, "first", "true").stderr


def test_a_full_top_is_the_guests_own_trouble(mamushka: Command, tmp_path: Path, roots: tuple[str, str]) -> None:
    mamushka("load", "-i", image(tmp_path / "i.tar", "some", [base()]))
    # A kernel gives back what is free some time after the file is gone, also after sync: until no more comes.
    script = (
        "dd if=/dev/zero of=/data/large bs=1M count=200; echo $?; rm /data/large; sync; "
        'until set -- $(cat /sys/block/vda/stat); [ "${14}" -gt 0 ] && [ "${14}" = "$last" ]; do '
        "last=${14}; sleep 2; done; echo after > /data/x; cat /data/x"
    )
    made = mamushka("create", "--name", "box", *DISKS, "some", "sh", "-c", script)
    assert made.returncode == 0, made.stderr
    disk = Path(roots[0], "workloads", mamushka("inspect", "-f", "{{.Id}}", "box").stdout.decode().strip(), "top.ext4")
    top.make(str(disk), 64 << 20)
    done = mamushka("start", "-a", "box")
    assert done.returncode == 0 and b"No space left on device" in done.stderr, done
    assert done.stdout.splitlines() == [b"1", b"after"]
    found = disk.stat()
    assert found.st_size == 64 << 20 and found.st_blocks * 512 <= 64 << 20
    # What was removed was given back to the host (discard), but for what its journal and tables take.
    assert found.st_blocks * 512 < 40 << 20
    assert mamushka("start", "-a", "box").returncode == 0


def test_layers_that_cost_a_small_machine_too_much_memory_come_as_disks(mamushka: Command, tmp_path: Path) -> None:
    """By the rule of placement: mapped layers may cost 8 of 128 MiB, so one of two of 270 MiB is a block device."""
    content = [os.urandom(1 << 20) * 270 for _ in range(2)]
    large = [[member(f"data/large{number}", part)] for number, part in enumerate(content)]
    mamushka("load", "-i", image(tmp_path / "i.tar", "some", [base(), *large, upper()]))
    sums = [hashlib.sha256(part).hexdigest() for part in content]
    for wanted in (b"machine.cold", b"machine.warm"):
        script = "ls /sys/class/block; sha256sum /data/large0 /data/large1; ls /data"
        done = mamushka("--debug", "run", "--rm", "-m", "128m", *DISKS, "some", "sh", "-c", script)
        assert done.returncode == 0 and wanted in done.stderr, done.stderr
        said = done.stdout.decode()
        assert all(each in said for each in ("vda", "vdb", "pmem0p3", *sums, "sparse")), said
        assert "vdc" not in said and "gone" not in said


def test_the_second_machine_of_an_image_costs_no_image(mamushka: Command, tmp_path: Path) -> None:
    """Both read all of a layer of 48 MiB; its pages are the host's own, once."""
    size = 48 << 20
    mamushka("load", "-i", image(tmp_path / "i.tar", "some", [base(), [member("data/large", os.urandom(size))]]))
    for name in ("one", "two"):
        script = "sha256sum /data/large; sleep 1000"
        assert mamushka("run", "-d", "--name", name, *DISKS, "some", "sh", "-c", script).returncode == 0
    for name in ("one", "two"):
        _until(lambda name=name: b"/data/large" in mamushka("logs", name).stdout)  # type: ignore[misc]
    seen = []
    for pid in subprocess.run(["pgrep", "-x", "mamushka-vm"], capture_output=True).stdout.split():
        rows = [row for row in _mappings(int(pid)) if row["file"].endswith(".erofs") or "erofs" in row["file"]]
        seen.append({key: sum(int(row[key]) for row in rows) for key in ("Rss", "Pss", "Private_Dirty", "Anonymous")})
    assert len(seen) == 2
    for each in seen:
        assert each["Rss"] << 10 >= size and each["Anonymous"] == 0 and each["Private_Dirty"] == 0, seen
        assert each["Pss"] < 0.6 * each["Rss"], seen
    assert mamushka("rm", "-f", "one", "two").returncode == 0


def _mappings(pid: int) -> list[dict[str, Any]]:
    """/proc/PID/smaps: kilobytes by name, and the file of each. proc(5)."""
    found: list[dict[str, Any]] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if words[0].endswith(":"):
            found[-1][words[0][:-1]] = words[1]
        else:
            found.append({"file": words[5] if len(words) > 5 else ""})
    return found


def test_figures(mamushka: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mamushka("load", "-i", image(tmp_path / "i.tar", "some", [base(), upper()]))
    with capsys.disabled():
        for words in (DISKS, DISKS[:4], DISKS, DISKS[:4]):
            began = time.monotonic()
            assert mamushka("run", "--rm", *words, "some", "true").returncode == 0
            print(f"\n{'layers' if words == DISKS else 'shared'}: {time.monotonic() - began:.2f} s")


def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.3)
