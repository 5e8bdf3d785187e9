"""Whole lives of workloads from the image ``host``: no registry, no network, every door of the engine."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from mamushka.container.runtime import ContainerRuntime
from mamushka.engine import exec, gc, starting, wiring
from mamushka.engine.engine import Engine
from mamushka.engine.settings import Attachment, Limits, Mount, Namespaces, Restart, Security, Settings
from mamushka.errors import Conflict, Invalid, NotFound, Unsupported
from mamushka.runtime import CannotExecute, CommandNotFound, Exit, NotRunning
from mamushka.values import replace

if TYPE_CHECKING:
    from mamushka.engine.attach import Attached

pytestmark = pytest.mark.root
ALONE = (Attachment("none"),)
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


def settings(*command: str, **given: object) -> Settings:
    return Settings(image="host", command=command, networks=ALONE, **given)  # type: ignore[arg-type]


def run(engine: Engine, *command: str, **given: object) -> tuple[bytes, Exit]:
    """Output and end of a workload that is removed at its end."""
    attached = engine.start(engine.create(settings(*command, remove=True, **given)), attach=True)
    assert attached is not None
    with attached:
        return output(attached), attached.wait(20)


def output(attached: Attached) -> bytes:
    return b"".join(data for _, data in attached.pieces())


def shim_of(engine: Engine, id: str) -> int:
    with open(f"/proc/{engine.inspect(id).pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.fixture
def sleeper(engine: Engine) -> str:
    id = engine.create(settings("sleep", "100"))
    engine.start(id)
    return id


@pytest.fixture(autouse=True)
def nothing_left(roots: tuple[str, str]) -> Iterator[None]:
    yield
    data, state = roots
    places = (f"{data}/workloads", f"{data}/news", f"{state}/shims", f"{state}/containers")
    left = {place: os.listdir(place) for place in places if os.path.isdir(place)}
    with Engine(*roots) as engine:
        known = {item.id for item in engine.workloads(all=True)}
    assert set(left.get(f"{data}/workloads", ())) <= known
    assert set(left.get(f"{state}/shims", ())) <= known


@pytest.mark.parametrize(
    ("script", "exit"),
    [("exit 0", Exit()), ("exit 7", Exit(code=7)), ("ulimit -c 0; exec perl -e 'kill 9, 1; sleep 1'", Exit())],
)
def test_how_it_ended(engine: Engine, script: str, exit: Exit) -> None:
    assert run(engine, "sh", "-c", script)[1] == exit
    assert engine.workloads(all=True) == []


def test_a_killed_one_tells_the_signal(engine: Engine, sleeper: str) -> None:
    engine.kill(sleeper)
    assert engine.wait(sleeper, timeout=20) == Exit(signal=9)
    seen = engine.inspect(sleeper)
    assert (seen.status, seen.exit, seen.pid) == ("exited", Exit(signal=9), 0) and seen.finished >= seen.started > 0


@pytest.mark.parametrize(
    ("command", "kind"), [("no-such-program", CommandNotFound), ("/etc/passwd", CannotExecute), ("/usr", CannotExecute)]
)
def test_what_cannot_be_executed(engine: Engine, command: str, kind: type[Exception]) -> None:
    id = engine.create(settings(command))
    with pytest.raises(kind, match=command.strip("/")):
        engine.start(id, attach=True)
    seen = engine.inspect(id)
    assert seen.status == "created" and command in seen.error
    engine.remove(id)


def test_streams_stay_apart_and_whole(engine: Engine) -> None:
    data = os.urandom(3 << 20)
    id = engine.create(settings("sh", "-c", "echo err >&2; cat", stdin=True, remove=True, log_driver="none"))
    attached = engine.start(id, attach=True, stdin=True)
    assert attached is not None
    from threading import Thread

    def feed() -> None:
        attached.write(data)
        attached.close_stdin()

    feeder = Thread(target=feed)
    feeder.start()
    seen: dict[int, list[bytes]] = {1: [], 2: []}
    for kind, piece in attached.pieces():
        seen[kind].append(piece)
    feeder.join()
    assert attached.wait(20) == Exit() and b"".join(seen[2]) == b"err\n"
    assert hashlib.sha256(b"".join(seen[1])).digest() == hashlib.sha256(data).digest()
    attached.close()


def test_a_terminal(engine: Engine) -> None:
    id = engine.create(settings("sh", terminal=True, stdin=True, remove=True))
    attached = engine.start(id, attach=True, stdin=True, size=(33, 99))
    assert attached is not None
    attached.write(b"stty size; read x; stty size; exit 4\n")
    seen = b""
    while b"33 99" not in seen:
        seen += attached.read()[1]
    attached.resize(44, 111)
    attached.write(b"\n")
    assert b"44 111" in output(attached) and attached.wait(20) == Exit(code=4)
    attached.close()


def test_detaching_leaves_it_running_and_attaching_again_shows_on(engine: Engine) -> None:
    id = engine.create(settings("sh", "-c", COUNT))
    attached = engine.start(id, attach=True)
    assert attached is not None and attached.read() == (1, b"1\n")
    attached.close()
    assert engine.inspect(id).status == "running"
    with engine.attach(id, logs=True) as again:
        assert again.read() == (1, b"1\n")
    engine.remove(id, force=True)


def test_input_ends_with_whoever_started_it(engine: Engine) -> None:
    """A client that is killed must not leave a filter that waits for ever."""
    id = engine.create(settings("cat", stdin=True))
    attached = engine.start(id, attach=True, stdin=True)
    assert attached is not None
    attached.write(b"last\n")
    attached.close()
    assert engine.wait(id, timeout=20) == Exit()
    assert [line.data for line in engine.logs(id)] == [b"last\n"]
    engine.start(id)
    engine.attach(id).close()
    assert engine.inspect(id).status == "running"


def test_a_slow_reader_loses_nothing(engine: Engine) -> None:
    id = engine.create(settings("sh", "-c", "head -c 2000000 /dev/zero; echo end", remove=True))
    attached = engine.start(id, attach=True)
    assert attached is not None
    time.sleep(0.5)
    assert output(attached) == bytes(2_000_000) + b"end\n"
    attached.close()


def test_exec(engine: Engine, sleeper: str) -> None:
    with engine.exec(sleeper, ["sh", "-c", "cat; echo $X; pwd; exit 3"], environment=["X=1"], stdin=True,
                     working_directory="/tmp") as process:  # fmt: skip
        process.write(b"in\n")
        process.close_stdin()
        assert output(process) == b"in\n1\n/tmp\n" and process.wait(20) == Exit(code=3)
    with engine.exec(sleeper, ["tty"], terminal=True) as process:
        assert output(process).startswith(b"/dev/pts/") and process.wait(20) == Exit()
    with pytest.raises(CommandNotFound):
        engine.exec(sleeper, ["no-such-program"])
    engine.exec(sleeper, ["sh", "-c", "sleep 0.2; touch /tmp/done"], detach=True).close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            engine.stat(sleeper, "/tmp/done")
            return
        except NotFound:
            time.sleep(0.05)
    raise AssertionError("a detached exec did not outlive its connection")


def test_stop_asks_first(engine: Engine) -> None:
    id = engine.create(settings("sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done"))
    attached = engine.start(id, attach=True)
    assert attached is not None and attached.read() == (1, b"up\n")
    engine.stop(id)
    assert output(attached) == b"bye\n" and engine.inspect(id).exit == Exit(code=5)
    attached.close()
    engine.stop(id)  # no harm


def test_stop_insists(engine: Engine, sleeper: str) -> None:
    engine.stop(sleeper, timeout=0.1)  # the first process of a pid namespace does not see a TERM it does not handle
    assert engine.inspect(sleeper).exit == Exit(signal=9)


def test_pause_and_forced_removal_of_a_paused_one(engine: Engine, sleeper: str) -> None:
    engine.pause(sleeper)
    assert engine.inspect(sleeper).status == "paused"
    with pytest.raises(Conflict):
        engine.pause(sleeper)
    with pytest.raises(Conflict, match="unpause"):
        engine.exec(sleeper, ["true"])
    engine.unpause(sleeper)
    assert engine.inspect(sleeper).status == "running"
    engine.pause(sleeper)
    with pytest.raises(Conflict, match="force"):
        engine.remove(sleeper)
    engine.remove(sleeper, force=True)
    with pytest.raises(NotFound):
        engine.inspect(sleeper)


def test_restart_on_failure_and_its_bound(engine: Engine) -> None:
    id = engine.create(settings("sh", "-c", "echo run; exit 3", restart=Restart("on-failure", 2)))
    engine.start(id)
    assert engine.wait(id, timeout=20) == Exit(code=3)
    seen = engine.inspect(id)
    assert (seen.restarts, seen.status) == (2, "exited")
    assert [line.data for line in engine.logs(id)] == [b"run\n"] * 3
    actions = [event.action for event in engine.events(since=seen.created, until=time.time())]
    assert [action for action in actions if action in ("start", "die")].count("die") == 3


def test_a_stop_ends_the_restarts(engine: Engine) -> None:
    id = engine.create(settings("true", restart=Restart("always")))
    engine.start(id)
    time.sleep(0.6)
    engine.stop(id)
    seen = engine.inspect(id)
    assert seen.status == "exited" and seen.restarts >= 1
    engine.start(id)
    engine.update(id, restart=Restart())
    engine.wait(id, timeout=20)
    assert engine.inspect(id).settings.restart == Restart()


def test_names(engine: Engine) -> None:
    first = engine.create(settings("true", name="box"))
    with pytest.raises(Conflict, match="already in use"):
        engine.create(settings("true", name="box"))
    engine.rename("box", "other")
    assert engine.inspect("other").id == first == engine.inspect(first[:8]).id
    assert engine.inspect(engine.create(settings("true", name="box"))).name == "box"
    with pytest.raises(Conflict):
        engine.rename("other", "box")


def test_a_name_is_free_once_its_owner_has_gone(engine: Engine) -> None:
    id = engine.create(settings("true", name="brief", remove=True))
    engine.start(id)
    deadline = time.monotonic() + 10
    while os.path.exists(engine.paths.socket(id)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.inspect(engine.create(settings("true", name="brief"))).status == "created"


def test_logs_follow_until_the_end(engine: Engine) -> None:
    id = engine.create(settings("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done; echo no >&2"))
    engine.start(id)
    assert [line.data for line in engine.logs(id, follow=True)] == [b"1\n", b"2\n", b"3\n", b"no\n"]
    assert [line.data for line in engine.logs(id, tail=1)] == [b"no\n"]
    assert [line.data for line in engine.logs(id, stderr=False, tail=1)] == [b"3\n"]
    silent = engine.create(settings("true", log_driver="none"))
    with pytest.raises(Unsupported):
        engine.logs(silent)


def test_files_in_and_out_running_or_not(engine: Engine, sleeper: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("note")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    engine.copy_in(sleeper, "/root", [archive.getvalue()])
    engine.stop(sleeper, timeout=0)
    engine.copy_in(sleeper, "/srv", [archive.getvalue()])
    for path in ("/root/note", "/srv/note"):
        with tarfile.open(fileobj=io.BytesIO(b"".join(engine.copy_out(sleeper, path)))) as tar:
            member = tar.extractfile("note")
            assert member is not None and member.read() == b"hello"
    assert ("A", "/srv/note") in engine.changes(sleeper)
    assert engine.stat(sleeper, "/srv/note")["size"] == 5
    with pytest.raises(NotFound):
        engine.copy_out(sleeper, "/no/such")


def test_mounts(engine: Engine, tmp_path: os.PathLike[str]) -> None:
    (source := os.path.join(tmp_path, "in")) and os.mkdir(source)
    with open(f"{source}/file", "w") as file:
        file.write("bound")
    seen, exit = run(
        engine, "sh", "-c", "cat /in/file; touch /in/x 2>/dev/null || echo ro; df /t | tail -1; touch /v/kept",
        mounts=(Mount("bind", "/in", source, read_only=True), Mount("tmpfs", "/t", size=1 << 20),
                Mount("volume", "/v", "kept")),
    )  # fmt: skip
    assert seen.startswith(b"boundro\ntmpfs") and b"1024" in seen and exit == Exit()
    assert engine.volumes.get("kept").users == ()
    assert run(engine, "ls", "/w", mounts=(Mount("volume", "/w", "kept"),))[0] == b"kept\n"
    engine.volumes.remove("kept")


def test_an_anonymous_volume_goes_with_its_workload(engine: Engine) -> None:
    seen, _ = run(engine, "sh", "-c", "touch /etc/x; ls /home", mounts=(Mount("volume", "/etc/new"),))
    assert engine.volumes.volumes() == [] and seen == b""


def test_limits_and_update(engine: Engine) -> None:
    id = engine.create(settings("sleep", "100", limits=Limits(memory=64 << 20, pids=20)))
    engine.start(id)
    assert engine.stats(id).memory_limit == 64 << 20
    engine.update(id, limits=Limits(memory=128 << 20))
    assert engine.stats(id).memory_limit == 128 << 20
    assert engine.inspect(id).settings.limits == Limits(memory=128 << 20, pids=20)
    assert len(engine.processes(id)) == 1


def test_too_much_memory_is_told(engine: Engine) -> None:
    seen, exit = run(
        engine, "perl", "-e", '$x = "x" x (200 << 20)', limits=Limits(memory=32 << 20, memory_swap=32 << 20)
    )
    assert exit == Exit(signal=9, oom_killed=True) and seen == b""


def test_shared_namespaces(engine: Engine, sleeper: str) -> None:
    joined = Namespaces(pid=f"container:{sleeper}")
    seen, _ = run(engine, "sh", "-c", "ps -ax -o args= | grep -c 'sleep 100'", namespaces=joined)
    assert int(seen) >= 1
    with pytest.raises(Unsupported):
        engine.create(settings("true", namespaces=Namespaces(ipc=f"container:{sleeper}")))
    own = os.readlink("/proc/self/ns/uts").encode()
    assert run(engine, "readlink", "/proc/self/ns/uts", namespaces=Namespaces(uts="host"))[0].strip() == own
    engine.stop(sleeper, timeout=0)
    id = engine.create(settings("true", namespaces=joined))
    with pytest.raises(Conflict, match="non running"):
        engine.start(id)


@pytest.mark.parametrize("shared", ["network", "pid", "uts", "cgroup"])
@pytest.mark.parametrize("machine", ["joins", "is joined"])
def test_nothing_is_shared_between_kernels(
    engine: Engine, sleeper: str, monkeypatch: pytest.MonkeyPatch, shared: str, machine: str
) -> None:
    """A machine's process on the host is its monitor; and one that joins an interface takes its frames."""
    choice, wish = f"container:{sleeper}", settings("true")
    if shared == "network":
        wish = replace(wish, networks=(Attachment(choice),))
    else:
        wish = replace(wish, namespaces=Namespaces(**{shared: choice}))
    id = engine.create(wish)
    workload, running = engine.inspect(id), wiring.running
    if machine == "joins":
        workload = replace(workload, runtime="vm")
    else:
        monkeypatch.setattr(wiring, "running", lambda *words: replace(running(*words), runtime="vm"))
    enter = wiring.join if shared == "network" else wiring.joined
    with pytest.raises(Unsupported, match="kernel") as refused:
        enter(engine, workload)
    assert refused.value.hint
    engine.remove(id)


