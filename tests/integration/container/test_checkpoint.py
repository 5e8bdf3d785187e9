"""Checkpoint and restore through criu: what goes on, what stays outside, and what a failure leaves."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mamushka.container import defaults
from mamushka.container.runtime import ContainerRuntime
from mamushka.errors import Conflict, MamushkaError, NotFound, Unsupported
from mamushka.runtime import CheckpointOptions, Started, Stdio
from mamushka.spec.runtime import Box, Capabilities, Config, Hook, Hooks, IDMapping, Memory, Mount, Namespace, Resources
from mamushka.spec.runtime import Pids as PidsLimit
from mamushka.values import replace
from tests import host, peers

from .conftest import Ground, reap

pytestmark = [pytest.mark.root, pytest.mark.lab]

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"

NET = ("CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE")
NETWORKING = Capabilities(bounding=NET, effective=NET, permitted=NET)


@pytest.fixture
def criu() -> None:
    """A criu that this kernel's processes can be written down with."""
    lacking = host.lacks_criu()
    if lacking:
        pytest.skip(lacking)


class Life:
    """A container, its output, and what is written down of it."""

    def __init__(self, ground: Ground, directory: str) -> None:
        self.ground, self.directory = ground, directory
        self.reading, self.writing = os.pipe()
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.stdio = Stdio(self.null, self.writing, self.writing)
        self.started: Started | None = None

    def start(self, config: Config) -> Started:
        self.started = self.ground.runtime.run(self.ground.name, self.ground.bundle(config), self.stdio)
        return self.started

    def checkpoint(self, **options: Any) -> None:
        """Until it has ended, and its record is gone."""
        self.ground.runtime.checkpoint(self.ground.name, self.directory, CheckpointOptions(**options))
        assert self.started is not None
        assert reap(self.started) == -signal.SIGKILL
        assert self.ground.runtime.state(self.ground.name).status == "stopped"
        self.ground.runtime.delete(self.ground.name)

    def restore(self, config: Config, name: str = "", **options: Any) -> Started:
        wall = self.ground.runtime
        bundle, directory = self.ground.bundle(config), self.directory
        self.started = wall.restore(
            name or self.ground.name, bundle, self.stdio, directory, CheckpointOptions(**options)
        )
        return self.started

    def lines(self, least: int, timeout: float = 60) -> list[str]:
        """The next lines of output."""
        text = b""
        deadline = time.monotonic() + timeout
        while text.count(b"\n") < least:
            assert time.monotonic() < deadline, text
            if select.select([self.reading], [], [], 1)[0]:
                text += os.read(self.reading, 65536)
        return text.decode().split()

    def end(self) -> int:
        """Kill, reap, delete."""
        assert self.started is not None
        self.ground.runtime.kill(self.ground.name, signal.SIGKILL)
        code = reap(self.started)
        self.ground.runtime.delete(self.ground.name)
        return code


@pytest.fixture
def life(ground: Ground, tmp_path: Any) -> Iterator[Life]:
    made = Life(ground, str(tmp_path / "checkpoint"))
    yield made
    if made.started is not None:
        for state in ground.runtime.list():
            ground.runtime.delete(state.id, force=True)
        try:
            os.waitpid(made.started.pid, 0)
        except ChildProcessError:
            pass
    for descriptor in (made.reading, made.writing, made.null):
        os.close(descriptor)


def going_on(before: list[str], after: list[str]) -> bool:
    """Whether a count went on where it was."""
    numbers = [int(line) for line in (*before, *after)]
    return numbers == list(range(numbers[0], numbers[-1] + 1))


