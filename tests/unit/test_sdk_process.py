"""A process's streams and verdicts: nothing is lost, nothing deadlocks, limits are kept and named."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mamushka.interfaces.sdk.aio_process import Process as AsyncProcess
from mamushka.interfaces.sdk.process import Process
from mamushka.interfaces.sdk.result import Verdict
from tests.unit.local import Local


@contextmanager
def start(script: str) -> Iterator[Process]:
    with Process(Local("sh", "-c", script), ("sh", "-c", script)) as process:
        yield process


def test_both_streams_arrive_whole_and_apart() -> None:
    with start("echo out; echo err >&2; exit 3") as process:
        done = process.complete()
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    assert done.verdict == Verdict("exited", code=3)


def test_one_stream_can_be_read_to_its_end_before_the_other() -> None:
    with start("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2") as process:
        assert len(process.stderr.read()) == 300000
        assert len(process.stdout.read()) == 300000


def test_two_threads_may_read_the_two_streams() -> None:
    read: dict[str, int] = {}
    with start("for i in 1 2 3; do head -c 70000 /dev/zero; head -c 70000 /dev/zero >&2; done") as process:
        streams = {"out": process.stdout, "err": process.stderr}
        threads = [
            threading.Thread(target=lambda name=name, stream=stream: read.update({name: len(stream.read())}))
            for name, stream in streams.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert read == {"out": 210000, "err": 210000}


def test_a_large_input_and_a_large_output_do_not_block_each_other() -> None:
    text = b"x" * 1_000_000
    with start("cat") as process:
        assert process.communicate(text, timeout=20) == (text, b"")


def test_input_that_nobody_reads_is_no_error() -> None:
    with start("exec <&-; exit 0") as process:
        assert process.complete(b"y" * 500_000, timeout=20).returncode == 0


def test_a_timeout_is_a_verdict_and_keeps_what_was_written() -> None:
    with start("echo early; exec sleep 60") as process:
        done = process.complete(timeout=0.3)
    assert done.verdict == Verdict("timeout", signal=9, limit="timeout=0.3")
    assert (done.stdout, done.returncode) == ("early\n", 137)


def test_streams_held_open_by_a_grandchild_do_not_outlast_the_timeout() -> None:
    with start("sleep 3 & echo parent; wait") as process:
        done = process.complete(timeout=0.2)
    assert done.verdict.by == "timeout"
    assert done.stdout == "parent\n"


def test_too_much_output_is_a_verdict_that_names_the_limit() -> None:
    with start("exec yes") as process:
        done = process.complete(output_limit=10_000, timeout=20)
    assert done.verdict == Verdict("output", signal=9, limit="output_limit=10000")
    assert len(done.stdout_bytes) == 10_000


def test_a_kill_of_ours_and_a_signal_of_its_own_are_told_apart() -> None:
    with start("exec sleep 60") as process:
        process.kill()
        process.wait(10)
        assert process.verdict == Verdict("killed", signal=9)
    with start("kill -TERM $$") as process:
        process.wait(10)
        assert process.verdict == Verdict("signal", signal=15)


def test_poll_and_wait_with_a_timeout_leave_it_running() -> None:
    with start("read line; exit 4") as process:
        assert process.poll() is None
        with pytest.raises(TimeoutError):
            process.wait(0.05)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.wait(10) == 4


def test_a_block_that_raises_kills_what_it_started() -> None:
    with pytest.raises(KeyError), start("exec sleep 60") as process:
        raise KeyError
    assert process.returncode == 137


def test_lines_come_as_they_are_written() -> None:
    async def read() -> list[bytes]:
        async with AsyncProcess(Process(Local("sh", "-c", "printf 'a\\nb\\nc'; printf x >&2"), ("sh",))) as process:
            return [line async for line in process.stdout] + [await process.stderr.read()]

    assert asyncio.run(read()) == [b"a\n", b"b\n", b"c", b"x"]


def test_a_cancelled_read_loses_nothing() -> None:
    async def read() -> bytes:
        async with AsyncProcess(Process(Local("sh", "-c", "sleep 0.2; echo kept"), ("sh",))) as process:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await process.stdout.read()
            return await process.stdout.read()

    assert asyncio.run(read()) == b"kept\n"


def test_communicate_of_asyncio_feeds_and_reads_at_once() -> None:
    async def talk() -> tuple[bytes, bytes]:
        async with AsyncProcess(Process(Local("sh", "-c", "cat; echo end >&2"), ("sh",))) as process:
            return await process.communicate(b"z" * 400_000, timeout=20)

    assert asyncio.run(talk()) == (b"z" * 400_000, b"end\n")


def test_cancelling_a_command_kills_it() -> None:
    async def cancel() -> Verdict | None:
        process = AsyncProcess(Process(Local("sleep", "60"), ("sleep", "60")))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), process:
                await process.complete(b"", None, 1000)
        return process.verdict

    assert asyncio.run(cancel()) == Verdict("killed", signal=9)
