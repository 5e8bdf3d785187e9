"""Transcripts of real runs: what a user types, and what must come back."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mamushka.interfaces.cli.output import write_all
from tests import peers

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = pytest.mark.root
ALONE = ("--network", "none")


def program(roots: tuple[str, str]) -> list[str]:
    return [str(Path(sys.executable).parent / "mamushka"), "--data-root", roots[0], "--run-root", roots[1]]


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll with patience: other processes have to get their turn."""
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"never came true: {what}")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["true"], 0, b""),
        (["sh", "-c", "exit 7"], 7, b""),
        (["sh", "-c", "exec sh -c 'kill -9 $$; exit 1'"], 1, b""),  # a namespace's first process cannot kill itself
        (["/etc"], 126, b"is a directory"),
        (["/etc/hosts"], 126, b"permission denied"),
        (["nonexistent"], 127, b"not found"),
        (["/nonexistent"], 127, b"no such file"),
    ],
)
def test_exit_codes(mamushka: Command, command: list[str], code: int, said: bytes) -> None:
    done = mamushka("run", "--rm", *ALONE, "host", *command)
    assert (done.returncode, done.stdout) == (code, b"")
    assert said in done.stderr.lower()
    assert mamushka("ps", "-aq").stdout == b""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("run", "--memory", "lots", "host"), b"not a size"),
        (("run", "--rm", "--network", "nowhere", "host", "true"), b"nowhere"),
        (("run", "--runtime", "vm", "host", "true"), b"vm"),
        (("run", "--platform", "linux/riscv64", "host", "true"), b"not linux/riscv64"),
        (("run", "--pull", "never", "no/such", "true"), b"no/such"),
        (("run", "--frobnicate", "host"), b"unknown option"),
    ],
)
def test_what_the_engine_cannot_do_is_125(mamushka: Command, arguments: tuple[str, ...], reason: bytes) -> None:
    done = mamushka(*arguments)
    assert done.returncode == 125
    assert reason in done.stderr
    assert b"Traceback" not in done.stderr
    assert mamushka("ps", "-aq").stdout == b""


def test_signals_are_128_and_their_number(mamushka: Command) -> None:
    mamushka("run", "-d", *ALONE, "--name", "victim", "host", "sleep", "1000")
    assert mamushka("kill", "victim").returncode == 0
    assert mamushka("wait", "victim").stdout == b"137\n"
    assert b"Exited (137)" in mamushka("ps", "-a").stdout


def test_streams_stay_apart_and_binary_passes_both_ways(mamushka: Command) -> None:
    done = mamushka("run", "--rm", *ALONE, "host", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    blob = os.urandom(3_000_001)
    done = mamushka("run", "--rm", "-i", *ALONE, "host", "cat", input=blob)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(blob).digest()
    # What the workload does not read is no failure, and does not hold the end up.
    done = mamushka("run", "--rm", "-i", *ALONE, "host", "sh", "-c", "head -c 10 >/dev/null; echo done", input=blob)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_chosen_streams_only(mamushka: Command) -> None:
    done = mamushka("run", "--rm", *ALONE, "-a", "stderr", "host", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"", b"err\n")


def test_settings_reach_the_workload(mamushka: Command, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "given").write_text("x")
    script = 'echo $A; pwd; id -u; id -G; hostname; cat /m/given; stat -f -c %T /t; ulimit -n; echo "$0"'
    arguments = ["-e", "A=b c", "-w", "/usr", "-u", "7:8", "--group-add", "9", "-h", "box", "-v", f"{tmp_path}:/m:ro"]
    arguments += ["--tmpfs", "/t", "--ulimit", "nofile=64:64", "--entrypoint", "sh"]
    done = mamushka("run", "--rm", *ALONE, *arguments, "host", "-c", script, "zero")
    assert done.stdout.decode().split("\n")[:-1] == ["b c", "/usr", "7", "8 9", "box", "xtmpfs", "64", "zero"], (
        done.stderr
    )


@pytest.mark.parametrize("extra", [(), ("--read-only",), ("--pid", "host"), ("-u", "12:34")])
def test_an_init_starts_the_command_in_any_root(mamushka: Command, extra: tuple[str, ...]) -> None:
    script = "echo $0 $HOME; test $$ != 1; tr '\\0' ' ' </proc/$PPID/cmdline; exit 5"
    done = mamushka("run", "--rm", "--init", *extra, *ALONE, "host", "sh", "-c", script, "zero")
    home = b"/" if "-u" in extra else b"/root"
    assert done.returncode == 5 and done.stdout.startswith(b"zero %s\n/dev/init -- sh" % home), (
        done.stdout,
        done.stderr,
    )


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("sh", "-c", "kill -TERM $$"), 143, b""),
        (("sh", "-c", "kill -SEGV $$"), 139, b""),
        (("no-such-command",), 127, b"no-such-command: not found"),
        (("/etc/passwd",), 126, b"/etc/passwd: cannot be executed"),
        (("/no/such/command",), 127, b"/no/such/command: not found"),
    ],
)
def test_an_init_ends_as_the_command_ends(mamushka: Command, command: tuple[str, ...], code: int, said: bytes) -> None:
    done = mamushka("run", "--rm", "--init", *ALONE, "host", *command)
    assert done.returncode == code and said in done.stderr, done.stderr