def test_memory_children_and_open_files_go_on(life: Life, criu: None) -> None:
    script = "sleep 1000 & exec 7>/tmp/log; i=0; while :; do i=$((i+1)); echo $i; echo $i >&7; sleep 0.2; done"
    config = life.ground.config(script)
    life.start(config)
    before = life.lines(3)
    life.checkpoint()
    before += life.lines(0)
    life.restore(config)
    after = life.lines(3)
    assert going_on(before, after)
    with open(f"{life.ground.rootfs}/tmp/log") as file:
        assert going_on(file.read().split(), [])
    code, text = life.ground.exec("ps")
    assert code == 0
    assert re.search(r"\s2 .*sleep 1000", text), "the child has the number that it had"
    assert life.ground.runtime.state(life.ground.name).status == "running"
    assert life.end() == -signal.SIGKILL


def wall(pid: int) -> dict[str, Any]:
    """What confines a process, as the kernel tells it."""
    found: dict[str, Any] = {}
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            name, _, text = line.partition(":\t")
            if name[:3] in ("Cap", "Uid", "Gid", "Gro", "NoN", "Sec", "Uma"):
                found[name] = text.strip()
    with open(f"/proc/{pid}/mountinfo") as file:
        rows = [line.split() for line in file]
        found["mounts"] = sorted((row[4], row[5], *row[row.index("-") + 1 :]) for row in rows)
    for name in ("oom_score_adj", "limits", "cgroup", "environ", "personality"):
        with open(f"/proc/{pid}/{name}") as file:
            found[name] = file.read()
    found["cwd"] = os.readlink(f"/proc/{pid}/cwd")
    return found


def test_the_wall_is_the_same_afterwards(life: Life, criu: None, tmp_path: Any) -> None:
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    (shared / "file").write_text("of the host")
    config = life.ground.config(
        COUNT,
        mounts=(
            Mount("/mnt/shared", "bind", str(shared), ("rbind", "ro", "nosuid")),
            Mount("/etc/one", "bind", str(shared / "file"), ("bind",)),
            Mount("/scratch", "tmpfs", "tmpfs", ("noexec", "size=1m")),
        ),
        linux={"resources": Resources(memory=Memory(limit=64 << 20), pids=PidsLimit(20))},
        oom_score_adj=100,
        cwd="/tmp",
    )
    config = replace(config, root=replace(config.root, readonly=True))  # type: ignore[type-var]
    started = life.start(config)
    life.lines(2)
    assert life.ground.exec("echo kept > /scratch/file")[0] == 0
    before = wall(started.pid)
    life.checkpoint()
    with open(f"{life.directory}/mounts.json") as file:
        assert json.load(file) == {"/etc/one": "/etc/one", "/mnt/shared": "/mnt/shared"}
    (shared / "file").write_text("of the host, later")
    started = life.restore(config)
    after = wall(started.pid)
    assert set(after.pop("mounts")) ^ set(before.pop("mounts")) == set()
    assert {name: (before[name], after[name]) for name in before if before[name] != after[name]} == {}
    code, text = life.ground.exec("cat /scratch/file /etc/one /mnt/shared/file; hostname; touch /x /mnt/shared/x")
    assert text.startswith("kept\nof the host, laterof the host, laterbox\n")
    assert code != 0
    assert text.count("Read-only") == 2
    assert life.ground.runtime.stats(life.ground.name).memory_limit == 64 << 20
    assert life.ground.runtime.stats(life.ground.name).pids_limit == 20
    life.end()


def test_exec_after_restore_is_behind_the_same_filter(life: Life, criu: None) -> None:
    config = life.ground.config(COUNT)
    started = life.start(config)
    life.lines(1)
    life.checkpoint()
    started = life.restore(config)
    code, text = life.ground.exec("grep -E 'Seccomp|NoNew|CapEff' /proc/self/status || cat /proc/self/status")
    assert code == 0
    assert "Seccomp:\t2" in text
    assert f"CapEff:\t{wall(started.pid)['CapEff']}" in text
    life.end()


