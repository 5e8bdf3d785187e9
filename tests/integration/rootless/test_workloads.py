"""What an ordinary user does with workloads, with subordinate ids and with one id alone."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.integration.rootless.person import FIRST, SIZE, UID, Person

pytestmark = [pytest.mark.root]
ALONE = ("--network", "none")


@pytest.fixture
def running(person: Person, name: str) -> Iterator[str]:
    """A workload that sleeps."""
    person.good("run", "-d", "--name", name, *ALONE, "busybox", "sleep", "600")
    yield name
    person.mamushka("rm", "-f", name)


def test_root_inside_is_the_user_outside(person: Person) -> None:
    text = person.good("run", "--rm", *ALONE, "-v", f"{person.home}:/home/me", "busybox", "sh", "-c",
                       "id -u; id -g; cat /proc/self/uid_map; echo hi > /home/me/made")  # fmt: skip
    first, second, *maps = text.split("\n")[:-1]
    assert (first, second) == ("0", "0")
    wanted = [["0", str(UID), "1"]] + ([["1", str(FIRST), str(SIZE)]] if person.ids else [])
    assert [line.split() for line in maps] == wanted
    found = os.stat(f"{person.home}/made")
    assert (found.st_uid, found.st_gid) == (UID, UID)


@pytest.mark.parametrize(("command", "code"), [("exit 5", 5), ("sh -c 'kill -9 $$'; exit $?", 137), ("nonsense", 127)])
def test_exit_codes(person: Person, command: str, code: int) -> None:
    assert person.mamushka("run", "--rm", *ALONE, "busybox", "sh", "-c", command).returncode == code


@pytest.mark.parametrize(("program", "code"), [("/nowhere", 127), ("/etc/passwd", 126)])
def test_what_cannot_be_executed(person: Person, program: str, code: int) -> None:
    assert person.mamushka("run", "--rm", *ALONE, "busybox", program).returncode == code


def test_output_is_logged(person: Person, name: str) -> None:
    person.good("run", "--name", name, *ALONE, "busybox", "sh", "-c", "echo out; echo err >&2")
    done = person.mamushka("logs", name)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    person.good("rm", name)
    assert name not in person.good("ps", "-a")


def test_exec(person: Person, running: str) -> None:
    done = person.mamushka("exec", running, "sh", "-c", "id -u; cat; exit 7", input=b"")
    assert (done.returncode, done.stdout) == (7, "0\n")
    assert person.good("exec", "-i", running, "cat", input=b"typed") == "typed"
    inside, outside = (person.good(*words) for words in (("exec", running, "readlink", "/proc/self/ns/user"),
                                                         ("unshare", "readlink", "/proc/self/ns/user")))  # fmt: skip
    assert inside == outside != os.readlink("/proc/self/ns/user") + "\n"


def test_a_terminal(person: Person, running: str) -> None:
    assert person.good("exec", "-t", running, "tty").strip() == "/dev/pts/0"
    master, slave = pty.openpty()
    command = person.command(
        "mamushka", "run", "--rm", "-it", *ALONE, "busybox", "sh", "-c", "tty; read x; echo got $x"
    )
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        os.write(master, b"word\n")
        text = b""
        while b"got word" not in text:
            text += os.read(master, 1000)
        process.wait(20)
    os.close(master)
    assert b"/dev/pts/0" in text


def test_copies(person: Person, running: str) -> None:
    with open(f"{person.home}/given", "w") as file:
        file.write("content")
    os.chown(f"{person.home}/given", UID, UID)
    person.good("cp", f"{person.home}/given", f"{running}:/tmp/given")
    assert person.good("exec", running, "stat", "-c", "%u:%g", "/tmp/given") == "0:0\n"
    person.good("cp", f"{running}:/tmp/given", f"{person.home}/back")
    found = os.stat(f"{person.home}/back")
    assert (found.st_uid, found.st_gid, found.st_size) == (UID, UID, 7)
    assert person.good("diff", running).splitlines() == ["C /tmp", "A /tmp/given"]


def test_who_runs(person: Person, running: str) -> None:
    assert running in person.good("ps")
    assert "sleep 600" in person.good("top", running, "-eo", "pid,args")
    assert person.good("inspect", "-f", "{{.State.Status}}", running) == "running\n"


def test_stop_keeps_what_was_written_and_start_finds_it(person: Person, running: str) -> None:
    person.good("exec", running, "sh", "-c", "echo kept > /root/file")
    person.good("stop", "-t", "0", running)
    assert "Exited (137)" in person.good("ps", "-a", "--filter", f"name={running}")
    person.good("start", running)
    assert person.good("exec", running, "cat", "/root/file") == "kept\n"


def test_a_volume_outlives_its_workload(person: Person, name: str) -> None:
    person.good("run", "--rm", *ALONE, "-v", f"{name}:/data", "busybox", "sh", "-c", "echo kept > /data/file")
    assert person.good("run", "--rm", *ALONE, "-v", f"{name}:/data:ro", "busybox", "cat", "/data/file") == "kept\n"
    assert "Read-only" in person.bad("run", "--rm", *ALONE, "-v", f"{name}:/data:ro", "busybox", "touch", "/data/x")
    person.good("volume", "rm", name)


def test_another_user_inside(person: Person) -> None:
    done = person.mamushka("run", "--rm", *ALONE, "-u", "33:34", "busybox", "id")
    if person.ids:
        assert done.stdout.startswith("uid=33 gid=34"), done.stderr
    else:
        assert "there is no uid 33 in this user namespace" in done.stderr and "/etc/subuid" in done.stderr


def test_further_groups(person: Person) -> None:
    done = person.mamushka("run", "--rm", *ALONE, "--group-add", "7", "busybox", "id", "-G")
    if person.ids:
        assert done.stdout == "0 7\n", done.stderr
    else:
        assert "one id only" in done.stderr and "/etc/subuid" in done.stderr


def test_an_image_looks_as_it_does_for_root(
    person: Person, layered_reference: str, mamushka: object, name: str
) -> None:
    """Whiteouts, opaque directories, hard links, modes, attributes; and owners, where there are ids for them."""
    looks = []
    for call in (person.mamushka, mamushka):
        for words in (("pull", "-q", layered_reference), ("create", "--name", name, *ALONE, layered_reference)):
            assert call(*words).returncode == 0  # type: ignore[operator]
        done = call("cp", f"{name}:/work", "-")  # type: ignore[operator]
        assert done.returncode == 0
        looks.append(call("diff", name).stdout)  # type: ignore[operator]
        call("rm", name)  # type: ignore[operator]
    assert not any(looks)
    listing = "find /work -exec stat -c '%n %f %h %s %u:%g %Y' {} +; cat /work/old/*"
    theirs, ours = (_listing(call, layered_reference, listing) for call in (mamushka, person.mamushka))
    if not person.ids:
        theirs = theirs.replace(" 1815:1842 ", " 0:0 ")
    assert ours == theirs and "/work/owned" in ours and "/work/drop" not in ours


def _listing(call: object, image: str, command: str) -> str:
    done = call("run", "--rm", *ALONE, "--entrypoint", "/bin/sh", image, "-c", command)  # type: ignore[operator]
    text: str = done.stdout if isinstance(done.stdout, str) else done.stdout.decode()
    assert done.returncode == 0, done.stderr
    return "\n".join(sorted(text.splitlines()))


def test_devices_are_the_hosts_own(person: Person) -> None:
    text = person.good(
        "run",
        "--rm",
        *ALONE,
        "busybox",
        "sh",
        "-c",
        "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; ls /dev/pts",
    )
    assert text.split()[:2] == ["3", "3"]
    text = person.good("run", "--rm", *ALONE, "--device", "/dev/zero:/dev/nothing", "busybox", "stat", "-c", "%t:%T",
                       "/dev/nothing")  # fmt: skip
    assert text == "1:5\n"
    assert "Operation not permitted" in person.bad("run", "--rm", *ALONE, "--privileged", "busybox", "mknod",
                                                    "/tmp/disk", "b", "254", "0")  # fmt: skip


def test_the_kernels_settings_stay_read_only(person: Person) -> None:
    for path in ("/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness", "/sys/kernel/mm/ksm/run"):
        done = person.mamushka("run", "--rm", *ALONE, "busybox", "sh", "-c", f"echo 1 > {path}")
        assert done.returncode != 0 and "Read-only" in done.stderr, path


def test_privileged_is_root_of_its_namespace_alone(person: Person) -> None:
    text = person.good("run", "--rm", *ALONE, "--privileged", "busybox", "sh", "-c",
                       "mkdir /mnt; mount -t tmpfs none /mnt; mount | tail -1;"
                       "cat /proc/1/root/etc/shadow 2>&1; hostname other && hostname")  # fmt: skip
    assert "tmpfs" in text and text.endswith("other\n")
    assert os.uname().nodename != "other"


@pytest.mark.parametrize("option", ["--pid", "--ipc", "--uts", "--network", "--cgroupns"])
def test_the_hosts_namespaces_can_be_shared(person: Person, option: str) -> None:
    kind = {"--pid": "pid", "--ipc": "ipc", "--uts": "uts", "--network": "net", "--cgroupns": "cgroup"}[option]
    network = () if option == "--network" else ALONE
    text = person.good("run", "--rm", *network, option, "host", "busybox", "readlink", f"/proc/self/ns/{kind}")
    assert text.strip() == os.readlink(f"/proc/self/ns/{kind}")


def test_the_image_host_runs_this_machines_programs(person: Person) -> None:
    text = person.good("run", "--rm", *ALONE, "host", "sh", "-c", "id -u; ls /usr/bin/env; touch /usr/x 2>&1; true")
    assert text.startswith("0\n/usr/bin/env\n") and "Read-only" in text


def test_a_workload_restarts(person: Person, name: str) -> None:
    person.good("run", "-d", "--name", name, "--restart", "on-failure:2", *ALONE, "busybox", "sh", "-c",
                "echo x >> /root/starts; exit 3")  # fmt: skip
    assert person.good("wait", name) == "3\n"
    deadline = time.monotonic() + 20
    while person.good("inspect", "-f", "{{.RestartCount}}", name) != "2\n" and time.monotonic() < deadline:
        time.sleep(0.1)
    person.good("cp", f"{name}:/root/starts", f"{person.home}/starts")
    with open(f"{person.home}/starts") as file:
        assert file.read() == "x\n" * 3
    person.good("rm", name)


def test_a_shim_that_sleeps_comes_back(person: Person, name: str) -> None:
    """After two idle seconds the shim is another executable; it must come back into the same namespaces."""
    person.good("run", "-d", "--name", name, *ALONE, "busybox", "sh", "-c", "sleep 4; echo late; exit 9")
    assert person.good("wait", name, timeout=60) == "9\n"
    assert person.good("logs", name) == "late\n"
    person.good("rm", name)


def test_commands_of_several_terminals_meet(person: Person) -> None:
    """Ten at once, from nothing: all end up in one user namespace, whoever makes it."""
    command = person.command("mamushka", "run", "--rm", *ALONE, "busybox", "sh", "-c",
                             "readlink /proc/self/ns/user; sleep 2")  # fmt: skip
    crowd = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(10)]
    seen = {process.communicate(timeout=120)[0] for process in crowd}
    assert len(seen) == 1 and all(process.returncode == 0 for process in crowd)


def test_a_workload_with_every_right_sees_nothing_of_who_enters_it(person: Person, name: str) -> None:
    """It is root of the very user namespace that a further process comes from, and may trace whatever it finds."""
    search = f"while :; do for p in /proc/[0-9]*; do test -e $p/root{person.home} && echo $p; done; done"
    person.good("run", "-d", "--name", name, *ALONE, "--privileged", "busybox", "sh", "-c", search)
    for _ in range(30):
        person.good("exec", name, "true")
    assert person.good("logs", name) == ""
    person.good("rm", "-f", name)