def test_an_init_reaps_and_passes_signals_on(mamushka: Command, unique: str) -> None:
    script = "trap 'echo got hup' HUP; trap 'echo got term; exit 7' TERM; (sleep 0.01 &); echo ready; "
    script += "while :; do sleep 0.05; done"
    assert mamushka("run", "-d", "--init", "--name", unique, *ALONE, "host", "sh", "-c", script).returncode == 0
    eventually(lambda: b"ready" in mamushka("logs", unique).stdout, "the command began")
    assert mamushka("kill", "-s", "HUP", unique).returncode == 0
    eventually(lambda: b"got hup" in mamushka("logs", unique).stdout, "the signal arrived")
    states = mamushka("exec", unique, "sh", "-c", "cat /proc/[0-9]*/stat").stdout.decode()
    assert " Z " not in states, states
    assert mamushka("stop", unique).returncode == 0
    assert mamushka("wait", unique).stdout == b"7\n"
    assert b"got term" in mamushka("logs", unique).stdout


def test_the_id_is_printed_and_written(mamushka: Command, tmp_path: Path) -> None:
    path = tmp_path / "id"
    done = mamushka("run", "-d", *ALONE, "--cidfile", str(path), "host", "true")
    assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout.decode())
    assert path.read_text() == done.stdout.decode().strip()
    again = mamushka("run", "-d", *ALONE, "--cidfile", str(path), "host", "true")
    assert again.returncode == 125 and b"exists already" in again.stderr
    failed = mamushka("run", *ALONE, "--cidfile", str(tmp_path / "none"), "--pull", "never", "no/such")
    assert failed.returncode == 125 and not (tmp_path / "none").exists()


def test_debug_says_what_ran_behind_which_wall_and_how_long_it_took(mamushka: Command) -> None:
    done = mamushka("run", "--rm", "--debug", *ALONE, "host", "uname", "-s")
    assert done.stdout == b"Linux\n"
    account = done.stderr.decode()
    assert "command=uname -s runtime=container" in account
    assert re.search(r"\d+\.\d\d ms +\+\d+\.\d\d  plan\.execute", account)
    assert "status=0" in account


def test_signals_are_handed_on(mamushka: Command, roots: tuple[str, str]) -> None:
    script = 'trap "echo caught; exit 9" TERM; echo ready; while :; do sleep 0.05; done'
    with subprocess.Popen(
        [*program(roots), "run", "--rm", *ALONE, "host", "sh", "-c", script], stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGTERM)
        assert running.stdout.read() == b"caught\n"
        assert running.wait(20) == 9


def test_without_sig_proxy_the_workload_lives_on(mamushka: Command, roots: tuple[str, str]) -> None:
    command = [*program(roots), "run", "--sig-proxy=false", "--name", "survivor", *ALONE, "host"]
    with subprocess.Popen([*command, "sh", "-c", "echo ready; sleep 1000"], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGTERM)
        running.wait(20)
    assert mamushka("inspect", "-f", "{{.State.Status}}", "survivor").stdout == b"running\n"


