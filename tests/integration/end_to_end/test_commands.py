"""The command line as people type it: Docker's output and exit codes, and a clear word for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab]


@pytest.fixture
def run(mamushka: Command, busybox_reference: str) -> Iterator[Command]:
    """``run --rm --network none [options] busybox command``, with the options before an ellipsis of two dashes."""

    def call(*words: str, **settings: object) -> subprocess.CompletedProcess[bytes]:
        options, command = (
            (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else ((), words)
        )
        return mamushka("run", "--rm", "--network", "none", *options, busybox_reference, *command, **settings)

    pulled = mamushka("pull", "-q", busybox_reference)
    assert pulled.returncode == 0, pulled.stderr.decode()
    yield call
    left = mamushka("ps", "-aq")
    assert (left.returncode, left.stdout) == (0, b""), "a container outlived --rm"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "sh -c 'kill -TERM $$'; exit $?"), 143),
        (("sh", "-c", "sh -c 'kill -KILL $$'; exit $?"), 137),
        (("/no/such/program",), 127),
        (("no-such-program",), 127),
        (("/etc/passwd",), 126),
        (("/etc",), 126),
    ],
)
def test_the_exit_code_is_the_programs_or_says_why_there_was_none(
    run: Command, command: tuple[str, ...], code: int
) -> None:
    done = run(*command)
    assert done.returncode == code, done.stderr.decode()
    if code in (126, 127):
        assert command[0] in done.stderr.decode()


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--no-such-flag", "busybox"),
        ("run",),
        ("run", "UPPER/case:tag"),
        ("run", "--pull", "never", "registry.invalid/none"),
        ("run", "-m", "lots", "busybox"),
        ("run", "-p", "eighty:80", "busybox"),
        ("run", "-v", "relative:/x:what", "busybox"),
        ("run", "--network", "no-such-network", "host"),
        ("run", "--runtime", "vm", "host"),
        ("exec", "no-such-container", "true"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(mamushka: Command, words: tuple[str, ...]) -> None:
    done = mamushka(*words)
    assert done.returncode in (1, 125), done.stderr.decode()
    assert done.stdout == b""
    assert done.stderr.strip()
    assert b"Traceback" not in done.stderr


def test_standard_streams_stay_apart(run: Command) -> None:
    done = run("-i", "--", "sh", "-c", "cat; echo err >&2", input=b"through\n")
    assert (done.stdout, done.stderr) == (b"through\n", b"err\n")


def test_output_is_whole_however_large(run: Command) -> None:
    done = run("head", "-c", "5000000", "/dev/zero")
    assert done.stdout == bytes(5_000_000)


def test_what_the_program_finds(run: Command, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# a comment\nFROM_FILE=1\nWITH_SPACE=a b\n")
    done = run(
        "-e", "A=1", "--env-file", str(tmp_path / "env"), "-w", "/tmp", "-u", "ada", "--hostname", "lovelace",
        "--add-host", "db:10.1.2.3", "--label", "x=y", "--",
        "sh", "-c", 'echo "$A|$FROM_FILE|$WITH_SPACE"; pwd; id -u; hostname; grep -c 10.1.2.3 /etc/hosts',
    )  # fmt: skip
    assert done.stdout.decode().split("\n")[:5] == ["1|1|a b", "/tmp", "1815", "lovelace", "1"], done.stderr


def test_mounts_of_every_kind(run: Command, mamushka: Command, tmp_path: Path, unique: str) -> None:
    (tmp_path / "given").write_text("from the host\n")
    script = "cat /given/given; touch /given/x 2>/dev/null || echo read-only; echo kept > /volume/f; df -T /scratch"
    volume = f"{unique}:/volume"
    done = run(
        "-v", f"{tmp_path}:/given:ro", "-v", volume, "--tmpfs", "/scratch:size=1m", "--", "sh", "-c", script
    )  # fmt: skip
    assert done.stdout.decode().startswith("from the host\nread-only\n")
    assert "tmpfs" in done.stdout.decode()
    again = run("--mount", f"type=volume,source={unique},target=/v", "--", "cat", "/v/f")
    assert again.stdout == b"kept\n"
    assert mamushka("volume", "rm", unique).returncode == 0


def test_a_read_only_root(run: Command) -> None:
    assert run("--read-only", "--", "touch", "/x").returncode == 1
    assert run("--read-only", "--tmpfs", "/tmp", "--", "touch", "/tmp/x").returncode == 0


def test_privileges_are_dockers_and_no_more(run: Command) -> None:
    status = run("cat", "/proc/self/status").stdout.decode()
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0xA80425FB
    assert int(fields["CapBnd"], 16) == 0xA80425FB
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    dropped = run("--cap-drop", "ALL", "--", "grep", "CapEff", "/proc/self/status").stdout
    assert int(dropped.split()[1], 16) == 0


def test_limits_are_the_kernels(run: Command) -> None:
    done = run("-m", "32m", "--", "sh", "-c", "x=x; while :; do x=$x$x; done")
    assert done.returncode in (137, 2)
    forks = run("--pids-limit", "8", "--", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 2 & done; wait")
    assert b"fork" in forks.stderr


def test_masked_paths_are_masked(run: Command) -> None:
    done = run(
        "sh", "-c", "cat /proc/kcore | head -c 1 | wc -c; ls /sys/firmware | wc -l; echo x > /proc/sysrq-trigger"
    )
    assert done.stdout.decode().split() == ["0", "0"]
    assert done.returncode != 0


def test_a_life(mamushka: Command, busybox_reference: str, unique: str) -> None:
    id = mamushka("run", "-d", "--network", "none", "--name", unique, busybox_reference, "sh", "-c",
                  "echo born; trap 'exit 9' TERM; while :; do sleep 0.1; done").stdout.decode().strip()  # fmt: skip
    assert len(id) == 64
    listed = mamushka("ps", "--format", "{{.ID}} {{.Names}} {{.Image}}").stdout.decode()
    assert listed == f"{id[:12]} {unique} {busybox_reference.removesuffix(':latest')}\n" or unique in listed
    assert mamushka("exec", unique, "echo", "inside").stdout == b"inside\n"
    assert mamushka("exec", unique, "sh", "-c", "exit 5").returncode == 5
    assert mamushka("exec", unique, "no-such-program").returncode == 127
    taken = mamushka("run", "-d", "--network", "none", "--name", unique, busybox_reference)
    assert taken.returncode == 125 and b"already in use" in taken.stderr
    assert mamushka("rm", unique).returncode == 1
    assert mamushka("pause", unique).returncode == 0
    assert mamushka("inspect", "-f", "{{.State.Status}}", unique).stdout == b"paused\n"
    assert mamushka("unpause", unique).returncode == 0
    assert mamushka("stop", unique).stdout.decode().strip() == unique
    assert mamushka("wait", unique).stdout == b"9\n"
    assert mamushka("logs", unique).stdout == b"born\n"
    assert mamushka("start", unique).returncode == 0
    assert mamushka("kill", unique).returncode == 0
    mamushka("wait", unique)
    shown = json.loads(mamushka("inspect", unique).stdout)[0]
    assert (shown["State"]["ExitCode"], shown["Name"], shown["Id"]) == (137, f"/{unique}", id)
    assert mamushka("rm", unique).returncode == 0
    assert mamushka("inspect", unique).returncode == 1


def test_copies_in_and_out(mamushka: Command, busybox_reference: str, unique: str, tmp_path: Path) -> None:
    assert mamushka("create", "--name", unique, busybox_reference, "cat", "/srv/in").returncode == 0
    (tmp_path / "in").write_text("copied")
    assert mamushka("cp", str(tmp_path / "in"), f"{unique}:/srv").returncode in (0, 1)
    assert mamushka("cp", str(tmp_path / "in"), f"{unique}:/tmp/in").returncode == 0
    assert mamushka("cp", f"{unique}:/tmp/in", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_text() == "copied"


def test_names_are_resolved_in_a_network(mamushka: Command, busybox_reference: str, unique: str) -> None:
    assert mamushka("network", "create", unique).returncode == 0
    try:
        server = f"{unique}-server"
        mamushka("run", "-d", "--name", server, "--network", unique, busybox_reference, "sh", "-c",
                 "while :; do echo reached | nc -l -p 80; done")  # fmt: skip
        seen = mamushka("run", "--rm", "--network", unique, busybox_reference, "sh", "-c",
                        f"for i in 1 2 3 4 5; do nc {server} 80 </dev/null && break; sleep 0.3; done")  # fmt: skip
        assert b"reached" in seen.stdout, seen.stderr.decode()
        assert mamushka("rm", "-f", server).returncode == 0
    finally:
        assert mamushka("network", "rm", unique).returncode == 0


def test_a_published_port_and_port(mamushka: Command, busybox_reference: str, unique: str) -> None:
    import socket
    import time

    mamushka("run", "-d", "--name", unique, "-p", "127.0.0.1::80", busybox_reference, "sh", "-c",
             "while :; do echo served | nc -l -p 80; done")  # fmt: skip
    address, _, port = mamushka("port", unique, "80").stdout.decode().split("\n")[0].rpartition(":")
    answer = b""
    for _ in range(40):
        try:
            with socket.create_connection((address, int(port)), timeout=2) as connection:
                answer = connection.recv(100)
        except OSError:
            time.sleep(0.1)
        if answer:
            break
    assert answer == b"served\n"


def test_the_hosts_loopback_is_out_of_reach(mamushka: Command, busybox_reference: str, registry: str) -> None:
    port = registry.rpartition(":")[2]
    reach = f"gateway=$(ip route | awk '/default/{{print $3}}'); nc -w 2 127.0.0.1 {port} </dev/null || echo no"
    done = mamushka("run", "--rm", busybox_reference, "sh", "-c", reach)
    assert b"no" in done.stdout


def test_the_image_host_needs_no_registry(mamushka: Command) -> None:
    done = mamushka("run", "--rm", "--network", "none", "host", "sh", "-c", "uname -s; ls /root /home | wc -l; id -u")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n")[0] == "Linux"
    secrets = mamushka("run", "--rm", "--network", "none", "host", "cat", "/etc/shadow")
    assert secrets.returncode == 1


def test_images_travel(mamushka: Command, layered_reference: str, registry: str, unique: str, tmp_path: Path) -> None:
    assert mamushka("pull", "-q", layered_reference).returncode == 0
    assert mamushka("run", "--rm", "--network", "none", layered_reference).stdout == b"from the image\n"
    target = f"{registry}/{unique}:copy"
    assert mamushka("tag", layered_reference, target).returncode == 0
    assert mamushka("push", target).returncode == 0
    assert mamushka("save", "-o", str(tmp_path / "saved.tar"), target).returncode == 0
    assert mamushka("rmi", target, layered_reference).returncode == 0
    assert mamushka("images", "-q").stdout == b""
    loaded = mamushka("load", "-i", str(tmp_path / "saved.tar"))
    assert target in loaded.stdout.decode()
    assert mamushka("run", "--rm", "--network", "none", target, "again").stdout == b"again\n"
    history = mamushka("history", "-q", "--no-trunc", target)
    assert len(history.stdout.split()) >= 5


def test_what_it_costs_to_look(mamushka: Command) -> None:
    for words in (("ps",), ("images",), ("volume", "ls"), ("network", "ls"), ("system", "df"), ("version",), ("info",)):
        done = mamushka(*words)
        assert done.returncode == 0, (words, done.stderr.decode())
    assert mamushka("images").stdout.startswith(b"REPOSITORY")


def test_doctor_finds_a_way_to_run(mamushka: Command) -> None:
    done = mamushka("doctor", timeout=120)
    assert done.returncode == 0, done.stdout.decode()


def test_debug_shows_the_plan(mamushka: Command, busybox_reference: str) -> None:
    done = mamushka("--debug", "run", "--rm", "--network", "none", busybox_reference, "true")
    said = done.stderr.decode()
    assert done.returncode == 0
    assert "pivot_root" in said or "root" in said
    assert "container" in said


def test_a_closed_output_is_no_traceback(mamushka: Command, roots: tuple[str, str]) -> None:
    import sys

    program = os.path.join(os.path.dirname(sys.executable), "mamushka")
    done = subprocess.run(
        f"{program} --data-root {roots[0]} --run-root {roots[1]} run --help | head -c 1",
        shell=True, capture_output=True, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr


def test_a_system_that_executes_no_memory_files_is_named(roots: tuple[str, str]) -> None:
    """The switch belongs to a pid namespace: one of the test's own."""
    switch = "/proc/sys/vm/memfd_noexec"
    if not os.path.exists(switch):
        pytest.skip("a kernel without vm.memfd_noexec (before Linux 6.3)")
    program = os.path.join(os.path.dirname(sys.executable), "mamushka")
    ours = [program, "--data-root", roots[0], "--run-root", roots[1]]
    words = [*ours, "run", "--rm", "--network", "none", "host", "true"]
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", f'echo 2 >{switch}; exec "$@"', "sh", *words]
    done = subprocess.run(inside, capture_output=True, timeout=60, check=False)
    assert done.returncode == 125 and b"hint: sysctl vm.memfd_noexec=1" in done.stderr, done.stderr
    left = subprocess.run([*ours, "ps", "-aq"], capture_output=True, check=True)
    assert left.stdout == b"" and not os.listdir(f"{roots[1]}/containers")
