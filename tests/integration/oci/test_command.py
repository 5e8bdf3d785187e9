"""``mamushka-oci`` as a caller sees it: output, exit codes, files, sockets, wording."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import time
from typing import Any

import pytest

from tests.integration.oci.conftest import PROGRAM, Oci

pytestmark = pytest.mark.root


def test_version_and_help(oci: Oci) -> None:
    lines = oci("--version").stdout.splitlines()
    assert (
        lines[0].startswith("mamushka-oci version ")
        and lines[1].startswith("commit: ")
        and lines[2].startswith("spec: ")
    )
    assert "usage" in oci("--help").stdout
    for command in ("create", "run", "exec", "kill", "delete", "state", "list", "update", "events", "features"):
        assert f"mamushka-oci {command}" in oci(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly",), "no such command: 'fly'"),
        (("run",), '"run" takes: ID'),
        (("run", "--no-such-flag", "a"), "flag provided but not defined: --no-such-flag"),
        (("run", "a/b"), "invalid container ID format"),
        (("state", "nobody"), "container does not exist"),
        (("kill", "nobody"), "container does not exist"),
        (("delete", "nobody"), "container does not exist"),
        (("run", "-b", "/nowhere", "a"), "/nowhere/config.json not found"),
        (("kill", "nobody", "SIGFLY"), "unknown signal 'SIGFLY'"),
        (("run", "--preserve-fds", "many", "a"), "takes a number"),
    ],
)
def test_errors(oci: Oci, tmp_path: Any, arguments: tuple[str, ...], message: str) -> None:
    done = oci("--log", str(tmp_path / "log"), "--log-format", "json", *arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    if arguments != ("fly",):
        line = json.loads((tmp_path / "log").read_text().splitlines()[-1])
        assert line["level"] == "error" and message in line["msg"] and line["time"].endswith("Z")


def test_run(oci: Oci) -> None:
    oci.edit("sh", "-c", "echo out; echo err >&2; cat; exit 7")
    done = oci("run", "x", stdin=None, input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\nin\n", "err\n")
    oci.edit("sh", "-c", "kill -9 $$ & wait; sleep 1")
    oci.edit("nope")
    done = oci("run", "x")
    assert done.returncode == 127 and 'exec: "nope": executable file not found in $PATH' in done.stderr
    oci.edit("/bin")
    assert oci("run", "x").returncode == 126
    assert oci("list", "-q").stdout == ""


def test_the_life_of_a_container(oci: Oci, tmp_path: Any) -> None:
    oci.edit("sleep", "60")
    pid_file = tmp_path / "pid"
    assert oci.quietly("create", "--pid-file", str(pid_file), "x") == 0
    state = json.loads(oci("state", "x").stdout)
    assert state["status"] == "created" and state["pid"] == int(pid_file.read_text()) and state["bundle"] == oci.bundle
    assert "already exists" in oci("create", "x").stderr
    assert oci("start", "x").returncode == 0
    assert json.loads(oci("list", "--format", "json").stdout)[0]["status"] == "running"
    assert "x " in oci("list").stdout
    assert json.loads(oci("ps", "--format", "json", "x").stdout) == [state["pid"]]
    assert "sleep 60" in oci("ps", "x").stdout
    assert json.loads(oci("events", "--stats", "x").stdout)["data"]["pids"]["current"] == 1
    assert oci("update", "--pids-limit", "20", "--memory", "64m", "x").returncode == 0
    stats = json.loads(oci("events", "--stats", "x").stdout)["data"]
    assert stats["pids"]["limit"] == 20 and stats["memory"]["usage"]["limit"] == 64 << 20
    assert oci("update", "-r", "-", "x", stdin=None, input='{"pids": {"limit": 30}}').returncode == 0
    assert oci("pause", "x").returncode == 0
    assert json.loads(oci("state", "x").stdout)["status"] == "paused"
    assert "container is paused" in oci("exec", "x", "true").stderr
    assert oci("resume", "x").returncode == 0
    assert "container not paused" in oci("resume", "x").stderr
    assert "still running" in oci("delete", "x").stderr
    assert oci("kill", "x", "KILL").returncode == 0
    for _ in range(100):
        if json.loads(oci("state", "x").stdout)["status"] == "stopped":
            break
        time.sleep(0.02)
    assert "container not running" in oci("kill", "x", "15").stderr
    assert oci("delete", "x").returncode == 0
    assert oci("delete", "--force", "x").returncode == 0


def test_exec(oci: Oci, tmp_path: Any) -> None:
    oci.edit("sleep", "60")
    assert oci.quietly("run", "-d", "x") == 0
    done = oci(
        "exec",
        "-e",
        "A=b",
        "--cwd",
        "/bin",
        "-u",
        "7:8",
        "x",
        "sh",
        "-c",
        "echo $A $PWD; cat /proc/self/status; exit 3",
    )
    assert done.returncode == 3
    assert done.stdout.startswith("b /bin\n") and "Uid:\t7" in done.stdout and "Gid:\t8" in done.stdout
    assert oci("exec", "x", "nope").returncode == 127
    assert oci("exec", "x", "/bin").returncode == 126
    for user in ("root", "-1", "1e3", "4294967295", "1:2:3", "٣"):  # CVE-2026-30892: never as somebody else
        assert oci("exec", "-u", user, "x", "true").returncode == 1
    process = {"args": ["cat", "/proc/self/cwd/config"], "cwd": "/bin", "user": {"uid": 0, "gid": 0}}
    (tmp_path / "process.json").write_text(
        json.dumps({**process, "args": ["sh", "-c", "echo $0 $PPID"], "env": ["PATH=/bin"]})
    )
    assert oci("exec", "--process", str(tmp_path / "process.json"), "x").stdout == "sh 0\n"
    pid_file = tmp_path / "pid"
    assert oci.quietly("exec", "-d", "--pid-file", str(pid_file), "x", "sleep", "50") == 0
    assert int(pid_file.read_text()) in json.loads(oci("ps", "--format", "json", "x").stdout)


def test_a_console_socket(oci: Oci, tmp_path: Any) -> None:
    oci.edit("sh", "-c", "tty; stty size", terminal=True, consoleSize={"height": 11, "width": 22})
    assert "console socket" in oci("run", "-d", "x").stderr
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert oci.quietly("create", "--console-socket", path, "x") == 0
        line, _ = server.accept()
        with line:
            _, [(_, _, rights)], _, _ = line.recvmsg(100, socket.CMSG_SPACE(4))
    console = array.array("i", rights)[0]
    assert oci("start", "x").returncode == 0
    text = b""
    while b"11 22" not in text:
        text += os.read(console, 1000)
    assert b"/dev/pts/0" in text
    os.close(console)


def test_preserved_descriptors(oci: Oci, tmp_path: Any) -> None:
    oci.edit("sh", "-c", "cat <&3")
    (tmp_path / "kept").write_text("kept")
    script = f'exec 3<{tmp_path}/kept; exec "$@"'
    command = ["sh", "-c", script, "sh", PROGRAM, "--root", oci.state, "run", "--preserve-fds", "1", "x"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, cwd=oci.bundle, timeout=60, check=False
    )
    assert done.stdout == b"kept", done.stderr


def test_debug_prints_the_plan(oci: Oci) -> None:
    done = oci("--debug", "run", "x")
    assert done.returncode == 0
    for words in ("mount -t proc", "pivot_root", "execve true"):
        assert words in done.stderr


def test_features(oci: Oci) -> None:
    features = json.loads(oci("features").stdout)
    assert features["ociVersionMin"] == "1.0.0" and "rbind" in features["mountOptions"]
    assert "CAP_CHOWN" in features["linux"]["capabilities"] and "pid" in features["linux"]["namespaces"]


def test_a_bundle_that_is_none(oci: Oci) -> None:
    for content in ("", "[]", "{", '{"ociVersion": "9.9.9"}', '{"ociVersion": "1.0.0"}'):
        with open(f"{oci.bundle}/config.json", "w") as file:
            file.write(content)
        done = oci("run", "x")
        assert done.returncode == 1 and "config.json" in done.stderr and "Traceback" not in done.stderr
