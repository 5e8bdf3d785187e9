"""System calls that an agent outside answers: with a real one, on a real socket."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka.container import privileges
from mamushka.errors import Invalid, MamushkaError, NotFound, Unavailable
from mamushka.spec.runtime import Config, Seccomp, SyscallRule
from mamushka.values import replace

from .conftest import Ground, Output

pytestmark = [pytest.mark.root, pytest.mark.lab]

# include/uapi/linux/seccomp.h: struct seccomp_notif of 80 bytes, seccomp_notif_resp of 24.
RECV, SEND = 0xC0502100, 0xC0182101
ENOMEDIUM = 123
CONTINUE = 1


class Answering:
    """An agent: it takes what runtimes send, and answers every call by an error that no file system gives."""

    def __init__(self, path: str, *, go_on: bool = False) -> None:
        self.path, self.go_on = path, go_on
        self.told: list[dict[str, Any]] = []
        self.pids: list[int] = []
        self.descriptors: list[int] = []
        self.whole: list[bool] = []
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(path)
        self.listening.listen(8)
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            content, descriptors, _, _ = socket.recv_fds(connection, 65536, 4)
            while more := connection.recv(65536):
                content += more
            self.whole.append(connection.recv(1) == b"")
            connection.close()
            self.told.append(json.loads(content))
            self.descriptors += descriptors
            for descriptor in descriptors:
                self.threads.append(threading.Thread(target=self._answer, args=(descriptor,), daemon=True))
                self.threads[-1].start()

    def _answer(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            # Python holds its lock during the ioctl, so that it must not wait.
            if poll.poll()[0][1] & select.POLLHUP:  # nobody has the filter any more
                os.close(descriptor)
                return
            asked = bytearray(80)
            try:
                fcntl.ioctl(descriptor, RECV, asked)
            except OSError:  # whoever asked was killed meanwhile
                continue
            id, pid = struct.unpack_from("=QI", asked)
            self.pids.append(pid)
            error, flags = (0, CONTINUE) if self.go_on else (-ENOMEDIUM, 0)
            try:
                fcntl.ioctl(descriptor, SEND, bytearray(struct.pack("=QqiI", id, 0, error, flags)))
            except OSError:
                continue

    def close(self) -> None:
        """Listen no longer; those who have a descriptor answer on."""
        if self.listening.fileno() >= 0:
            self.listening.shutdown(socket.SHUT_RDWR)
            self.listening.close()
        self.threads[0].join()

    def end(self) -> None:
        """Until all have ended for whom it answered; what comes later must not find threads in this process."""
        self.close()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def agent(ground: Ground, tmp_path: Any) -> Iterator[Answering]:
    made = Answering(str(tmp_path / "agent"))
    yield made
    for state in list(ground.runtime.list()):
        ground.runtime.delete(state.id, force=True)
    made.end()


def asking(ground: Ground, agent: Answering, script: str, *names: str, **process: Any) -> Config:
    """A container whose agent answers these calls, by default those that make directories."""
    rules = (SyscallRule(names or ("mkdir", "mkdirat"), "SCMP_ACT_NOTIFY"),)
    profile = Seccomp("SCMP_ACT_ALLOW", listener_path=agent.path, listener_metadata="to the agent", syscalls=rules)
    config = ground.config(script, linux={"seccomp": profile}, **process)
    return replace(config, annotations={"org.example": "told"})


MKDIR = "/bin/busybox mkdir /tmp/made"


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_an_agent_answers_for_the_container(ground: Ground, agent: Answering, no_new_privileges: bool) -> None:
    code, text = ground.run(asking(ground, agent, MKDIR, no_new_privileges=no_new_privileges))
    assert code == 1 and "No medium found" in text
    told = agent.told[0]
    pid = told["pid"]
    assert told == {
        "ociVersion": "1.2.0",
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": "to the agent",
        "state": {
            "ociVersion": "1.2.0",
            "id": ground.name,
            "status": "creating",
            "pid": pid,
            "bundle": os.path.dirname(ground.rootfs),
            "annotations": {"org.example": "told"},
        },
    }
    assert len(agent.descriptors) == 1 and agent.whole == [True]


def test_an_agent_cannot_tell_us_from_runc(ground: Ground, agent: Answering) -> None:
    config = asking(ground, agent, f"{MKDIR} 2>&1; true")
    assert (
        ground.output(config) == ground.runc(config) == "mkdir: can't create directory '/tmp/made': No medium found\n"
    )
    ours, runcs = agent.told
    for told in (ours, runcs):
        assert told.pop("pid") == told["state"].pop("pid")
        told["state"].pop("id")
        told["state"].pop("bundle")
        # runc writes the version of the specification that it knows itself.
        told.pop("ociVersion")
        told["state"].pop("ociVersion")
    assert ours == runcs


def test_start_hands_over_what_create_could_not(ground: Ground, agent: Answering) -> None:
    with Output() as output:
        started = ground.create(asking(ground, agent, MKDIR), output.writing)
        assert agent.told == []
        # Whoever starts without an interpreter leaves this one to us.
        assert not os.path.exists(f"{ground.state}/{ground.name}/removal")
        ground.runtime.start(ground.name)
        os.waitpid(started.pid, 0)
        assert "No medium found" in output.text()
    assert agent.told[0]["pid"] == started.pid and agent.told[0]["state"]["status"] == "created"


def test_exec_is_answered_too(ground: Ground, agent: Answering) -> None:
    started = ground.start(asking(ground, agent, "sleep 60"))
    code, text = ground.exec(MKDIR)
    assert code == 1 and "No medium found" in text
    first, second = agent.told
    assert first["pid"] == started.pid and second["pid"] != started.pid
    assert second["state"]["pid"] == started.pid and second["state"]["status"] == "running"


def test_calls_that_the_runtime_itself_would_need(ground: Ground, tmp_path: Any) -> None:
    """Whatever the filter asks about, the handing over makes none of it; also not while privileges go."""
    agent = Answering(str(tmp_path / "all"), go_on=True)
    names = ("write", "read", "sendmsg", "setresuid", "setresgid", "capset", "prctl", "execve", "openat", "close")
    for no_new_privileges in (True, False):
        config = asking(ground, agent, "echo done", *names, no_new_privileges=no_new_privileges)
        assert ground.output(config) == "done\n"
    agent.end()
    assert len(agent.told) == 2 and len(set(agent.pids)) >= 2


def test_the_descriptor_does_not_reach_the_program(ground: Ground, agent: Answering) -> None:
    text = ground.output(asking(ground, agent, "ls -l /proc/self/fd /proc/1/fd"))
    assert "seccomp" not in text


def test_an_agent_that_is_not_there(ground: Ground, agent: Answering) -> None:
    config = asking(ground, agent, "true")
    agent.close()
    with pytest.raises(Unavailable, match="cannot reach the seccomp agent"):
        ground.run(config)
    assert os.listdir(ground.state) == []
    os.unlink(agent.path)
    with pytest.raises(NotFound, match="no socket"):
        ground.run(config)


def test_an_agent_that_goes_before_start(ground: Ground, agent: Answering) -> None:
    """The container waits on behind its gate, for an agent that comes."""
    with Output() as output:
        ground.create(asking(ground, agent, MKDIR), output.writing)
        agent.close()
        os.unlink(agent.path)
        with pytest.raises(MamushkaError, match="cannot reach the seccomp agent"):
            ground.runtime.start(ground.name)
        assert ground.runtime.state(ground.name).status == "created"
        again = Answering(agent.path)
        ground.runtime.start(ground.name)
        ground.runtime.delete(ground.name, force=True)
        again.end()


def test_a_process_whose_starter_died_does_not_wait_for_ever(
    ground: Ground, agent: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody opened the gate and was killed before it told the agent."""
    monkeypatch.setattr(privileges, "LISTENER_PATIENCE", 1)
    started = ground.create(asking(ground, agent, "sleep 60"))
    with open(f"{ground.state}/{ground.name}/gate", "wb", buffering=0) as gate:
        gate.write(b"\n")
        assert os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]) == -signal.SIGSEGV
    assert ground.runtime.state(ground.name).status == "stopped"


