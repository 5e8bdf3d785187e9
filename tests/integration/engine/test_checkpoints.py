"""Workloads that are written down and go on: under the same name, after their end, and in another store."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mamushka as mamushka_api
from mamushka.engine import checkpoints, portable
from mamushka.engine.engine import Engine
from mamushka.engine.paths import CHECKPOINT_LOCK, CHECKPOINT_MEANT
from mamushka.engine.settings import Attachment, Restart, Settings
from mamushka.errors import Conflict, Invalid, MamushkaError, NotFound
from mamushka.linux.lock import take
from mamushka.runtime import CheckpointOptions, Exit
from tests.integration.engine.counting import COUNT, counting, numbers

pytestmark = [pytest.mark.root, pytest.mark.lab]
Command = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_it_ends_and_goes_on(engine: Engine, criu: None) -> None:
    id = counting(engine)
    numbers(engine, id, 3)
    made = engine.checkpoint(id, "first")
    workload = engine.inspect(id)
    assert (workload.status, workload.exit) == ("exited", Exit(signal=9))
    assert [item.name for item in engine.checkpoints(id)] == ["first"]
    before = numbers(engine, id, 1)
    engine.start(id, checkpoint=made)
    assert engine.inspect(id).status == "running"
    after = numbers(engine, id, len(before) + 3)
    assert after == list(range(1, after[-1] + 1)), "one log, and nothing twice or lost"
    assert engine.exec(id, ["cat", "/root/counted"]).wait(30) == Exit()
    engine.stop(id, timeout=0)
    assert engine.inspect(id).exit == Exit(signal=9)
    # The same moment can be gone on from again.
    engine.start(id, checkpoint=made)
    again = numbers(engine, id, len(after) + 2)
    assert before[-1] + 1 in again[len(after) :][:2]
    engine.remove(id, force=True)


def test_it_may_run_on_and_names_are_its_own(engine: Engine, criu: None, tmp_path: Path) -> None:
    id = counting(engine)
    numbers(engine, id, 1)
    options = CheckpointOptions(leave_running=True)
    pid = engine.inspect(id).pid
    engine.checkpoint(id, "one", options)
    assert (engine.inspect(id).status, engine.inspect(id).pid) == ("running", pid)
    with pytest.raises(Conflict, match="checkpoint with name one already exists"):
        engine.checkpoint(id, "one", options)
    engine.checkpoint(id, "two", options, directory=str(tmp_path))
    assert [item.name for item in engine.checkpoints(id)] == ["one"]
    assert [item.name for item in engine.checkpoints(id, directory=str(tmp_path))] == ["two"]
    checkpoints.remove(engine, id, "one")
    with pytest.raises(NotFound, match="does not exist"):
        checkpoints.remove(engine, id, "one")
    assert engine.checkpoints(id) == []
    engine.remove(id, force=True)


def test_a_policy_does_not_start_it_again(engine: Engine, criu: None) -> None:
    id = counting(engine, restart=Restart("always"))
    numbers(engine, id, 2)
    made = engine.checkpoint(id, "first")
    assert engine.inspect(id).status == "exited"
    engine.start(id, checkpoint=made)
    count = len(numbers(engine, id, 4))
    engine.exec(id, ["kill", "-9", "-1"]).wait(30)
    os.kill(engine.inspect(id).pid, 9)  # its end was not meant: the policy begins it anew, and not from the checkpoint
    assert 1 in numbers(engine, id, count + 3)[count - 1 :]
    engine.remove(id, force=True)


def test_its_network_is_made_anew(engine: Engine, criu: None) -> None:
    id = counting(engine, networks=(Attachment("bridge"),))
    numbers(engine, id, 1)
    before = engine.inspect(id).connections[0]
    assert before.address
    made = engine.checkpoint(id, "first")
    engine.start(id, checkpoint=made)
    after = engine.inspect(id).connections[0]
    assert after.network == before.network
    attached = engine.exec(id, ["cat", "/proc/net/fib_trie"])
    told = b"".join(data for _, data in attached.pieces()).decode()
    assert after.address in told
    engine.remove(id, force=True)


def test_a_file_is_gone_on_from_elsewhere(engine: Engine, criu: None, tmp_path: Path) -> None:
    id = counting(engine, name="counting")
    before = numbers(engine, id, 3)
    path = str(tmp_path / "counting.tar")
    portable.export(engine, id, path, CheckpointOptions(), root=True)
    before = numbers(engine, id, 1)
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert names[:2] == ["workload.json", "root.tar"]
    assert "checkpoint/inventory.img" in names
    engine.remove(id)
    with Engine(str(tmp_path / "data"), str(tmp_path / "run")) as other:
        new = portable.take_in(other, path, name="", root=True)
        assert other.inspect(new).name == "counting"
        other.start(new, checkpoint=checkpoints.find(other, new, portable.NAME))
        after = numbers(other, new, 3)
        assert after == list(range(before[-1] + 1, before[-1] + 1 + len(after)))
        counted = b"".join(data for _, data in other.exec(new, ["cat", "/root/counted"]).pieces()).split()
        assert [int(word) for word in counted][:3] == [1, 2, 3], "what it wrote before has come along"
        other.remove(new, force=True)
        second = portable.take_in(other, path, name="second", root=True)
        assert other.inspect(second).status == "created"
        other.remove(second)


def test_a_copy_is_taken_of_what_runs_on(engine: Engine, criu: None, tmp_path: Path) -> None:
    id = counting(engine, name="counting")
    numbers(engine, id, 3)
    path = str(tmp_path / "copy.tar")
    portable.export(engine, id, path, CheckpointOptions(leave_running=True), root=True)
    assert engine.inspect(id).status == "running"
    new = portable.take_in(engine, path, name="copy", root=True)
    engine.start(new, checkpoint=checkpoints.find(engine, new, portable.NAME))
    assert engine.inspect(new).status == "running"
    count = numbers(engine, new, 3)
    assert count == list(range(count[0], count[-1] + 1))
    for each in (id, new):
        engine.remove(each, force=True)


# Where criu is of no help


def test_a_failed_checkpoint_leaves_it_as_it_was(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mamushka.container.criu import service

    monkeypatch.setattr(service, "_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    id = counting(engine, restart=Restart("always"))
    numbers(engine, id, 1)
    pid = engine.inspect(id).pid
    with pytest.raises(MamushkaError, match="cannot checkpoint"):
        engine.checkpoint(id, "first")
    assert (engine.inspect(id).status, engine.inspect(id).pid) == ("running", pid)
    assert engine.checkpoints(id) == []
    path = tmp_path / "file.tar"
    with pytest.raises(MamushkaError, match="cannot checkpoint"):
        portable.export(engine, id, str(path), CheckpointOptions(), root=True)
    assert list(tmp_path.glob("file*")) == []
    os.kill(pid, 9)
    deadline = time.monotonic() + 20
    while engine.inspect(id).pid in (0, pid):  # its policy still holds
        assert time.monotonic() < deadline
        time.sleep(0.1)
    engine.remove(id, force=True)


def test_a_policy_yields_only_to_a_checkpoint_that_is_being_made(engine: Engine) -> None:
    """Whose maker may be killed at any moment: then the policy holds."""
    id = counting(engine, restart=Restart("always"))
    lock = os.open(f"{engine.inspect(id).directory}/{CHECKPOINT_LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
    first = engine.inspect(id).pid
    os.kill(first, 9)
    deadline = time.monotonic() + 20
    while engine.inspect(id).pid in (0, first):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert take(lock, byte=CHECKPOINT_MEANT)
    os.kill(engine.inspect(id).pid, 9)
    assert engine.wait(id, timeout=20) == Exit(signal=9)
    assert engine.inspect(id).status == "exited"
    os.close(lock)
    engine.remove(id)


def test_what_makes_no_sense_is_refused(engine: Engine, tmp_path: Path) -> None:
    id = engine.create(Settings(image="host", command=("true",), networks=(Attachment("none"),)))
    with pytest.raises(Conflict, match="not running"):
        engine.checkpoint(id, "first")
    with pytest.raises(NotFound, match="checkpoint first does not exist"):
        checkpoints.find(engine, id, "first")
    engine.remove(id)
    fleeting = counting(engine, remove=True)
    with pytest.raises(Conflict, match="removed when it ends"):
        engine.checkpoint(fleeting, "first")
    with pytest.raises(Invalid, match="checkpoint name"):
        engine.checkpoint(fleeting, "../first", directory=str(tmp_path))
    engine.remove(fleeting, force=True)


@pytest.mark.parametrize("name", ["checkpoint/../../escaped", "checkpoint/sub/file", "checkpoint/"])
def test_a_file_writes_nowhere_else(engine: Engine, tmp_path: Path, name: str) -> None:
    id = engine.create(Settings(image="host", command=("true",), networks=(Attachment("none"),), name="one"))
    path = str(tmp_path / "bad.tar")
    with tarfile.open(path, "w") as tar:
        portable._put_note(tar, engine.inspect(id))
        tar.addfile(tarfile.TarInfo(name))
    engine.remove(id)
    with pytest.raises(Invalid, match="where a checkpoint has none"):
        portable.take_in(engine, path, name="", root=True)
    assert engine.workloads(all=True) == []


def test_what_is_no_checkpoint(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"x" * 4096):
        path.write_bytes(content)
        with pytest.raises(MamushkaError, match=r"cannot read|no checkpoint"):
            portable.take_in(engine, str(path), name="", root=True)
    with pytest.raises(NotFound):
        portable.take_in(engine, str(tmp_path / "absent"), name="", root=True)


def test_the_command_line_in_dockers_and_podmans_words(mamushka: Command, criu: None, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        done = mamushka(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    said("run", "-d", "--name", "counting", "--network", "none", "host", "sh", "-c", COUNT)
    assert said("checkpoint", "create", "--leave-running", "counting", "one") == "one\n"
    assert said("checkpoint", "create", "counting", "two") == "two\n"
    assert said("checkpoint", "ls", "counting").split() == ["CHECKPOINT", "NAME", "one", "two"]
    said("checkpoint", "rm", "counting", "one")
    before = said("logs", "counting").split()
    assert said("start", "--checkpoint", "two", "counting") == "counting\n"
    assert said("inspect", "-f", "{{.State.Status}}", "counting") == "running\n"
    assert said("container", "checkpoint", "counting") == "counting\n"
    assert said("container", "restore", "counting") == "counting\n"
    assert said("checkpoint", "ls", "--format", "{{.Name}}", "counting") == "two\n", "podman keeps it only with --keep"
    path = str(tmp_path / "file.tar")
    said("container", "checkpoint", "--export", path, "counting")
    said("container", "restore", "--import", path, "--name", "again")
    numbers = [int(word) for word in said("logs", "counting").split()]
    assert numbers == list(range(1, numbers[-1] + 1))
    assert len(numbers) >= len(before)
    time.sleep(2)
    assert int(said("logs", "again").split()[0]) == numbers[-1] + 1


def test_a_box_of_python(engine: Engine, criu: None) -> None:
    with mamushka_api.run("host", "sh", "-c", COUNT, engine=engine, network="none") as box:
        while box.logs().count("\n") < 3:
            time.sleep(0.1)
        box.checkpoint("moment")
        assert box.status == "exited"
        before = box.logs().count("\n")
        box.start(checkpoint="moment")
        while box.logs().count("\n") < before + 3:
            time.sleep(0.1)
        assert [int(line) for line in box.logs().split()] == list(range(1, box.logs().count("\n") + 1))
        with pytest.raises(NotFound):
            box.start(checkpoint="another")
