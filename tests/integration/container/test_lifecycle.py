"""From create to delete: states, hooks, failures that leave nothing, and creators that are killed at every step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from mamushka import trace
from mamushka.container import defaults
from mamushka.errors import Conflict, Invalid, MamushkaError, NotFound
from mamushka.record import Record, records
from mamushka.runtime import CannotExecute, Stdio
from mamushka.spec.runtime import Hook, Hooks, Memory, Namespace, Pids, Resources
from mamushka.values import replace

from .conftest import Ground

pytestmark = pytest.mark.root


def test_create_start_kill_delete(ground: Ground) -> None:
    runtime, name = ground.runtime, ground.name
    with pytest.raises(NotFound, match="does not exist"):
        runtime.state(name)
    started = ground.create(ground.config("sleep 60"))
    state = runtime.state(name)
    assert (state.status, state.pid, state.bundle) == ("created", started.pid, os.path.dirname(ground.rootfs))
    with pytest.raises(Conflict, match="already exists"):
        ground.create(ground.config("true"))
    runtime.start(name)
    assert runtime.state(name).status == "running"
    with pytest.raises(Conflict, match="already running"):
        runtime.start(name)
    with pytest.raises(Conflict, match="still running"):
        runtime.delete(name)
    assert [state.id for state in runtime.list()] == [name]
    assert runtime.processes(name) == (started.pid,)
    runtime.pause(name)
    assert runtime.state(name).status == "paused"
    runtime.kill(name, signal.SIGKILL)
    os.waitpid(started.pid, 0)
    assert runtime.state(name).status == "stopped"
    for act in (lambda: runtime.kill(name, 15), lambda: runtime.pause(name), lambda: runtime.resume(name)):
        with pytest.raises(Conflict):
            act()
    with pytest.raises(Conflict, match="stopped"):
        runtime.start(name)
    runtime.delete(name)
    with pytest.raises(NotFound):
        runtime.delete(name)
    runtime.delete(name, force=True)


def test_a_relative_cgroup_goes_with_all_that_was_made_above_it(ground: Ground) -> None:
    ground.run(ground.config("true", linux={"cgroups_path": f"{ground.name}/below/{ground.name}"}))
    with pytest.raises(MamushkaError):  # and so it does where the program cannot be executed
        ground.run(ground.config("/no/such", "x", linux={"cgroups_path": f"{ground.name}/below/{ground.name}"}))
    left = [path for path, *_ in os.walk("/sys/fs/cgroup") if path.endswith(f"/mamushka/{ground.name}")]
    assert left == []


def test_a_created_container_is_deleted_without_force(ground: Ground) -> None:
    ground.create(ground.config("sleep 60"))
    ground.runtime.delete(ground.name)
    assert os.listdir(ground.state) == []


def test_start_tells_what_create_could_not_know(ground: Ground) -> None:
    with open(f"{ground.rootfs}/bin/bad", "wb") as file:
        file.write(b"\x01")
    os.chmod(f"{ground.rootfs}/bin/bad", 0o755)
    started = ground.create(ground.config("bad", "x"))
    with pytest.raises(CannotExecute, match="exec format error"):
        ground.runtime.start(ground.name)
    os.waitpid(started.pid, 0)
    assert ground.runtime.state(ground.name).status == "stopped"


def test_kill_all_and_limits(ground: Ground) -> None:
    linux = {"resources": Resources(memory=Memory(limit=64 << 20), pids=Pids(32))}
    started = ground.start(ground.config("sleep 61 & sleep 62 & wait", linux=linux))
    deadline = time.monotonic() + 5
    while len(ground.runtime.processes(ground.name)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    stats = ground.runtime.stats(ground.name)
    assert stats.memory_limit == 64 << 20 and stats.pids_limit == 32 and stats.pids == 3
    ground.runtime.update(ground.name, Resources(pids=Pids(16)))
    assert ground.runtime.stats(ground.name).pids_limit == 16
    ground.runtime.kill(ground.name, signal.SIGKILL, all=True)
    assert os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]) == -signal.SIGKILL
    assert ground.runtime.processes(ground.name) == ()


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", ".a", "a b", "x" * 256, "ü", "a\n"])
def test_ids_that_are_none(ground: Ground, id: str) -> None:
    with pytest.raises(Invalid, match="invalid container ID format"):
        ground.runtime.state(id)


# Hooks


def _hook(tmp_path: Any, name: str, script: str = "", **fields: Any) -> Hook:
    path = tmp_path / f"hook-{name}"
    path.write_text(f"#!/bin/sh\ncat > {tmp_path}/{name}.json\n{script}\n")
    path.chmod(0o755)
    return Hook(str(path), env=("PATH=/usr/bin:/bin",), **fields)


def test_hooks_run_in_order_with_the_state(ground: Ground, tmp_path: Any) -> None:
    log = tmp_path / "log"
    with open(f"{ground.rootfs}/bin/inside", "w") as file:
        file.write("#!/bin/sh\ncat > /tmp/startContainer.json\n")
    os.chmod(f"{ground.rootfs}/bin/inside", 0o755)
    hooks = Hooks(
        prestart=(_hook(tmp_path, "prestart", f"echo prestart >> {log}"),),
        create_runtime=(_hook(tmp_path, "createRuntime", f"echo createRuntime >> {log}"),),
        create_container=(_hook(tmp_path, "createContainer", f"echo createContainer >> {log}"),),
        start_container=(Hook("/bin/inside", env=("PATH=/bin",)),),
        poststart=(_hook(tmp_path, "poststart", f"echo poststart >> {log}"),),
        poststop=(_hook(tmp_path, "poststop", f"echo poststop >> {log}"),),
    )
    started = ground.create(replace(ground.config("sleep 60"), hooks=hooks, annotations={"a": "b"}))
    assert log.read_text().split() == ["prestart", "createRuntime", "createContainer"]
    assert not os.path.exists(f"{ground.rootfs}/tmp/startContainer.json")
    ground.runtime.start(ground.name)
    ground.runtime.delete(ground.name, force=True)
    assert log.read_text().split() == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    for name, status in (("createRuntime", "creating"), ("createContainer", "creating"), ("poststart", "running")):
        state = json.loads((tmp_path / f"{name}.json").read_text())
        assert (state["id"], state["status"], state["pid"]) == (ground.name, status, started.pid)
        assert state["annotations"] == {"a": "b"} and state["ociVersion"] == "1.2.0"
    with open(f"{ground.rootfs}/tmp/startContainer.json") as file:
        assert json.load(file)["status"] == "created"


@pytest.mark.parametrize("moment", Hooks.__match_args__)
def test_a_hook_has_the_arguments_and_the_environment_that_it_is_given(
    ground: Ground, tmp_path: Any, moment: str
) -> None:
    """And no others: nothing of the runtime's environment, and nothing of the container's."""
    inside = moment == "start_container"
    place = f"{ground.rootfs}/bin/told" if inside else str(tmp_path / "told")
    answer = "/tmp/answer" if inside else f"{tmp_path}/answer"
    with open(place, "w") as file:
        shell = "/bin/sh"
        file.write(
            f'#!{shell}\ncat > /dev/null\nfor word in "$@"; do echo "<$word>"; done > {answer}; env >> {answer}\n'
        )
    os.chmod(place, 0o755)
    hook = Hook("/bin/told" if inside else place, ("told", "a b", ""), ("PATH=/bin:/usr/bin", "GIVEN=x=y"), 10)
    ground.run(replace(ground.config("true"), hooks=Hooks(**{moment: (hook,)})))
    with open(ground.rootfs + answer if inside else answer) as file:
        lines = file.read().splitlines()
    assert lines[:2] == ["<a b>", "<>"]
    names = {line.partition("=")[0] for line in lines[2:] if "=" in line}
    assert "GIVEN=x=y" in lines and names <= {"PATH", "GIVEN", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest.mark.parametrize("moment", ["prestart", "create_runtime", "create_container", "start_container", "poststart"])
@pytest.mark.parametrize(("script", "message"), [("exit 3", "exit status 3"), ("sleep 60", "within 1 s")])
def test_a_hook_that_fails_ends_the_container(
    ground: Ground, tmp_path: Any, moment: str, script: str, message: str
) -> None:
    hook = _hook(tmp_path, "failing", script, timeout=1)
    if moment == "start_container":
        os.rename(hook.path, f"{ground.rootfs}/bin/failing")
        with open(f"{ground.rootfs}/bin/failing", "w") as file:
            file.write(f"#!/bin/sh\n{script}\n")
        hook = replace(hook, path="/bin/failing", env=("PATH=/bin",))
    with pytest.raises(MamushkaError, match=message):
        ground.run(replace(ground.config("sleep 60"), hooks=Hooks(**{moment: (hook,)})))
    assert os.listdir(ground.state) == []
    assert _unreaped() is None, "a child that nobody was told of is left"


def _unreaped() -> object:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is none at all
        return None


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_hook_without_any_time_is_refused(ground: Ground, timeout: int) -> None:
    hooks = Hooks(start_container=(Hook("/bin/true", timeout=timeout),))
    with pytest.raises(Invalid, match="timeout"):
        ground.run(replace(ground.config("true"), hooks=hooks))


def test_a_poststop_hook_that_fails_is_only_traced(ground: Ground, tmp_path: Any) -> None:
    seen: list[str] = []

    def sink(name: str, _fields: dict[str, object]) -> None:
        seen.append(name)

    trace.subscribe(sink)
    try:
        hooks = Hooks(poststop=(_hook(tmp_path, "poststop", "exit 1"),))
        assert ground.run(replace(ground.config("true"), hooks=hooks))[0] == 0
    finally:
        trace.unsubscribe(sink)
    assert "hook.failed" in seen


# Failures and kills


def test_the_plan_is_told_before_it_is_done(ground: Ground) -> None:
    told: list[str] = []

    def sink(_name: str, fields: dict[str, object]) -> None:
        told.append(str(fields.get("operation", "")))

    trace.subscribe(sink)
    try:
        ground.run(ground.config("true"))
    finally:
        trace.unsubscribe(sink)
    text = "\n".join(told)
    for words in ("record the container", "make the cgroup", "mount -t proc", "pivot_root", "mask /proc", "execve"):
        assert words in text


def test_a_failure_leaves_the_host_as_it_was(ground: Ground) -> None:
    ground.run(ground.config("true"))  # what is made once and kept
    mounts = read_mounts()
    descriptors = sorted(os.listdir("/proc/self/fd"))
    for args in (("nope",), ("/etc/passwd",)):
        with pytest.raises(MamushkaError):
            ground.run(ground.config(*args, "x"))
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    assert read_mounts() == mounts
    assert remains(ground) == []


def read_mounts() -> str:
    """The mount table of this namespace."""
    with open("/proc/self/mountinfo") as file:
        return file.read()


def settled(ground: Ground) -> list[str]:
    """What remains once the killed have been reaped by whoever inherited them."""
    deadline = time.monotonic() + 5
    while (left := remains(ground)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def remains(ground: Ground) -> list[str]:
    """Records, cgroups and processes of this container that are still there."""
    found = [record.path for record in records(ground.state)]
    for directory, children, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{directory}/{child}" for child in children if child == ground.name]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cgroup") as file:
                found += [f"process {pid}"] if ground.name in file.read() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_descriptors_do_not_pile_up(ground: Ground) -> None:
    ground.run(ground.config("true"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        ground.run(ground.config("true"))
    assert len(os.listdir("/proc/self/fd")) == before
    joined = tuple(entry for entry in defaults.NAMESPACES if entry.type not in ("uts", "ipc"))
    with subprocess.Popen(["unshare", "--ipc", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(b"\n")
        other.stdin.flush()
        other.stdout.readline()
        joined += (Namespace("ipc", f"/proc/{other.pid}/ns/ipc"),)
        before = len(os.listdir("/proc/self/fd"))
        for linux in ({"namespaces": joined}, {"namespaces": joined[-1:]}):
            with pytest.raises(MamushkaError, match="namespace"):
                ground.run(ground.config("true", linux=linux))
        assert len(os.listdir("/proc/self/fd")) == before
        other.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_creator_killed_at_every_step_leaves_what_delete_repairs(ground: Ground, verb: str) -> None:
    for number in range(200):
        command = [sys.executable, "-m", "tests.integration.container.killed_creator"]
        command += [ground.state, ground.name, ground.rootfs, str(number), verb]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        ground.runtime.delete(ground.name, force=True)
        assert settled(ground) == [], f"killed at event {number}: {done.stdout}"
        ground.runtime.delete(ground.name, force=True)
        if done.returncode == 0:
            assert number > 4
            return
        assert ground.run(ground.config("true"))[0] == 0
    raise AssertionError("the creator never finished")


def test_a_recycled_pid_is_not_signalled(ground: Ground) -> None:
    started = ground.start(ground.config("sleep 60"))
    record = Record(ground.state, ground.name)
    with open(f"{record.path}/process", "w") as file:
        file.write(f"{os.getpid()} 1")  # the number lives, and is somebody else
    assert ground.runtime.state(ground.name).status == "stopped"
    with pytest.raises(Conflict, match="not running"):
        ground.runtime.kill(ground.name, signal.SIGKILL)
    os.kill(started.pid, signal.SIGKILL)


def test_a_damaged_record_can_be_deleted(ground: Ground) -> None:
    ground.start(ground.config("sleep 60"))
    with open(f"{ground.state}/{ground.name}/state.json", "w") as file:
        file.write("{")
    with pytest.raises(Invalid):
        ground.runtime.delete(ground.name)
    ground.runtime.delete(ground.name, force=True)
    assert os.listdir(ground.state) == []


def test_a_missing_root_is_named(ground: Ground) -> None:
    config = ground.config("true")
    assert config.root
    with pytest.raises(NotFound, match="/nowhere"):
        ground.runtime.run(
            ground.name, ground.bundle(replace(config, root=replace(config.root, path="/nowhere"))), Stdio()
        )