def test_the_timer_is_not_the_programs(ground: Ground, agent: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "LISTENER_PATIENCE", 1)
    config = asking(ground, agent, "sleep 1.5; /bin/busybox grep SigCgt /proc/1/status; cat /proc/1/timers; echo done")
    _, caught, done = ground.output(config).split()
    assert done == "done" and not int(caught, 16) & 1 << signal.SIGALRM - 1


def test_a_program_that_cannot_run_is_told_of(ground: Ground, agent: Answering) -> None:
    config = asking(ground, agent, "true")
    broken = replace(config, process=replace(config.process, args=("/etc/passwd",)))
    with pytest.raises(MamushkaError, match="permission denied"):
        ground.run(broken)
    assert os.listdir(ground.state) == []


def test_a_listener_that_nothing_asks_is_not_told(ground: Ground, tmp_path: Any) -> None:
    """The specification: without SCMP_ACT_NOTIFY the path is ignored."""
    profile = Seccomp("SCMP_ACT_ALLOW", listener_path=str(tmp_path / "nobody"), syscalls=())
    assert ground.output(ground.config("echo done", linux={"seccomp": profile})) == "done\n"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Seccomp("SCMP_ACT_ALLOW", listener_metadata="x"), "listenerMetadata"),
        (Seccomp("SCMP_ACT_NOTIFY", listener_path="/dev/log"), "default action"),
        (Seccomp("SCMP_ACT_ALLOW", default_errno_ret=3), "no errnoRet"),
        (Seccomp("SCMP_ACT_ALLOW", syscalls=(SyscallRule((), "SCMP_ACT_ERRNO"),)), "names no system call"),
        (Seccomp("SCMP_ACT_ALLOW", syscalls=(SyscallRule(("mkdir",), "SCMP_ACT_KILL", 3),)), "no errnoRet"),
    ],
)
def test_profiles_that_contradict_themselves(ground: Ground, profile: Seccomp, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        ground.run(ground.config("true", linux={"seccomp": profile}))
    assert not os.path.exists(ground.state)
