"""podman, containerd, docker and buildah with us below, and with runc: what they tell is the same."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import peers
from tests.dockerd import NO_NETWORK, dockerd
from tests.images import Layout
from tests.integration.oci.transcript import PROGRAM, Transcript, assert_equal

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.slow]

# Says so, then waits to be told to end; it answers a SIGTERM with 7.
LIFE = 'trap "exit 7" TERM; echo started; echo complained >&2; while :; do sleep 0.05; done'
EXECUTED = (
    ("sh", "-c", "echo in; echo err >&2; exit 3"),
    ("no-such-program",),
    ("/bin",),
    ("/etc/file",),
)


# The sentence that people and programs tell errors by; what stands around it is each runtime's own.
_SENTENCES = (
    (re.compile(r'exec: \\*"([^"\\]*)\\*": .*no such file.*'), r"\1: not there"),
    (re.compile(r'exec: \\*"([^"\\]*)\\*": .*not found.*'), r"\1: not found"),
    (
        re.compile(r'exec: \\*"([^"\\]*)\\*": .*(permission denied|is a directory|format error).*'),
        r"\1: cannot be executed",
    ),
    (re.compile(r'chdir to cwd \(\\*"([^"\\]*)\\*"\).*'), r"\1: no directory"),
    (re.compile(r".*exec format error.*"), "cannot be executed"),
)


def reworded(text: str) -> str:
    """Error texts without which step failed in whose words, and without hints."""
    lines = []
    for line in text.splitlines():
        for pattern, word in _SENTENCES:
            found = pattern.search(line)
            if found:
                line = pattern.sub(word, line)
                line = re.sub(r"OCI runtime[\w ]*(error|failed).*: (?=\S+: (not|cannot|no) )", "OCI runtime: ", line)
                line = re.sub(
                    r'(time="?TIME"? level=error msg="?)?RUNTIME[\w ]*: ?.*: (?=\S+: (not|cannot|no) )', "", line
                )
                line = re.sub(r'(time="?TIME"? level=error msg="?)?RUNTIME[\w ]*: (?=\S+: (not|cannot|no) )', "", line)
                break
        line = re.sub(r"exit status \S+", "exit status", line)
        # ctr asks for the terminal's size when the process may have ended already, and says so by chance.
        if line and not line.startswith("hint:") and "resize pty" not in line:
            lines.append(line)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root with busybox and a file that is no program, as a tar."""
    peers.need_root()
    peers.need("busybox", "runc")
    base = tmp_path_factory.mktemp("callers")
    (base / "file").write_text("no program\n")
    with tarfile.open(base / "busy.tar", "w") as made:
        for name in ("bin", "etc", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            made.addfile(directory)
        made.add(peers.find("busybox"), "bin/busybox")
        made.add(base / "file", "etc/file")
        for name in ("sh", "echo", "sleep", "tty", "stty", "id", "cat", "true", "env"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            made.addfile(link)
    return str(base / "busy.tar")


# podman

LIMITS = ("--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000", "--network", "none")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, archive: str) -> Iterator[list[str]]:
    peers.need("podman")
    base = tmp_path_factory.mktemp("podman")
    command = [
        peers.find("podman"), "--root", f"{base}/root", "--runroot", f"{base}/run", "--storage-driver", "vfs",
        "--cgroup-manager", "cgroupfs",
    ]  # fmt: skip
    peers.run(*command, "import", archive, "busy")
    with contextlib.chdir(base):  # conmon leaves a file named oom where it is called
        yield command
    for words in (("rm", "-af", "-t", "0"), ("rmi", "-af")):
        subprocess.run([*command, *words], capture_output=True, check=False)
    peers.leave(base)
    for hierarchy in os.listdir("/sys/fs/cgroup"):
        for place in ("libpod_parent/conmon", "libpod_parent"):
            try:
                os.rmdir(f"/sys/fs/cgroup/{hierarchy}/{place}")
            except OSError:
                continue


def _podman(command: list[str], runtime: str) -> Transcript:
    told = Transcript([*command, "--runtime", runtime], errors=reworded)
    told("run", "--rm", *LIMITS, "busy", "sh", "-c", "cat; echo hi; echo err >&2; id -u; exit 5", input="unheard")
    told("run", "--rm", "-i", *LIMITS, "busy", "cat", input="through")
    for program in ("no-such-program", "/no/such/program", "/bin", "/etc/file"):
        told("run", "--rm", *LIMITS, "busy", program)
    told("run", "--rm", *LIMITS, "-u", "7:8", "-w", "/bin", "-e", "A=b", "busy", "sh", "-c", "id; echo $PWD $A")
    told(
        "run",
        "--rm",
        *LIMITS,
        "--read-only",
        "--tmpfs",
        "/t",
        "-m",
        "64m",
        "busy",
        "sh",
        "-c",
        "echo > /t/x; echo > /x",
    )
    told.on_a_terminal(
        "run",
        "--rm",
        "-it",
        *LIMITS,
        "busy",
        "sh",
        "-c",
        "tty; until stty size 2>/dev/null; do sleep 0.05; done; read x; echo got $x",
        typed="word\n",
        after="30 90",
    )
    told("run", "-d", "--name", "life", *LIMITS, "busy", "sh", "-c", LIFE)
    told.until("started", "logs", "life")
    told("logs", "life")
    for words in EXECUTED:
        told("exec", "life", *words)
    told("exec", "-u", "7:8", "-w", "/bin", "-e", "A=b", "life", "sh", "-c", "id; echo $PWD $A")
    told("exec", "-w", "/nowhere", "life", "true")
    # No size here: podman sends it when it may be too early for conmon, whose terminal comes with the process.
    told.on_a_terminal(
        "exec",
        "-it",
        "life",
        "sh",
        "-c",
        "tty; read x; echo got $x",
        typed="word\n",
        after="/dev/pts",
    )
    told("pause", "life")
    told("inspect", "--format", "{{.State.Status}} {{.State.Running}}", "life")
    told("exec", "life", "true")
    told("pause", "life")
    told("unpause", "life")
    told("unpause", "life")
    told("rm", "life")
    told("kill", "-s", "TERM", "life")
    told("wait", "life")
    told("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", "life")
    told("kill", "life")
    told("exec", "life", "true")
    told("start", "life")
    told("stop", "-t", "20", "life")
    told("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "life")
    told("rm", "life")
    told(
        "run",
        "--name",
        "eater",
        *LIMITS,
        "-m",
        "16m",
        "--memory-swap",
        "16m",
        "busy",
        "sh",
        "-c",
        "s=0123456789abcdef; while :; do s=$s$s; done",
    )
    told("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", "eater")
    told("rm", "eater")
    return told


def test_podman_tells_the_same(podman: list[str]) -> None:
    assert_equal(_podman(podman, PROGRAM), _podman(podman, peers.find("runc")))


# docker


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory, archive: str) -> Iterator[list[str]]:
    peers.need("docker", "dockerd")
    base = str(tmp_path_factory.mktemp("d"))
    options = ["--add-runtime", f"ours={PROGRAM}", "--add-runtime", f"theirs={peers.find('runc')}", *NO_NETWORK]
    with dockerd(base, *options, "--storage-driver=vfs", "--cgroup-parent", "mamushka-docker") as client:
        peers.run(*client, "import", archive, "busy")
        yield client


def _docker(command: list[str], runtime: str) -> Transcript:
    told = Transcript(command, errors=reworded)
    run = ("run", "--runtime", runtime, "--network", "none")
    told(*run, "--rm", "busy", "sh", "-c", "echo hi; echo err >&2; id -u; exit 5")
    told(*run, "--rm", "-i", "busy", "cat", input="through")
    for program in ("no-such-program", "/no/such/program", "/bin", "/etc/file"):
        told(*run, "--rm", "busy", program)
    told(*run, "--rm", "-u", "7:8", "-w", "/made/here", "-e", "A=b", "busy", "sh", "-c", "id; echo $PWD $A")
    told(*run, "--rm", "--read-only", "--tmpfs", "/t", "-m", "64m", "busy", "sh", "-c", "echo > /t/x; echo > /x")
    told.on_a_terminal(
        *run, "--rm", "-it", "busy", "sh", "-c", "tty; read x; echo got $x", typed="word\n", after="/dev/pts"
    )
    told(*run, "-d", "--name", "life", "busy", "sh", "-c", LIFE)
    told.until("started", "logs", "life")
    told("logs", "life")
    for words in EXECUTED:
        told("exec", "life", *words)
    told("exec", "-u", "7:8", "-w", "/bin", "-e", "A=b", "life", "sh", "-c", "id; echo $PWD $A")
    told("exec", "-w", "/nowhere", "life", "true")
    told.on_a_terminal("exec", "-it", "life", "sh", "-c", "tty; read x; echo got $x", typed="word\n", after="/dev/pts")
    told("pause", "life")
    told("inspect", "--format", "{{.State.Status}} {{.State.Paused}}", "life")
    told("exec", "life", "true")
    told("pause", "life")
    told("unpause", "life")
    told("unpause", "life")
    told("update", "-m", "100m", "--memory-swap", "200m", "--cpu-shares", "512", "life")
    told("rm", "life")
    told("kill", "-s", "TERM", "life")
    told("wait", "life")
    told("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", "life")
    told("kill", "life")
    told("exec", "life", "true")
    told("start", "life")
    told("stop", "-t", "20", "life")
    told("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "life")
    told("rm", "life")
    told(
        *run,
        "--name",
        "eater",
        "-m",
        "16m",
        "--memory-swap",
        "16m",
        "busy",
        "sh",
        "-c",
        "s=0123456789abcdef; while :; do s=$s$s; done",
    )
    told("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", "eater")
    told("rm", "eater")
    return told


def test_docker_tells_the_same(docker: list[str]) -> None:
    assert_equal(_docker(docker, "ours"), _docker(docker, "theirs"))


# containerd


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory, busybox_image: Layout) -> Iterator[list[str]]:
    """The words of a ctr that speaks to a containerd with places, and a /run, of its own; the image is there."""
    peers.need("containerd", "ctr", "skopeo")
    base = str(tmp_path_factory.mktemp("c"))
    with open(f"{base}/config.toml", "w") as file:
        file.write(
            f'version = 2\nroot = "{base}/root"\nstate = "{base}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{base}/sock"\n[debug]\nlevel = "warn"\n'
        )
    script = f'mount -t tmpfs none /run; exec "$0" --config {base}/config.toml'
    with open(f"{base}/log", "wb") as log:
        daemon = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, peers.find("containerd")], stdout=log, stderr=log,
            env={**os.environ, "PATH": peers.PATH},
        )  # fmt: skip
    namespace = f"mamushka-test-{os.getpid()}"
    ctr = [
        "nsenter",
        "--mount",
        f"--target={daemon.pid}",
        peers.find("ctr"),
        "--address",
        f"{base}/sock",
        "--namespace",
        namespace,
    ]
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode:
            with open(f"{base}/log") as file:
                assert daemon.poll() is None and time.monotonic() < deadline, file.read()[-800:]
            time.sleep(0.1)
        peers.run("skopeo", "copy", "--quiet", busybox_image.skopeo, f"oci-archive:{base}/busybox.tar:busybox:latest")
        peers.run(*ctr, "images", "import", "--snapshotter", "native", "--base-name", "busybox", f"{base}/busybox.tar")
        yield ctr
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)
        for hierarchy in os.listdir("/sys/fs/cgroup"):
            try:
                os.rmdir(f"/sys/fs/cgroup/{hierarchy}/{namespace}")
            except OSError:
                continue


