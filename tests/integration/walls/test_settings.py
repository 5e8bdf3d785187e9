"""What a workload was told, as its program finds it: equal behind each wall, and what was asked for.

One workload per wall was given nothing, another everything; ``report.sh`` tells what they see.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.walls.conftest import CONTAINER, MACHINE, Wall, eventually, make

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab, pytest.mark.slow]

REPORT = Path(__file__).with_name("report.sh")
SECTIONS = re.findall(r"^section ([a-z-]+);", REPORT.read_text(), re.MULTILINE)
Report = dict[str, list[str]]
PLAIN, GIVEN = "plain", "given"


class Seen:
    """A wall, its workload, and its report."""

    def __init__(self, wall: Wall, options: tuple[str, ...], command: tuple[str, ...]) -> None:
        self.wall = wall
        self.name = wall.begin("-v", f"{REPORT}:/report.sh:ro", *options, "--", *command)
        eventually(lambda: b"== end" in wall("logs", self.name).stdout, "the report's end", 120)
        text = wall("logs", self.name).stdout.decode()
        parts = re.split(r"^== (.*)\n", text, flags=re.MULTILINE)[1:]
        self.report: Report = {name: lines.splitlines() for name, lines in zip(parts[::2], parts[1::2], strict=True)}

    def inside(self, *words: str) -> str:
        """What a further process prints."""
        done = self.wall.exec(self.name, *words)
        return (done.stdout + done.stderr).decode()


See = Callable[[str, str], Seen]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both are given of the host's."""
    place = tmp_path_factory.mktemp("given")
    place.chmod(0o755)
    for name in ("whole", "locked"):
        (place / name).mkdir()
        (place / name / "from-host").write_text("hello\n")
        (place / name).chmod(0o777)
    (place / "file").write_text("one file\n")
    (place / "environment").write_text("# a comment\nFROM_FILE=1\nWITH_SPACE=a b\n")
    return place


@pytest.fixture(scope="module")
def see(tmp_path_factory: pytest.TempPathFactory, busybox_reference: str, ground: Path) -> Iterator[See]:
    """The workload of that kind behind that wall, begun when it is first asked for."""
    with ExitStack() as stack:

        @functools.cache
        def wall(name: str) -> Wall:
            base = str(tmp_path_factory.mktemp("s"))
            return stack.enter_context(contextmanager(make)(name, base, busybox_reference))

        made: dict[tuple[str, str], Seen | Exception] = {}  # what failed fails once, and is told to all

        def seen(name: str, kind: str) -> Seen:
            if (name, kind) not in made:
                try:
                    made[name, kind] = begin(name, kind)
                except Exception as error:
                    made[name, kind] = error
            found = made[name, kind]
            if isinstance(found, Exception):
                raise found
            return found

        def begin(name: str, kind: str) -> Seen:
            if kind == PLAIN:
                return Seen(wall(name), ("--hostname", "plain"), ("sh", "/report.sh"))
            return Seen(wall(name), options(ground), ("-c", ". /report.sh", "zero", "a b", "*"))

        yield seen


def options(ground: Path) -> tuple[str, ...]:
    """Everything at once."""
    return (
        "-e", "A=b c", "--env-file", f"{ground}/environment", "-w", "/usr", "-u", "7:8", "--group-add", "9",
        "--hostname", "box", "--add-host", "db:10.1.2.3", "--read-only", "--tmpfs", "/t:size=1m,mode=1777",
        "-v", f"{ground}/whole:/whole", "-v", f"{ground}/locked:/locked:ro", "-v", f"{ground}/file:/etc/one:ro",
        "-v", "kept:/kept", "--ulimit", "nofile=64:128", "--ulimit", "core=0", "--cap-drop", "ALL",
        "--cap-add", "NET_BIND_SERVICE", "--security-opt", "no-new-privileges", "--init", "--cpus", "2", "-m", "256m",
        "--pids-limit", "20", "--oom-score-adj", "100", "--shm-size", "2m", "--entrypoint", "sh",
    )  # fmt: skip


walls = pytest.mark.parametrize("wall", [CONTAINER, MACHINE])

# What differs on purpose, as a pattern whose lines are left out: a machine has a kernel and disks of its own.
DIFFERENT = {
    # A kernel derives how many processes and waiting signals a user may have from its memory.
    "limits": r"^Max (processes|pending signals) ",
    # A machine of ours has no firmware that would tell what it was made by, so there is nothing to mask.
    "mounts": r"^/sys/devices/virtual/dmi ",
    "status": r"^NSpid",
    "devices": r"^total|console",
    "environment": r"^HOSTNAME=[0-9a-f]{12}$",
}
# What is bound lies on the host's disk, or is served to the machine: place and options are the same, the source is not.
SERVED = re.compile(r"^(\S+ \S+) (overlay|virtiofs|erofs|ext4|xfs|btrfs) .*")
# A workload without a limit has the host's processors, or as many as a machine has then.
OWN_PROCESSORS = ("processors", PLAIN)


@pytest.mark.parametrize("kind", [PLAIN, GIVEN])
@pytest.mark.parametrize("section", SECTIONS)
def test_both_walls_show_the_same(see: See, section: str, kind: str) -> None:
    machine, container = see(MACHINE, kind), see(CONTAINER, kind)
    if (section, kind) == OWN_PROCESSORS:
        assert machine.report[section] == ["1"]
        return
    leave = re.compile(DIFFERENT.get(section, r"^\b$"))

    def lines(seen: Seen) -> list[str]:
        kept = [line for line in seen.report[section] if not leave.search(line)]
        if section == "devices":
            kept = [re.sub(r"\w{3} +\d+ +(\d\d:\d\d|\d{4})", "DATE", line) for line in kept]
        return [SERVED.sub(r"\1", line) for line in kept]

    assert lines(machine) == lines(container)


