"""How a workload ends, and what is left of it: the same behind each wall."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.integration.walls.conftest import Wall, eventually

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab, pytest.mark.slow]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("sh", "-c", "exit 7"), 7, b""),
        (("sh", "-c", "sh -c 'kill -TERM $$'; exit $?"), 143, b""),
        (("/etc",), 126, b"is a directory"),
        (("/etc/passwd",), 126, b"permission denied"),
        (("nonexistent",), 127, b"not found"),
    ],
)
def test_the_exit_code_is_the_programs_or_says_why_there_was_none(
    wall: Wall, command: tuple[str, ...], code: int, said: bytes
) -> None:
    done = wall.once(*command)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr.decode()
    assert said in done.stderr.lower()
    assert b"Traceback" not in done.stderr


def test_nothing_is_left_after_rm(wall: Wall) -> None:
    before = wall("ps", "-aq").stdout
    assert wall.once("-v", "/data", "--", "touch", "/data/x").returncode == 0
    assert wall("ps", "-aq").stdout == before
    assert wall("volume", "ls", "-q").stdout == b""


def test_a_life_of_stop_start_and_kill(wall: Wall) -> None:
    name = wall.begin("sh", "-c", "echo born; trap 'exit 9' TERM; while :; do sleep 0.1; done")
    wall.told(name, b"born")
    assert wall("rm", name).returncode == 1
    assert wall("stop", name).returncode == 0
    assert wall("wait", name).stdout == b"9\n"
    assert wall.show(name, "{{.State.Status}} {{.State.ExitCode}}") == "exited 9"
    assert wall("start", name).returncode == 0
    assert wall("kill", name).returncode == 0
    assert wall("wait", name).stdout == b"137\n"
    assert wall("logs", name).stdout in (b"born\nborn\n", b"born\n")
    assert wall("rm", name).returncode == 0
    assert wall("inspect", name).returncode == 1


def test_a_program_that_is_killed_by_a_signal(wall: Wall) -> None:
    """By --init, which passes it on and ends as it did; the first process itself cannot kill itself."""
    name = wall.begin("--init", "--", "sh", "-c", "echo ready; exec sleep 1000")
    wall.told(name, b"ready")
    assert b"init" in wall.exec(name, "cat", "/proc/1/cmdline").stdout
    assert wall("kill", "-s", "INT", name).returncode == 0
    assert wall("wait", name).stdout == b"130\n"


def test_an_init_reaps(wall: Wall) -> None:
    name = wall.begin("--init", "--", "sh", "-c", "(sleep 0.01 &); echo ready; sleep 1000")
    wall.told(name, b"ready")
    time.sleep(0.5)
    states = wall.exec(name, "sh", "-c", "cat /proc/[0-9]*/stat").stdout.decode()
    assert " Z " not in states, states
    assert wall("rm", "-f", name).returncode == 0


def test_signals_to_the_command_reach_the_workload(wall: Wall) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    words = [*wall.program, *wall.words("--rm", "--", "sh", "-c", script)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.read() == b"caught\n"
        assert running.wait(30) == 9


def test_out_of_memory_is_told(wall: Wall) -> None:
    """tail keeps all of a line that never ends."""
    name = wall.begin("-m", "96m", "--", "tail", "/dev/zero")
    assert wall("wait", name).stdout == b"137\n"
    assert wall.show(name, "{{.State.OOMKilled}}") == "true"


def test_what_fails_is_started_again_as_often_as_asked(wall: Wall) -> None:
    name = wall.begin("--restart", "on-failure:1", "--", "sh", "-c", "echo tried; exit 3")
    eventually(lambda: wall.show(name, "{{.State.Status}}") == "exited", "it gave up", 60)
    assert wall("logs", name).stdout == b"tried\ntried\n"
    assert wall.show(name, "{{.RestartCount}} {{.State.ExitCode}}") == "1 3"