def test_the_callers_keys_are_not_handed_on(life: Life, criu: None) -> None:
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel shows no keys: CONFIG_KEYS")
    script = "while :; do busybox grep -c _mmk /proc/keys; sleep 0.2; done"
    config = life.ground.config(script, linux={"masked_paths": ()})
    life.start(config)
    assert set(life.lines(2)) == {"1"}
    life.checkpoint()
    life.lines(0)
    while select.select([life.reading], [], [], 0)[0]:
        os.read(life.reading, 65536)
    life.restore(config)
    assert set(life.lines(2)) == {"1"}
    life.end()


def test_a_terminal_comes_back_with_another_other_side(life: Life, criu: None) -> None:
    config = life.ground.config(
        "echo begin; while read line; do echo got $line $((n=n+1)); done",
        terminal=True,
        console_size=Box(30, 90),
    )
    started = life.start(config)
    talk(started.console, b"one\n", b"got one 1")
    life.checkpoint()
    os.close(started.console)
    started = life.restore(config)
    assert started.console >= 0
    talk(started.console, b"two\n", b"got two 2")
    code, text = life.ground.exec("stat -c %t:%T /dev/console; stty size </dev/console; readlink /proc/1/fd/0")
    assert (code, text.split()) == (0, ["88:0", "30", "90", "/dev/pts/0"])
    life.end()
    os.close(started.console)  # not earlier: the hang-up would end it, too


def talk(console: int, given: bytes, wanted: bytes) -> None:
    """Say something to a terminal until it answers."""
    os.write(console, given)
    said = b""
    deadline = time.monotonic() + 60
    while wanted not in said:
        assert time.monotonic() < deadline, said
        if select.select([console], [], [], 1)[0]:
            said += os.read(console, 4096)


def test_it_may_run_on(life: Life, criu: None) -> None:
    config = life.ground.config(COUNT)
    first = life.start(config)
    before = life.lines(2)
    life.ground.runtime.checkpoint(life.ground.name, life.directory, CheckpointOptions(leave_running=True))
    state = life.ground.runtime.state(life.ground.name)
    assert (state.status, state.pid) == ("running", first.pid)
    assert going_on(before, life.lines(2))
    life.end()
    life.lines(0)
    while select.select([life.reading], [], [], 0)[0]:
        os.read(life.reading, 65536)
    life.restore(config)
    assert int(life.lines(1)[0]) in range(2, 60)
    life.end()


def test_memory_is_written_ahead_and_only_what_changed_later(life: Life, criu: None, tmp_path: Any) -> None:
    script = "x=$(echo | busybox awk '{for (i = 0; i < 100000; i++) printf \"0123456789\"}'); " + COUNT
    os.symlink("busybox", f"{life.ground.rootfs}/bin/awk")
    config = life.ground.config(script, env=("PATH=/bin",))
    life.start(config)
    before = life.lines(2)
    runtime, name = life.ground.runtime, life.ground.name
    runtime.checkpoint(name, str(tmp_path / "first"), CheckpointOptions(pre_dump=True))
    assert runtime.state(name).status == "running"
    before += life.lines(2)
    runtime.checkpoint(name, str(tmp_path / "second"), CheckpointOptions(pre_dump=True, parent="../first"))
    before += life.lines(2)
    life.directory = str(tmp_path / "last")
    life.checkpoint(parent="../second")
    before += life.lines(0)
    first, last = pages(tmp_path / "first"), pages(tmp_path / "last")
    assert first > 1_000_000
    assert last < first / 2
    life.restore(config)
    assert going_on(before, life.lines(2))
    life.end()


def test_memory_goes_to_a_page_server(life: Life, criu: None) -> None:
    config = life.ground.config(COUNT)
    life.start(config)
    before = life.lines(1)
    os.makedirs(life.directory)
    server = subprocess.Popen(
        [peers.find("criu"), "page-server", "--images-dir", life.directory, "--address", "127.0.0.1", "--port", "7070"]
    )
    try:
        eventually(lambda: listens(7070))
        life.checkpoint(page_server="127.0.0.1:7070")
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
    before += life.lines(0)
    life.restore(config)
    assert going_on(before, life.lines(2))
    life.end()