def _containerd(command: list[str], runtime: str) -> Transcript:
    told = Transcript(command, errors=reworded)
    image = next(line.split()[0] for line in told("images", "ls", note=False).splitlines() if "busybox" in line)
    run = ("run", "--runc-binary", runtime, "--snapshotter", "native")
    told(*run, "--rm", image, "one", "sh", "-c", "echo hi; echo err >&2; id -u; exit 5")
    for program in ("no-such-program", "/no/such/program", "/bin"):
        told(*run, "--rm", image, "two", program)
    told(
        *run,
        "--rm",
        "--cwd",
        "/made/here",
        "--env",
        "A=b",
        "--read-only",
        image,
        "three",
        "sh",
        "-c",
        "echo $A; pwd; echo > /x",
    )
    told(*run, "--rm", "--cwd", "/made/here", "--env", "A=b", image, "three", "sh", "-c", "echo $A; pwd")
    told.on_a_terminal(
        *run, "--rm", "-t", image, "four", "sh", "-c", "tty; read x; echo got $x", typed="word\n", after="/dev/pts"
    )
    told(*run, "-d", image, "life", "sh", "-c", LIFE, note=False)  # which may have said so by then, or not
    told.until("RUNNING", "task", "ls")
    told("task", "ls")
    told("task", "exec", "--exec-id", "a", "life", "sh", "-c", "echo in; echo err >&2; exit 3")
    told("task", "exec", "--exec-id", "b", "life", "no-such-program")
    told("task", "exec", "--exec-id", "c", "life", "/bin")
    told("task", "exec", "--exec-id", "d", "--cwd", "/nowhere", "life", "true")
    told("task", "exec", "--exec-id", "e", "--user", "7:8", "life", "id")
    told.on_a_terminal(
        "task",
        "exec",
        "-t",
        "--exec-id",
        "f",
        "life",
        "sh",
        "-c",
        "tty; read x; echo got $x",
        typed="word\n",
        after="/dev/pts",
    )
    told("task", "ps", "life")
    told("task", "metrics", "--format", "json", "life", note=False)
    told("task", "pause", "life")
    told("task", "ls")
    told("task", "exec", "--exec-id", "g", "life", "true")
    told("task", "pause", "life")
    told("task", "resume", "life")
    told("task", "resume", "life")
    told("task", "rm", "life")
    told("task", "kill", "-s", "SIGTERM", "life")
    told.until("STOPPED", "task", "ls")
    told("task", "ls")
    told("task", "kill", "life")
    told("task", "exec", "--exec-id", "h", "life", "true")
    told("task", "rm", "life")
    told("task", "start", "-d", "life", note=False)
    told("task", "kill", "-s", "SIGKILL", "life")
    told.until("STOPPED", "task", "ls")
    told("task", "rm", "life")
    told("container", "rm", "life")
    told("task", "ls")
    return told