def test_a_reader_that_goes_away_ends_the_command_and_not_the_workload(
    mamushka: Command, roots: tuple[str, str]
) -> None:
    command = [
        *program(roots),
        "run",
        "--name",
        "chatty",
        *ALONE,
        "host",
        "sh",
        "-c",
        "while echo y; do sleep 0.05; done",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == b"y\n"
        running.stdout.close()
        assert running.wait(20) == 141
        assert b"mamushka attach" in running.stderr.read()
    assert mamushka("inspect", "-f", "{{.State.Running}}", "chatty").stdout == b"true\n"


def test_logs_are_shown_followed_and_cut(mamushka: Command, roots: tuple[str, str]) -> None:
    script = "echo 1; echo 2 >&2; echo 3; sleep 1; echo 4"
    mamushka("run", "-d", "--name", "talker", *ALONE, "host", "sh", "-c", script)
    followed = mamushka("logs", "-f", "talker")
    assert (followed.stdout, followed.stderr) == (b"1\n3\n4\n", b"2\n")
    assert mamushka("logs", "--tail", "1", "talker").stdout == b"4\n"
    stamped = mamushka("logs", "-t", "-n", "1", "talker").stdout.decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z 4\n", stamped)
    assert mamushka("logs", "--since", "1h", "--until", "30m", "talker").stdout == b""


def test_exec(mamushka: Command) -> None:
    mamushka("run", "-d", "--name", "home", *ALONE, "-e", "A=1", "host", "sleep", "1000")
    done = mamushka(
        "exec",
        "-i",
        "-e",
        "B=2",
        "-w",
        "/usr",
        "-u",
        "5",
        "home",
        "sh",
        "-c",
        "cat; echo $A$B; pwd; id -u",
        input=b"in\n",
    )
    assert (done.returncode, done.stdout) == (0, b"in\n12\n/usr\n5\n"), done.stderr
    assert mamushka("exec", "home", "sh", "-c", "exit 3").returncode == 3
    assert mamushka("exec", "home", "sh", "-c", "kill -9 $$").returncode == 137
    assert mamushka("exec", "home", "nonexistent").returncode == 127
    assert mamushka("exec", "home", "/etc").returncode == 126
    assert mamushka("exec", "-d", "home", "touch", "/tmp/made").returncode == 0
    eventually(lambda: mamushka("exec", "home", "test", "-e", "/tmp/made").returncode == 0, "the detached command ran")
    missing = mamushka("exec", "nobody", "true")
    assert missing.returncode == 1 and b"nobody" in missing.stderr


def test_a_workloads_life(mamushka: Command) -> None:
    def status() -> str:
        return mamushka("inspect", "-f", "{{.State.Status}}", "life").stdout.decode().strip()

    created = mamushka("create", "--name", "life", *ALONE, "host", "sleep", "1000")
    assert created.returncode == 0 and status() == "created"
    assert mamushka("start", "life").stdout == b"life\n" and status() == "running"
    assert mamushka("pause", "life").returncode == 0 and status() == "paused"
    assert mamushka("unpause", "life").returncode == 0 and status() == "running"
    assert mamushka("restart", "-t", "0", "life").returncode == 0 and status() == "running"
    assert mamushka("rm", "life").returncode == 1
    assert mamushka("stop", "-t", "0", "life").returncode == 0 and status() == "exited"
    assert mamushka("rename", "life", "afterlife").returncode == 0
    assert mamushka("rm", "afterlife", "nobody").returncode == 1  # one fails, the other goes
    assert mamushka("inspect", "afterlife").returncode == 1
    assert mamushka("rm", "-f", "afterlife").returncode == 0


def test_start_and_attach(mamushka: Command) -> None:
    mamushka("create", "-i", "--name", "echo", *ALONE, "host", "cat")
    done = mamushka("start", "-ai", "echo", input=b"hello\n")
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    assert mamushka("start", "-a", "echo", "echo").returncode == 1


def test_pipes_that_somebody_made_non_blocking_lose_nothing(mamushka: Command, roots: tuple[str, str]) -> None:
    inside, blob = os.pipe(), os.urandom(400_000)
    outside = os.pipe()
    for fd in (inside[0], outside[1]):
        os.set_blocking(fd, False)
    command = [*program(roots), "run", "--rm", "-i", *ALONE, "host", "cat"]
    with subprocess.Popen(command, stdin=inside[0], stdout=outside[1]) as running:
        os.close(inside[0])
        os.close(outside[1])
        feeder = threading.Thread(target=lambda: (time.sleep(0.5), write_all(inside[1], blob), os.close(inside[1])))
        feeder.start()
        time.sleep(1)  # until the pipe is full
        with open(outside[0], "rb") as result:
            assert result.read() == blob
        feeder.join()
        assert running.wait(20) == 0


def test_a_directory_as_root(mamushka: Command, tmp_path: Path, unique: str) -> None:
    """--rootfs: any program in any directory, which stays as it was."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(peers.find("busybox"), root / "bin" / "sh")
    before = sorted(str(path) for path in root.rglob("*"))
    script = "echo made > /made; /bin/sh -c 'echo $0'; echo *"
    done = mamushka("run", "--name", unique, *ALONE, "--rootfs", str(root), "/bin/sh", "-c", script)
    assert done.returncode == 0 and b"made" in done.stdout.split(), done.stderr
    assert sorted(str(path) for path in root.rglob("*")) == before
    shown = json.loads(mamushka("inspect", unique).stdout)[0]
    assert shown["Config"]["Image"] == str(root) and shown["Image"] == f"rootfs:{root}"
    assert mamushka("start", "-a", unique).stdout.split() == done.stdout.split(), "its own top is still there"
    assert mamushka("system", "df").returncode == 0
    assert mamushka("rm", unique).returncode == 0
    relative = mamushka("run", "--rm", *ALONE, "--rootfs", os.path.relpath(root), "/bin/sh", "-c", "exit 3")
    assert relative.returncode == 3, relative.stderr


@pytest.mark.parametrize(
    ("place", "command", "reason"),
    [
        ("/no/such/root", "sh", b"is no directory"),
        ("/etc/passwd", "sh", b"is no directory"),
        ("/usr", "", b"no command"),
    ],
)
def test_a_root_that_is_none(mamushka: Command, place: str, command: str, reason: bytes) -> None:
    done = mamushka("run", "--rm", *ALONE, "--rootfs", place, *([command] if command else []))
    assert done.returncode == 125 and reason in done.stderr
    assert b"Unable to find image" not in done.stderr