def listens(port: int) -> bool:
    """Whether something listens on a port, found without connecting: the server takes one connection."""
    with open("/proc/net/tcp") as file:
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in file)


def pages(directory: Any) -> int:
    """Bytes of memory that a checkpoint holds."""
    return sum(os.path.getsize(directory / name) for name in os.listdir(directory) if name.startswith("pages-"))


def test_a_listening_socket_goes_on_in_its_own_network(life: Life, criu: None) -> None:
    config = life.ground.config(
        "busybox ip link set lo up; busybox ip addr add 10.9.8.7/32 dev lo; echo hello > /tmp/page; "
        "busybox httpd -f -p 10.9.8.7:80 -h /tmp & echo up; wait",
        capabilities=NETWORKING,
    )
    life.start(config)
    life.lines(1)
    fetch = "busybox wget -q -O - http://10.9.8.7/page"
    eventually(lambda: life.ground.exec(fetch) == (0, "hello\n"))
    life.checkpoint()
    life.restore(config)
    assert life.ground.exec(fetch) == (0, "hello\n")
    life.end()


def eventually(true: Callable[[], bool]) -> None:
    """Within the time that an emulated machine may need."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_joined_network_stays_outside(life: Life, criu: None, unique: str) -> None:
    peers.need("ip")
    names = [f"{unique}a", f"{unique}b"]
    for name in names:
        peers.run("ip", "netns", "add", name)
    try:
        config = joining(life.ground.config(COUNT), names[0])
        life.start(config)
        before = life.lines(2)
        life.checkpoint()
        before += life.lines(0)
        started = life.restore(joining(config, names[1]))
        wanted = os.stat(f"/run/netns/{names[1]}").st_ino
        assert os.stat(f"/proc/{started.pid}/ns/net").st_ino == wanted
        assert going_on(before, life.lines(2))
        life.end()
    finally:
        for name in names:
            peers.run("ip", "netns", "del", name)


def joining(config: Config, name: str, kind: str = "network") -> Config:
    """The same, in a namespace that is there already."""
    others = tuple(item for item in config.linux.namespaces if item.type != kind)
    joined = Namespace(kind, f"/run/netns/{name}" if kind == "network" else name)
    return replace(config, linux=replace(config.linux, namespaces=(*others, joined)))


def test_a_connection_is_taken_along_when_it_is_asked_for(life: Life, criu: None) -> None:
    config = life.ground.config(
        "busybox ip link set lo up; busybox nc -l -p 7 -e busybox cat & sleep 1; "
        "mkfifo /tmp/in; busybox nc 127.0.0.1 7 < /tmp/in & exec 5>/tmp/in; "
        "while :; do i=$((i+1)); echo $i >&5; sleep 0.3; done",
        capabilities=NETWORKING,
    )
    os.symlink("busybox", f"{life.ground.rootfs}/bin/mkfifo")
    life.start(config)
    before = life.lines(2)
    with pytest.raises(Conflict, match="Connected TCP socket") as caught:
        life.ground.runtime.checkpoint(life.ground.name, life.directory)
    assert "--tcp-established" in caught.value.hint
    assert life.ground.runtime.state(life.ground.name).status == "running"
    before += life.lines(2)
    life.checkpoint(tcp_established=True)
    before += life.lines(0)
    life.restore(config, tcp_established=True)
    assert going_on(before, life.lines(3))
    life.end()


def test_a_restored_container_can_be_written_down_again_under_another_name(life: Life, criu: None) -> None:
    config = life.ground.config(COUNT)
    life.start(config)
    before = life.lines(2)
    life.checkpoint()
    first = life.ground.name
    life.ground.name += "-b"
    config = replace(config, linux=replace(config.linux, cgroups_path=f"/mamushka-test/{life.ground.name}"))
    started = life.restore(config)
    with open(f"/proc/{started.pid}/cgroup") as file:
        assert f"/mamushka-test/{life.ground.name}\n" in file.read()
    assert first not in os.listdir(life.ground.state)
    before += life.lines(2)
    life.directory += "2"
    life.checkpoint()
    before += life.lines(0)
    life.restore(config)
    assert going_on(before, life.lines(2))
    life.end()


def test_hooks_run_as_they_do_for_a_new_container(life: Life, criu: None, tmp_path: Any) -> None:
    told = tmp_path / "told"
    hooks = {
        moment: (Hook("/bin/sh", ("sh", "-c", f"(echo {moment}; cat; echo) >> {told}")),)
        for moment in ("prestart", "create_runtime", "poststart", "poststop")
    }
    config = replace(life.ground.config(COUNT), hooks=Hooks(**hooks))
    life.start(config)
    life.lines(1)
    life.checkpoint()
    told.unlink()
    started = life.restore(config)
    life.end()
    words = told.read_text().split("\n")[:-1]
    assert words[::2] == ["prestart", "create_runtime", "poststop"], "as runc: a program that goes on does not start"
    assert json.loads(words[1])["pid"] == started.pid


def test_a_hook_that_fails_leaves_nothing(life: Life, criu: None) -> None:
    config = life.ground.config(COUNT)
    life.start(config)
    life.lines(1)
    life.checkpoint()
    failing = replace(config, hooks=Hooks(create_runtime=(Hook("/bin/false", ("false",)),)))
    with pytest.raises(MamushkaError, match="hook /bin/false failed"):
        life.restore(failing)
    assert nothing_left(life.ground)
    life.restore(config)
    life.end()


def nothing_left(ground: Ground) -> bool:
    """Neither record nor cgroup nor dead child; others' children may live."""
    with open("/proc/thread-self/children") as file:
        children = file.read().split()
    for child in children:
        with open(f"/proc/{child}/stat") as file:
            assert file.read().rpartition(")")[2].split()[0] != "Z", "a dead child is left"
    found = [where for where, names, _ in os.walk("/sys/fs/cgroup") if ground.name in names]
    return not found and not (os.path.isdir(ground.state) and os.listdir(ground.state))


