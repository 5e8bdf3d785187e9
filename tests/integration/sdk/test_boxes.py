"""The Python API against real containers: boxes, processes, files, verdicts, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mamushka
from mamushka import aio

if TYPE_CHECKING:
    from mamushka.engine.engine import Engine

pytestmark = [pytest.mark.root, pytest.mark.registry]


@pytest.fixture
def box(engine: Engine, busybox_reference: str) -> Iterator[mamushka.Box]:
    with mamushka.run(busybox_reference, network="none", engine=engine) as box:
        yield box
    assert engine.workloads(all=True) == []


def test_a_command_gives_its_output_and_its_code(box: mamushka.Box) -> None:
    done = box.exec("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    assert done.verdict == mamushka.Verdict("exited", code=3)
    with pytest.raises(mamushka.Failed):
        done.check()


def test_input_environment_user_and_directory(box: mamushka.Box) -> None:
    done = box.exec(
        "sh",
        "-c",
        "cat; echo $A; id -u; pwd",
        input="in\n",
        environment={"A": "1"},
        user="ada",
        working_directory="/tmp",
    )
    assert done.stdout == "in\n1\n1815\n/tmp\n"


def test_large_streams_pass_both_ways(box: mamushka.Box) -> None:
    text = bytes(range(256)) * 8192
    assert box.exec("cat", input=text, timeout=60).stdout_bytes == text


def test_a_program_that_is_not_there_is_an_error(box: mamushka.Box) -> None:
    with pytest.raises(mamushka.Invalid):
        box.exec("/no/such/program")
    assert box.exec("true").returncode == 0


def test_a_timeout_kills_the_command_and_not_the_box(box: mamushka.Box) -> None:
    done = box.exec("sh", "-c", "echo early; exec sleep 60", timeout=0.5)
    assert (done.verdict.by, done.stdout, done.returncode) == ("timeout", "early\n", 137)
    assert box.status == "running"


def test_a_conversation(box: mamushka.Box) -> None:
    with box.popen("sh") as shell:
        for number in (1, 2):
            shell.stdin.write(b"echo %d\n" % number)
            shell.stdin.flush()
            assert shell.stdout.readline() == b"%d\n" % number
        assert shell.poll() is None
        shell.stdin.close()
        assert shell.wait(10) == 0


def test_a_terminal_of_a_given_size(box: mamushka.Box) -> None:
    with box.popen("stty", "size", terminal=True, size=(31, 97)) as process:
        assert process.stdout.read() == b"31 97\r\n"


def test_signals_and_who_sent_them(box: mamushka.Box) -> None:
    process = box.popen("sleep", "60")
    process.terminate()
    assert process.wait(10) == 143
    assert process.verdict == mamushka.Verdict("killed", signal=15)
    process.close()
    assert box.shell("kill -9 $$").verdict == mamushka.Verdict("signal", signal=9)


def test_files_in_and_out(box: mamushka.Box, tmp_path: Path) -> None:
    box.files.write("/srv/deep/in.csv", "a,b\n", mode=0o640, user=1815, group=1842)
    assert box.files.read("/srv/deep/in.csv") == b"a,b\n"
    assert box.exec("stat", "-c", "%a %u %g", "/srv/deep/in.csv").stdout == "640 1815 1842\n"
    assert box.files.stat("/srv/deep").is_directory
    assert [entry.name for entry in box.files.list("/srv/deep")] == ["in.csv"]
    box.files.mkdir("/srv/deep/er")
    box.files.remove("/srv/deep/in.csv")
    assert not box.files.exists("/srv/deep/in.csv")
    box.files.remove("/srv", recursive=True)
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/run").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "tree/sub/run").chmod(0o755)
    box.files.copy_in(tmp_path / "tree", "/opt")
    assert box.exec("/opt/tree/sub/run").stdout == "ran\n"
    (tmp_path / "back").mkdir()
    box.files.copy_out("/opt/tree", tmp_path / "back")
    assert stat.S_IMODE(os.stat(tmp_path / "back/tree/sub/run").st_mode) == 0o755


def test_no_path_leaves_the_box(box: mamushka.Box, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    box.exec("ln", "-s", str(tmp_path), "/tmp/way-out").check()
    with pytest.raises(mamushka.MamushkaError):
        box.files.read("/tmp/way-out/secret")
    with pytest.raises(mamushka.MamushkaError):
        box.files.write("/tmp/way-out/planted", "x")
    assert os.listdir(tmp_path) == ["secret"]


def test_a_read_is_bounded(box: mamushka.Box) -> None:
    box.exec("truncate", "-s", "100M", "/tmp/big").check()
    with pytest.raises(mamushka.GuestFault):
        box.files.read("/tmp/big", limit=1 << 20)


def test_pause_holds_and_resume_lets_go(box: mamushka.Box) -> None:
    process = box.popen("sh", "-c", "while :; do echo tick; sleep 0.02; done")
    assert process.stdout.readline() == b"tick\n"
    box.pause()
    assert box.status == "paused"
    box.resume()
    assert box.status == "running"
    process.kill()
    process.wait(10)
    process.close()


def test_what_it_knows_of_itself(box: mamushka.Box, engine: Engine) -> None:
    assert box.runtime.name == "container"
    assert box.verdict is None
    assert box.stats().pids >= 1
    assert mamushka.get(box.name, engine=engine).id == box.id
    assert [found.id for found in mamushka.boxes(engine=engine)] == [box.id]


def test_the_verdict_of_a_box(engine: Engine, busybox_reference: str) -> None:
    with mamushka.run(busybox_reference, "sh", "-c", "exit 7", network="none", engine=engine) as box:
        assert box.wait(20) == mamushka.Verdict("exited", code=7)
        assert box.status == "exited"
    with mamushka.run(busybox_reference, "sleep", "60", network="none", engine=engine, timeout=0.5) as box:
        assert box.wait(20).by == "timeout"
    with mamushka.run(busybox_reference, "sleep", "60", network="none", engine=engine) as box:
        box.kill()
        assert box.wait(20) == mamushka.Verdict("killed", signal=9)
    assert box.verdict == mamushka.Verdict("killed", signal=9)


def test_the_kernels_memory_limit_is_named(engine: Engine, busybox_reference: str) -> None:
    eat = ("sh", "-c", "x=x; while :; do x=$x$x; done")
    done = mamushka.once(busybox_reference, *eat, memory="32m", network="none", engine=engine, timeout=60)
    assert (done.verdict.by, done.verdict.limit) == ("oom", f"memory={32 << 20}")


def test_once_leaves_nothing(engine: Engine, busybox_reference: str) -> None:
    done = mamushka.once(busybox_reference, "cat", input="through", network="none", engine=engine)
    assert (done.stdout, done.returncode) == ("through", 0)
    assert engine.workloads(all=True) == []


def test_logs_and_following_them(engine: Engine, busybox_reference: str) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.1; done"
    with mamushka.run(busybox_reference, "sh", "-c", script, network="none", engine=engine) as box:
        assert [line.data for line in box.follow()] == [b"line 1\n", b"line 2\n", b"line 3\n"]
        assert box.logs(tail=1) == "line 3\n"


def test_a_published_port_answers(engine: Engine, busybox_reference: str) -> None:
    import socket

    serve = ("sh", "-c", "while :; do echo hello | nc -l -p 80; done")
    with mamushka.run(busybox_reference, *serve, ports=[80], engine=engine) as box:
        deadline = time.monotonic() + 20
        answer = b""
        while not answer and time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", box.port(80)), timeout=2) as connection:
                    answer = connection.recv(100)
            except OSError:
                time.sleep(0.1)
        assert answer == b"hello\n"
        with pytest.raises(mamushka.NotFound):
            box.port(81)


def test_many_threads_share_one_engine(box: mamushka.Box) -> None:
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda number=number: seen.append(box.exec("echo", str(number)).stdout))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen) == [f"{number}\n" for number in range(8)]


def test_an_image_that_is_not_there(engine: Engine, registry: str) -> None:
    with pytest.raises(mamushka.MamushkaError) as refused:
        mamushka.run(f"{registry}/no/such:image", engine=engine)
    assert isinstance(refused.value, (mamushka.NotFound, mamushka.Denied))
    with pytest.raises(mamushka.NotFound):
        mamushka.run(f"{registry}/busybox:other", pull="never", engine=engine)
    assert engine.workloads(all=True) == []


def test_asyncio_has_the_same_names(engine: Engine, busybox_reference: str) -> None:
    async def play() -> None:
        async with await aio.run(busybox_reference, network="none", engine=engine) as box:
            several = await asyncio.gather(*(box.exec("echo", str(number)) for number in range(4)))
            assert [done.stdout for done in several] == ["0\n", "1\n", "2\n", "3\n"]
            async with await box.popen("cat") as cat:
                await cat.stdin.write(b"a\nb\n")
                assert await cat.stdout.readline() == b"a\n"
                await cat.stdin.close()
                assert [line async for line in cat.stdout] == [b"b\n"]
            await box.files.write("/tmp/x", "y")
            assert await box.files.read_text("/tmp/x") == "y"
            assert (await box.runtime()).name == "container"
        assert (await aio.once(busybox_reference, "echo", "hi", network="none", engine=engine)).stdout == "hi\n"

    asyncio.run(play())
    assert engine.workloads(all=True) == []


def test_cancelling_kills_the_command(engine: Engine, busybox_reference: str) -> None:
    async def play() -> int:
        async with await aio.run(busybox_reference, network="none", engine=engine) as box:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await box.exec("sleep", "86398")
            return (await box.shell("ps | grep -c [8]6398")).stdout.strip() != "0"

    assert asyncio.run(play()) is False
    assert engine.workloads(all=True) == []


def test_every_twin_has_its_twin() -> None:
    from mamushka.interfaces.sdk import box as sync
    from mamushka.interfaces.sdk import process

    pairs = [(sync.Box, aio.Box), (mamushka.Files, aio.Files), (process.Process, aio.Process)]
    pairs.append((mamushka.Snapshot, aio.Snapshot))  # type: ignore[arg-type]
    for ours, twin in pairs:
        missing = {name for name in vars(ours) if not name.startswith("_")} - set(vars(twin))
        assert missing <= {"fileno", "poll", "close"}, f"{twin} misses {missing}"
    for name in ("run", "once", "get", "boxes", "pull", "images", "audit"):
        assert asyncio.iscoroutinefunction(getattr(aio, name))
