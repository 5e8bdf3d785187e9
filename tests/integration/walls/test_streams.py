"""What goes in and comes out, whole and in order, by pipes and by a terminal."""

from __future__ import annotations

import hashlib
import os
import re
import time

import pytest

from tests.integration.cli.test_terminal import Terminal
from tests.integration.walls.conftest import Wall, eventually

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab, pytest.mark.slow]


def test_streams_stay_apart_and_binary_passes_both_ways(wall: Wall) -> None:
    blob = os.urandom(3_000_001)
    done = wall.once("-i", "--", "sh", "-c", "cat; echo err >&2", input=blob)
    assert done.stderr == b"err\n"
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(blob).digest()


def test_what_is_nowhere_is_nowhere_inside(wall: Wall, box: str) -> None:
    """Without -i standard input is /dev/null, the program's own: it can be told from a pipe that has ended."""
    look = ("sh", "-c", "readlink /proc/self/fd/0; stat -L -c %t:%T /dev/stdin")
    assert wall.once(*look).stdout == b"/dev/null\n1:3\n"
    assert wall.exec(box, *look).stdout == b"/dev/null\n1:3\n"


def test_ten_megabytes_are_whole_and_in_order(wall: Wall) -> None:
    script = "i=0; while [ $i -lt 10 ]; do echo out $i; head -c 1000000 /dev/zero; echo err $i >&2; i=$((i+1)); done"
    done = wall.once("sh", "-c", script)
    assert done.stdout == b"".join(b"out %d\n" % number + bytes(1_000_000) for number in range(10))
    assert done.stderr == b"".join(b"err %d\n" % number for number in range(10))


def test_what_is_not_read_holds_nothing_up(wall: Wall, box: str) -> None:
    done = wall.exec(box, "-i", "--", "sh", "-c", "head -c 10 >/dev/null; echo done", input=bytes(2_000_000))
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_logs_are_followed_to_the_end(wall: Wall) -> None:
    name = wall.begin("sh", "-c", "echo 1; echo 2 >&2; echo 3; sleep 1; echo 4")
    followed = wall("logs", "-f", name)
    assert (followed.stdout, followed.stderr) == (b"1\n3\n4\n", b"2\n")
    stamped = wall("logs", "-t", "-n", "1", name).stdout.decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z 4\n", stamped)


def test_a_shell_on_a_terminal(wall: Wall) -> None:
    terminal = Terminal([*wall.program, *wall.words("--rm", "-it", "--", "sh")])
    terminal.expect(b"# ", 60)
    terminal.resize(33, 77)
    time.sleep(0.5)
    terminal.type(b"stty size; tty\n")
    terminal.expect(b"33 77\r\n/dev/pts/0\r\n")
    terminal.type(b"sleep 1000\n")
    terminal.expect(b"sleep 1000\r\n")
    time.sleep(0.5)
    terminal.type(b"\x03")
    terminal.expect(b"# ")
    terminal.type(b"exit 4\n")
    assert terminal.ended() == 4


def test_a_further_process_on_a_terminal(wall: Wall, box: str) -> None:
    terminal = Terminal([*wall.program, "exec", "-it", box, "sh", "-c", "test -t 0 && stty size; read x; exit 6"])
    terminal.expect(b"\r\n")
    terminal.type(b"on\n")
    assert terminal.ended() == 6


def test_a_further_process_is_given_what_it_asks_for(wall: Wall, box: str) -> None:
    script = "cat; echo $A$B; pwd; id -u; id -g; hostname"
    words = ("-i", "-e", "B=2", "-w", "/usr", "-u", "5:6", "--", "sh", "-c", script)
    done = wall.exec(box, *words, input=b"in\n")
    assert (done.returncode, done.stdout) == (0, b"in\n12\n/usr\n5\n6\nhome\n"), done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -9 $$"), 137),
        (("nonexistent",), 127),
        (("/etc",), 126),
        (("/etc/passwd",), 126),
    ],
)
def test_how_a_further_process_ends(wall: Wall, box: str, command: tuple[str, ...], code: int) -> None:
    done = wall.exec(box, *command)
    assert done.returncode == code, done.stderr.decode()


def test_a_detached_further_process(wall: Wall, box: str) -> None:
    assert wall.exec(box, "-d", "--", "touch", "/tmp/made").returncode == 0
    eventually(lambda: wall.exec(box, "test", "-e", "/tmp/made").returncode == 0, "the detached command ran")


def test_start_and_attach(wall: Wall) -> None:
    created = wall("create", *wall.behind, "--network", "none", "-i", "--name", "echoes", wall.image, "cat")
    assert created.returncode == 0, created.stderr.decode()
    done = wall("start", "-ai", "echoes", input=b"hello\n")
    assert (done.returncode, done.stdout) == (0, b"hello\n")


def test_detach_keys_leave_it_running_and_attach_comes_back(wall: Wall) -> None:
    terminal = Terminal([*wall.program, *wall.words("-it", "--name", "away", "--", "sh")])
    terminal.expect(b"# ", 60)
    terminal.type(b"X=kept\n\x10\x11")
    terminal.expect(b"mamushka attach")
    assert terminal.ended() == 0
    assert wall.show("away", "{{.State.Status}}") == "running"
    terminal = Terminal([*wall.program, "attach", "--detach-keys", "ctrl-x", "away"])
    time.sleep(1.5)
    terminal.type(b"echo $X again\n")
    terminal.expect(b"kept again")
    terminal.type(b"\x18")
    assert terminal.ended() == 0
    assert wall("rm", "-f", "away").returncode == 0