def test_a_failed_restore_leaves_nothing_and_can_be_tried_again(life: Life, criu: None) -> None:
    config = life.ground.config(COUNT)
    life.start(config)
    life.lines(1)
    life.checkpoint()
    core = f"{life.directory}/core-1.img"
    os.rename(core, core + ".away")
    with pytest.raises(MamushkaError, match=r"cannot restore container .*criu failed: .*restore\.log"):
        life.restore(config)
    assert nothing_left(life.ground)
    os.rename(core + ".away", core)
    life.restore(config)
    life.end()


@pytest.mark.parametrize("moment", ["pre-dump", "network-lock", "post-dump"])
def test_a_checkpoint_killed_at_any_moment_lets_it_run_on(life: Life, criu: None, moment: str) -> None:
    life.start(life.ground.config(COUNT))
    life.lines(1)
    die_at(life, moment, "checkpoint")
    life.lines(20)
    assert life.ground.runtime.state(life.ground.name).status == "running"
    life.end()


@pytest.mark.parametrize("moment", ["pre-restore", "setup-namespaces", "post-restore", "pre-resume", "post-resume"])
def test_a_restore_killed_at_any_moment_leaves_what_delete_repairs(life: Life, criu: None, moment: str) -> None:
    config = life.ground.config(COUNT)
    life.start(config)
    life.lines(1)
    life.checkpoint()
    die_at(life, moment, "restore")
    life.ground.runtime.delete(life.ground.name, force=True)
    life.ground.runtime.delete(life.ground.name, force=True)
    assert nothing_left(life.ground)
    life.restore(config)
    life.end()


