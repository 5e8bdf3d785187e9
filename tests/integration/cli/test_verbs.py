"""The other verbs: what they show has Docker's shape, and what they copy arrives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = pytest.mark.root
ALONE = ("--network", "none")


@pytest.fixture
def box(mamushka: Command) -> str:
    done = mamushka("run", "-d", "--name", "box", *ALONE, "-l", "tier=web", "-v", "/data", "host", "sleep", "1000")
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def test_ps(mamushka: Command, box: str) -> None:
    header, row = mamushka("ps").stdout.decode().splitlines()
    assert header.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert row.startswith(box[:12]) and '"sleep 1000"' in row and "Up " in row and row.endswith("box")
    assert mamushka("ps", "-q", "--no-trunc").stdout.decode() == box + "\n"
    assert mamushka("ps", "--format", '{{.Names}} {{.Label "tier"}}').stdout == b"box web\n"
    assert json.loads(mamushka("ps", "--format", "json").stdout)["Names"] == "box"
    assert mamushka("ps", "-q", "--filter", "label=tier=db").stdout == b""
    assert mamushka("ps", "-q", "--filter", "name=bo").stdout.decode() == box[:12] + "\n"
    assert mamushka("ps", "--filter", "nonsense").returncode == 1
    assert mamushka("ps", "--format", "{{.Nonsense}}").returncode == 1
    assert b"0B" in mamushka("ps", "-s").stdout


def test_inspect(mamushka: Command, box: str) -> None:
    (document,) = json.loads(mamushka("inspect", "box").stdout)
    assert (document["Id"], document["Name"], document["Config"]["Labels"]) == (box, "/box", {"tier": "web"})
    assert document["State"]["Running"] and document["State"]["Pid"] > 0
    assert document["Mounts"][0]["Destination"] == "/data" and document["Mounts"][0]["Type"] == "volume"
    volume = document["Mounts"][0]["Name"]
    assert json.loads(mamushka("inspect", volume).stdout)[0]["Name"] == volume
    both = mamushka("inspect", "nobody", "box")
    assert both.returncode == 1 and json.loads(both.stdout)[0]["Id"] == box
    assert mamushka("inspect", "--type", "image", "box").returncode == 1


def test_top_stats_diff_and_df(mamushka: Command, box: str) -> None:
    assert b"sleep 1000" in mamushka("top", "box").stdout
    assert b"sleep" in mamushka("top", "box", "-o", "pid,comm").stdout
    stats = mamushka("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}").stdout
    assert stats == b"box 1\n"
    assert json.loads(mamushka("stats", "--no-stream", "--format", "json").stdout)["NetIO"] == "0B / 0B"
    head = mamushka("stats", "--no-stream").stdout.splitlines()[0]
    assert b"MEM %" in head and head.index(b"NET I/O") < head.index(b"BLOCK I/O")
    mamushka("exec", "box", "touch", "/root/new")
    assert b"A /root/new\n" in mamushka("diff", "box").stdout
    assert b"Containers" in mamushka("system", "df").stdout


def test_update_and_port(mamushka: Command, box: str) -> None:
    assert mamushka("update", "--memory", "64m", "box").returncode == 0
    assert mamushka("inspect", "-f", "{{.HostConfig.Memory}}", "box").stdout == b"67108864\n"
    assert mamushka("update", "box").returncode == 1
    assert mamushka("port", "box").stdout == b""
    assert mamushka("port", "box", "80").returncode == 1


def test_copying_by_dockers_rules(mamushka: Command, box: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(b"content")
    (source / "sub" / "deep").write_bytes(os.urandom(70_000))
    os.symlink("file", source / "link")

    def inside(*command: str) -> str:
        return mamushka("exec", "box", *command).stdout.decode()

    assert mamushka("cp", f"{source}/file", "box:/root/renamed").returncode == 0
    assert inside("cat", "/root/renamed") == "content"
    assert mamushka("cp", f"{source}/file", "box:/root").returncode == 0
    assert inside("cat", "/root/file") == "content"
    assert mamushka("cp", str(source), "box:/root").returncode == 0  # an existing directory takes it in
    assert inside("sh", "-c", "ls /root/source; readlink /root/source/link") == "file\nlink\nsub\nfile\n"
    assert mamushka("cp", str(source), "box:/root/fresh").returncode == 0  # a new name holds what is in it
    assert inside("ls", "/root/fresh") == "file\nlink\nsub\n"
    assert mamushka("cp", f"{source}/.", "box:/tmp").returncode == 0
    assert inside("ls", "/tmp") == "file\nlink\nsub\n"
    assert mamushka("cp", str(source), "box:/root/file").returncode == 1
    assert mamushka("cp", str(source), "box:/no/such/place").returncode == 1
    assert mamushka("cp", "box:/a", "box:/b").returncode == 1

    out = tmp_path / "out"
    assert mamushka("cp", "box:/root/source", str(out)).returncode == 0
    assert (out / "sub" / "deep").read_bytes() == (source / "sub" / "deep").read_bytes()
    assert os.readlink(out / "link") == "file"
    assert mamushka("cp", "box:/root/source/file", str(out / "again")).returncode == 0
    assert (out / "again").read_bytes() == b"content"
    assert mamushka("cp", "-L", "box:/root/source/link", str(out / "followed")).returncode == 0
    assert (out / "followed").read_bytes() == b"content" and not (out / "followed").is_symlink()
    archive = mamushka("cp", "box:/root/source", "-").stdout
    assert mamushka("cp", "-", "box:/tmp", input=archive).returncode == 0
    assert inside("cat", "/tmp/source/file") == "content"


def test_copying_from_what_has_ended(mamushka: Command, tmp_path: Path) -> None:
    mamushka("run", "--name", "gone", *ALONE, "host", "sh", "-c", "echo kept > /root/file")
    assert mamushka("cp", "gone:/root/file", str(tmp_path / "file")).returncode == 0
    assert (tmp_path / "file").read_text() == "kept\n"


def test_volumes(mamushka: Command) -> None:
    assert mamushka("volume", "create", "--label", "a=b", "kept").stdout == b"kept\n"
    mamushka("run", "--rm", *ALONE, "-v", "kept:/v", "host", "sh", "-c", "echo x > /v/file")
    done = mamushka("run", "--rm", *ALONE, "-v", "kept:/v:ro", "host", "sh", "-c", "cat /v/file; touch /v/y")
    assert done.stdout == b"x\n" and done.returncode == 1
    assert mamushka("volume", "ls", "-q", "--filter", "label=a=b").stdout == b"kept\n"
    assert json.loads(mamushka("volume", "inspect", "kept").stdout)[0]["Labels"] == {"a": "b"}
    assert mamushka("volume", "rm", "kept").returncode == 0
    assert mamushka("volume", "rm", "kept").returncode == 1
    assert mamushka("volume", "rm", "-f", "kept").returncode == 0


def test_volumes_from_another_workload(mamushka: Command, box: str) -> None:
    mamushka("exec", "box", "sh", "-c", "echo shared > /data/file")
    done = mamushka(
        "run", "--rm", *ALONE, "--volumes-from", "box:ro", "host", "sh", "-c", "cat /data/file; touch /data/x"
    )
    assert done.stdout == b"shared\n" and done.returncode == 1


def test_prunes_ask_first(mamushka: Command) -> None:
    mamushka("run", "--name", "old", *ALONE, "host", "true")
    refused = mamushka("container", "prune", input=b"n\n")
    assert refused.returncode == 1 and b"Are you sure" in refused.stderr
    done = mamushka("container", "prune", input=b"y\n")
    assert done.returncode == 0 and b"Deleted Containers:" in done.stdout
    assert mamushka("system", "prune", "-af", "--volumes").returncode == 0
    aged = mamushka("system", "prune", "-f", "--volumes", "--filter", "until=1h")
    assert aged.returncode == 1 and b"not supported" in aged.stderr
    assert mamushka("system", "prune", "-f", "--filter", "until=1h").returncode == 0


def test_events_tell_what_happened(mamushka: Command) -> None:
    mamushka("run", "--rm", "--name", "brief", *ALONE, "host", "true")
    lines = mamushka("events", "--since", "1h", "--until", "0s", "--format", "{{.Type}} {{.Action}}").stdout.decode()
    assert [line for line in lines.splitlines() if line.startswith("container")][:4] == [
        "container create", "container start", "container die", "container destroy",
    ]  # fmt: skip


def test_the_doctor_finds_what_the_tests_need(mamushka: Command) -> None:
    done = mamushka("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["namespaces"]["status"] == findings["overlay"]["status"] == "ok"
    assert all(finding["reason"] and (finding["status"] == "ok" or finding["mend"]) for finding in findings.values())
    assert done.returncode == int(any(finding["status"] == "failed" for finding in findings.values()))


def test_completion_knows_what_is_there(mamushka: Command, box: str) -> None:
    assert mamushka("__complete", "exec", "bo").stdout == b"box\n"
    assert mamushka("__complete", "run", "ho").stdout == b"host\n"
    for shell in ("bash", "zsh", "fish"):
        assert b"__complete" in mamushka("completion", shell).stdout


@pytest.mark.registry
def test_images(mamushka: Command, busybox_reference: str, tmp_path: Path) -> None:
    pulled = mamushka("pull", busybox_reference)
    assert pulled.returncode == 0, pulled.stderr
    assert b"Pull complete" in pulled.stdout and pulled.stdout.endswith(busybox_reference.encode() + b"\n")
    repository, _, tag = busybox_reference.rpartition(":")
    row = mamushka("images", "--format", "{{.Repository}} {{.Tag}}").stdout.decode()
    assert row == f"{repository} {tag}\n"
    assert mamushka("tag", busybox_reference, "mine:1").returncode == 0
    (document,) = json.loads(mamushka("image", "inspect", "mine:1").stdout)
    assert sorted(document["RepoTags"]) == sorted(["mine:1", busybox_reference]) and document["Os"] == "linux"
    assert mamushka("run", "--rm", *ALONE, "mine:1", "echo", "hi").stdout == b"hi\n"
    assert len(mamushka("history", "-q", "mine:1").stdout.splitlines()) >= 1
    saved = mamushka("save", "mine:1", "-o", str(tmp_path / "image.tar"))
    assert saved.returncode == 0, saved.stderr
    assert mamushka("rmi", "mine:1").stdout == b"Untagged: mine:1\n"
    removed = mamushka("rmi", busybox_reference).stdout
    assert removed.startswith(f"Untagged: {busybox_reference}\n".encode()) and b"Deleted: sha256:" in removed
    assert mamushka("load", "-i", str(tmp_path / "image.tar")).stdout == b"Loaded image: mine:1\n"
    assert mamushka("images", "-q", "mine").stdout != b""
    missing = mamushka("run", "--rm", *ALONE, "--pull", "never", busybox_reference)
    assert missing.returncode == 125
    pulled_to_run = mamushka("run", "--rm", *ALONE, busybox_reference, "echo", "hi")
    assert pulled_to_run.stdout == b"hi\n" and b"Unable to find image" in pulled_to_run.stderr


@pytest.mark.registry
def test_login_keeps_what_the_registry_has_agreed_to(
    mamushka: Command, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    done = mamushka("login", "-u", "me", "--password-stdin", registry, input=b"secret\n")
    assert (done.returncode, done.stdout) == (0, b"Login Succeeded\n"), done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["auths"] == {registry: {"auth": "bWU6c2VjcmV0"}}
    assert mamushka("logout", registry).stdout == f"Removing login credentials for {registry}\n".encode()
    assert mamushka("logout", registry).stdout == f"Not logged in to {registry}\n".encode()
    unreachable = mamushka("login", "-u", "me", "-p", "x", "127.0.0.1:1")
    assert unreachable.returncode == 1 and b"127.0.0.1:1" in unreachable.stderr
    assert json.loads((tmp_path / "config.json").read_text()).get("auths", {}) == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [("mamushka ru", "run"), ("mamushka run --pull=al", "always"), ("mamushka run --pull ", "always missing never")],
)
def test_bash_completes(line: str, words: str) -> None:
    script = 'eval "$(mamushka completion bash)"; COMP_LINE=$1; COMP_POINT=${#1}; _mamushka; echo "${COMPREPLY[@]}"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", line],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    )
    assert (done.stdout, done.stderr) == (words + "\n", "")