def test_the_host_image_shows_programs_and_nothing_of_users(engine: Engine) -> None:
    script = "ls -A /root /home /tmp /run /opt /srv /mnt; cat /etc/shadow /etc/ssh/* /root/.ssh/*; touch /usr/x"
    seen, _ = run(engine, "sh", "-c", f"{script}; id -un; getent passwd 1000; ls /etc")
    text = seen.decode()
    names = text.split()
    assert "root" in names and "ld.so.cache" in names
    assert not {"shadow", "gshadow", "ssh", "sudoers", "x"} & set(names)
    assert all(line.endswith(":") or not line for line in text.partition("/tmp:")[0].splitlines())
    with pytest.raises(Invalid):
        engine.create(Settings(image="host", command=("true",), limits=Limits(memory=1)))


def test_privileged_and_confined(engine: Engine) -> None:
    confined, _ = run(engine, "grep", "-E", "CapEff|NoNewPrivs|Seccomp:", "/proc/self/status")
    assert b"00000000a80425fb" in confined and b"NoNewPrivs:\t1" in confined and b"Seccomp:\t2" in confined
    free, _ = run(engine, "grep", "-E", "Seccomp:|NoNewPrivs", "/proc/self/status", security=Security(privileged=True))
    assert b"Seccomp:\t0" in free and b"NoNewPrivs:\t0" in free