@walls
def test_arguments_environment_directory_and_users(see: See, wall: str) -> None:
    report = see(wall, GIVEN).report
    assert report["arguments"] == ["zero", "a b", "*"]
    assert {"A=b c", "FROM_FILE=1", "WITH_SPACE=a b"} <= set(report["environment"])
    assert report["directory"] == ["/usr"]
    assert report["user"] == ["7", "8", "8 9", "0022"]


@walls
def test_names(see: See, wall: str) -> None:
    report = see(wall, GIVEN).report
    assert report["hostname"] == ["box", "box"]
    assert any(line.split() == ["10.1.2.3", "db"] for line in report["hosts"])
    assert report["links"] == ["lo"]


@walls
def test_limits(see: See, wall: str) -> None:
    report = see(wall, GIVEN).report
    (files,) = (line.split() for line in report["limits"] if line.startswith("Max open files"))
    assert files[3:5] == ["64", "128"]
    assert report["processors"] == ["2"] if wall == MACHINE else int(report["processors"][0]) >= 1
    seen = see(wall, GIVEN)
    forks = seen.inside("sh", "-c", "for i in $(seq 40); do sleep 2 & done; wait")
    assert "fork" in forks
    # Those that it did make stay a while, and who comes next would find no room.
    eventually(lambda: seen.inside("sh", "-c", "true & wait; echo room") == "room\n", "they end")


@walls
@pytest.mark.parametrize(("kind", "capabilities"), [(PLAIN, 0xA80425FB), (GIVEN, 1 << 10)])
def test_privileges_are_dockers_and_no_more(see: See, wall: str, kind: str, capabilities: int) -> None:
    fields = dict(line.split(":\t", 1) for line in see(wall, kind).report["status"])
    assert int(fields["CapBnd"], 16) == capabilities
    assert int(fields["CapEff"], 16) == (capabilities if kind == PLAIN else 0)
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    further = see(wall, kind).inside("grep", "CapBnd", "/proc/self/status")
    assert int(further.split()[1], 16) == capabilities


@walls
def test_what_is_refused_and_hidden(see: See, wall: str) -> None:
    report = see(wall, PLAIN).report
    assert report["read-only"] == ["end"]
    refused = " ".join(report["refused"])
    assert refused.lower().count("not permitted") + refused.lower().count("permission denied") >= 3, refused
    assert report["masked"][1] == "0"  # of kcore


@walls
def test_privileged_takes_the_wall_inside_down(see: See, wall: str) -> None:
    """All capabilities and devices, of the kernel's that it has."""
    script = (
        "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; ls -l /dev; grep -c '/proc/' /proc/mounts; "
        "mount -t tmpfs none /tmp && dd if=/dev/kmsg of=/dev/null bs=8192 count=1 2>/dev/null && echo can"
    )
    done = see(wall, PLAIN).wall.once("--privileged", "--", "sh", "-c", script)
    said = done.stdout.decode().splitlines()
    assert done.returncode == 0, done.stderr.decode()
    every = (1 << int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1) - 1
    # A container has what whoever starts it has, a machine's kernel all that there is.
    bounding = re.search(r"^CapBnd:\t(.*)", Path("/proc/self/status").read_text(), re.MULTILINE)
    every = every if wall == MACHINE or bounding is None else every & int(bounding[1], 16)
    assert int(said[0].split()[1], 16) == every and said[1].split()[1] == said[2].split()[1] == "0"
    assert said[-2:] == ["0", "can"], "nothing is masked, and it may mount and read the kernel's log"
    names = {line.split()[-1] for line in said if line[:1] in "cb"}
    assert {"null", "kmsg", "ttyS0", "urandom"} <= names
    if wall == CONTAINER:
        assert "kvm" in names


@walls
def test_a_read_only_root_and_what_can_be_written_all_the_same(see: See, wall: str, ground: Path) -> None:
    seen = see(wall, GIVEN)
    assert "Read-only" in seen.inside("-u", "0", "--", "touch", "/x")
    assert seen.inside("sh", "-c", "touch /t/x && echo made") == "made\n"
    assert seen.inside("sh", "-c", "head -c 2000000 /dev/zero > /t/large 2>&-; stat -c %s /t/large") == "1048576\n"
    assert seen.inside("df", "-k", "/dev/shm").split()[8] == "2048"


@walls
def test_directories_files_and_volumes_of_the_hosts(see: See, wall: str, ground: Path) -> None:
    seen = see(wall, GIVEN)
    assert seen.inside("cat", "/whole/from-host", "/locked/from-host", "/etc/one") == "hello\nhello\none file\n"
    mark = f"made-{wall}"
    assert seen.inside("sh", "-c", f"echo {mark} > /whole/{mark}") == ""
    assert (ground / "whole" / mark).read_text() == f"{mark}\n"
    assert (ground / "whole" / mark).stat().st_uid == 7
    (ground / "whole" / mark).write_text("changed outside\n")
    assert seen.inside("cat", f"/whole/{mark}") == "changed outside\n"
    assert "Read-only" in seen.inside("touch", "/locked/x")
    assert "Read-only" in seen.inside("-u", "0:0", "--", "sh", "-c", "echo x >> /etc/one")
    assert seen.inside("-u", "0", "--", "sh", "-c", "echo kept > /kept/file; cat /kept/file") == "kept\n"
    place = seen.wall("volume", "inspect", "-f", "{{.Mountpoint}}", "kept").stdout.decode().strip()
    assert Path(place, "file").read_text() == "kept\n"
    assert not os.path.exists(ground / "locked" / "x")