def test_containerd_tells_the_same(containerd: list[str]) -> None:
    assert_equal(_containerd(containerd, PROGRAM), _containerd(containerd, peers.find("runc")))


# buildah


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory, archive: str) -> Iterator[list[str]]:
    """Words of a buildah whose working container is ``work``."""
    peers.need("buildah")
    base = tmp_path_factory.mktemp("buildah")
    command = [peers.find("buildah"), "--root", f"{base}/root", "--runroot", f"{base}/run", "--storage-driver", "vfs"]
    peers.run(
        *command, "from", "--name", "work", "--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000", "scratch"
    )
    peers.run(*command, "add", "work", archive, "/")
    yield command
    subprocess.run([*command, "rm", "--all"], capture_output=True, check=False)
    peers.leave(base)


def _buildah(command: list[str], runtime: str) -> Transcript:
    told = Transcript(command, errors=reworded)
    run = ("run", "--isolation", "oci", "--network", "none", "--runtime", runtime)
    told(*run, "work", "sh", "-c", "echo hi; echo err >&2; id -u; exit 5")
    told(*run, "work", "cat", input="through")
    for program in ("no-such-program", "/no/such/program", "/bin", "/etc/file"):
        told(*run, "work", program)
    told(*run, "--user", "7:8", "--workingdir", "/bin", "--env", "A=b", "work", "sh", "-c", "id; echo $PWD $A")
    told(*run, "work", "sh", "-c", "kill -9 $$")
    told.on_a_terminal(
        *run, "--terminal", "work", "sh", "-c", "tty; read x; echo got $x", typed="word\n", after="/dev/pts"
    )
    return told


def test_buildah_tells_the_same(buildah: list[str]) -> None:
    assert_equal(_buildah(buildah, PROGRAM), _buildah(buildah, peers.find("runc")))


def test_buildah_builds_by_us(buildah: list[str], tmp_path: Any, archive: str) -> None:
    (tmp_path / "Containerfile").write_text(
        'FROM scratch\nADD busy.tar /\nRUN ["sh", "-c", "echo built > /etc/built"]\n'
    )
    os.link(archive, tmp_path / "busy.tar") if os.stat(archive).st_dev == os.stat(tmp_path).st_dev else None
    words = [
        "bud",
        "--runtime",
        PROGRAM,
        "--isolation",
        "oci",
        "--network",
        "none",
        "--ulimit",
        "nofile=1000:1000",
        "--ulimit",
        "nproc=1000:1000",
    ]
    done = subprocess.run(
        [*buildah, *words, "-t", "built", str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