def test_the_hosts_traffic_is_not_the_workloads(engine: Engine) -> None:
    id = engine.create(replace(settings("sleep", "100"), networks=(Attachment("host"),)))
    engine.start(id)
    found = engine.stats(id)
    assert found.pids == 1 and found.net_received == found.net_sent == 0
    engine.remove(id, force=True)


def test_waiting_for_a_removal_and_events(engine: Engine) -> None:
    id = engine.create(settings("sleep", "0.3", remove=True))
    begun = time.time()
    engine.start(id)
    assert engine.wait(id, condition="removed", timeout=20) == Exit()
    actions = [event.action for event in engine.events(since=begun, until=time.time()) if event.id == id]
    assert sorted(actions) == ["destroy", "die", "start"]
    with pytest.raises(TimeoutError):
        engine.wait(engine.create(settings("true")), condition="next-exit", timeout=0.1)


def test_what_the_wall_says_of_one_that_is_just_ending(
    engine: Engine, sleeper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is refused the namespaces of a process whose state still says running."""

    def ending(*_: Any, **__: Any) -> None:
        raise NotRunning("container not running: setns: no such process")

    monkeypatch.setattr(exec, "launch_exec", ending)  # the forked shim inherits it
    monkeypatch.setattr(ContainerRuntime, "kill", ending)
    for ask in (lambda: engine.exec(sleeper, ["true"]), lambda: engine.kill(sleeper)):
        with pytest.raises(Conflict, match=f"container {sleeper} is not running"):
            ask()
    monkeypatch.undo()


@pytest.mark.parametrize("removed", [False, True])
def test_events_are_in_order(engine: Engine, monkeypatch: pytest.MonkeyPatch, removed: bool) -> None:
    """Even where a workload ends, and another process takes that over, before its starter tells of the start."""
    told = starting._record

    def late(*arguments: Any) -> None:
        while not os.listdir(engine.paths.news):
            time.sleep(0.01)
        gc.settle(engine)
        told(*arguments)

    monkeypatch.setattr(starting, "_record", late)
    begun = time.time()
    id = engine.create(settings("true", remove=removed))
    engine.start(id)
    seen = [event for event in engine.events(since=begun, until=time.time()) if event.id == id]
    assert [event.action for event in seen] == ["create", "start", "die", *(["destroy"] if removed else [])]
    assert [event.time for event in seen] == sorted(event.time for event in seen)
    monkeypatch.setattr(starting, "_record", lambda *arguments: (time.sleep(0.2), told(*arguments)))
    id = engine.create(settings("true"))
    engine.start(id)
    engine.wait(id, timeout=20)
    found = engine.inspect(id)
    assert found.created <= found.started <= found.finished


def test_prune_removes_what_no_host_workload_stands_on(engine: Engine, sleeper: str) -> None:
    older = f"{engine.paths.data}/host/0123456789abcdef"
    os.makedirs(f"{older}/etc")
    os.makedirs(f"{older}.1.new/etc")  # whoever made it was killed
    engine.prune()
    assert os.path.isdir(older), "the sleeper might run on it"
    engine.remove(sleeper, force=True)
    engine.prune()
    assert not os.path.exists(older)
    assert not [name for name in os.listdir(f"{engine.paths.data}/host") if name.endswith(".new")]
    assert len(os.listdir(f"{engine.paths.data}/host")) == 2  # the one for the next, and the lock


def test_filters_and_prune(engine: Engine, sleeper: str) -> None:
    done = engine.create(settings("true", name="done", labels={"tier": "web"}))
    names = lambda **filters: [item.id for item in engine.workloads(all=True, filters=filters)]  # noqa: E731
    assert names(label=["tier=web"]) == names(name=["don"]) == names(status=["created"]) == [done]
    assert set(names(ancestor=["host"])) == {done, sleeper} and names(since=[sleeper]) == [done]
    with pytest.raises(Invalid):
        engine.workloads(filters={"colour": ["red"]})
    assert engine.prune(filters={"until": ["1h"]})[0] == engine.prune(filters={"label!": ["tier=web"]})[0] == []
    assert engine.prune(filters={"until": [str(time.time() + 1)]})[0] == [done]
    done = engine.create(settings("true"))
    assert engine.prune()[0] == [done] and [item.id for item in engine.workloads(all=True)] == [sleeper]


def test_what_the_host_is_told(engine: Engine, sleeper: str) -> None:
    told = engine.information()
    assert told["workloads"] == 1 and told["runtimes"] == ["container"]
    usage = engine.disk_usage()
    assert usage["workload_sizes"].keys() == {sleeper}  # type: ignore[attr-defined]


@pytest.mark.parametrize("user", ["private", "200000:65536"])
def test_users_of_its_own(engine: Engine, user: str) -> None:
    script = (
        "id -u; cat /proc/self/uid_map; touch /root/mine /v/mine; stat -c %u / /etc/hosts /v /root/mine /usr; sleep 9"
    )
    id = engine.create(settings("sh", "-c", script, namespaces=Namespaces(user=user), mounts=(Mount("volume", "/v"),)))
    attached = engine.start(id, attach=True)
    assert attached is not None
    seen = b""
    while seen.count(b"\n") < 7:
        seen += attached.read()[1]
    inside, mapping, *owners = seen.decode().splitlines()
    first = int(mapping.split()[1])
    assert inside == "0" and first > 0 and owners[:4] == ["0"] * 4
    assert os.stat(f"/proc/{engine.inspect(id).pid}").st_uid in (0, first)
    with engine.exec(id, ["id", "-u"]) as process:
        assert output(process) == b"0\n"
    attached.close()
    engine.remove(id, force=True)
    with pytest.raises(Invalid):
        engine.create(settings("true", namespaces=Namespaces(user="me")))