def die_at(life: Life, moment: str, verb: str) -> None:
    """Have a process that does it die of SIGKILL at one of criu's moments."""
    ground = life.ground
    command = [sys.executable, "-m", "tests.integration.container.killed_checkpoint"]
    command += [ground.state, ground.name, ground.rootfs, moment, verb, life.directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_users_of_its_own_come_back(life: Life, criu: None) -> None:
    ids = (IDMapping(0, 100000, 65536),)
    config = life.ground.config(COUNT, linux={
        "namespaces": (*defaults.NAMESPACES, Namespace("user")), "uid_mappings": ids, "gid_mappings": ids,
        "masked_paths": (), "readonly_paths": (),
    })  # fmt: skip
    os.chown(life.ground.rootfs, 100000, 100000)  # who makes the mount points in it
    # Where those users can find what criu mounts, as they can below /run/mamushka-oci.
    life.ground.state = f"/run/{life.ground.name}"
    life.ground.runtime = ContainerRuntime(life.ground.state)
    started = life.start(config)
    before = life.lines(2)
    life.checkpoint()
    before += life.lines(0)
    started = life.restore(config)
    with open(f"/proc/{started.pid}/uid_map") as file:
        assert file.read().split() == ["0", "100000", "65536"]
    assert going_on(before, life.lines(2))
    life.end()
    os.rmdir(life.ground.state)


# What is refused


def test_what_cannot_be_written_down(life: Life) -> None:
    runtime, name = life.ground.runtime, life.ground.name
    with pytest.raises(NotFound):
        runtime.checkpoint(name, life.directory)
    created = life.ground.create(life.ground.config("sleep 60"))
    with pytest.raises(Conflict, match="not started"):
        runtime.checkpoint(name, life.directory)
    runtime.kill(name, signal.SIGKILL)
    os.waitpid(created.pid, 0)
    with pytest.raises(Conflict, match="not running"):
        runtime.checkpoint(name, life.directory)
    runtime.delete(name)
    with pytest.raises(NotFound, match="no checkpoint at"):
        life.restore(life.ground.config("true"))
    assert nothing_left(life.ground)


def test_shared_namespaces_are_refused(life: Life) -> None:
    config = joining(life.ground.config("sleep 60"), "/proc/self/ns/ipc", "ipc")
    life.start(config)
    with pytest.raises(Unsupported, match="joined the ipc namespace"):
        life.ground.runtime.checkpoint(life.ground.name, life.directory)
    assert life.ground.runtime.state(life.ground.name).status == "running"
    life.end()


def test_what_would_come_back_weaker_is_refused(life: Life) -> None:
    """Landlock's rules are written down by nobody."""
    config = replace(life.ground.config("sleep 60"), annotations={defaults.LANDLOCK: "ro"})
    os.makedirs(life.directory)
    with pytest.raises(Unsupported, match="Landlock"):
        life.restore(config)
    try:
        life.start(config)
    except Unsupported as error:
        pytest.skip(f"there is no Landlock here: {error}")
    with pytest.raises(Unsupported, match="Landlock"):
        life.ground.runtime.checkpoint(life.ground.name, life.directory)
    life.end()


def test_without_criu_it_says_which_package(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamushka.container.criu import service

    if not os.path.exists("/proc/sys/kernel/ns_last_pid"):
        pytest.skip("this kernel is built without CONFIG_CHECKPOINT_RESTORE")
    monkeypatch.setattr(service, "_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    life.start(life.ground.config("sleep 60"))
    with pytest.raises(Unsupported, match="criu is not installed") as caught:
        life.ground.runtime.checkpoint(life.ground.name, life.directory)
    assert caught.value.hint == "apt-get install criu"
    life.end()


def test_a_criu_too_old_for_the_kernel_is_named(life: Life) -> None:
    lacking = host.lacks_criu()
    if "vDSO" not in lacking:
        pytest.skip("this host's criu knows its kernel")
    life.start(life.ground.config(COUNT))
    life.lines(1)
    with pytest.raises(Unsupported, match="vDSO") as caught:
        life.ground.runtime.checkpoint(life.ground.name, life.directory)
    assert "criu 4.1" in caught.value.hint
    assert life.ground.runtime.state(life.ground.name).status == "running"
    life.lines(2)
    life.end()
