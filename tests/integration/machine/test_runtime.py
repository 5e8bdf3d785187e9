"""The runtime, its records and monitors, and the relays of further processes; the guest is a double (local.py)."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mamushka import trace
from mamushka.container import defaults
from mamushka.container.cgroups import cgroup as cgroups
from mamushka.errors import Conflict, MamushkaError, NotFound, Unsupported
from mamushka.linux.terminal import set_size
from mamushka.machine.control import Stale
from mamushka.machine.runtime import MachineRuntime
from mamushka.machine.shape import TASKS_MORE
from mamushka.record import Record, alive, start_time
from mamushka.runtime import Bundle, CommandNotFound, NotRunning, Started, Stdio
from mamushka.spec.runtime import CPU, Config, Linux, Memory, Pids, Process, Resources, Root
from tests import peers
from tests.integration.machine.local import LocalMaker


@pytest.fixture(autouse=True)
def _root_only() -> None:
    peers.need_root()


class Ground:
    """A runtime, and the words to run something behind it."""

    def __init__(self, state: str, maker: LocalMaker) -> None:
        self.state = state
        self.runtime = MachineRuntime(state, cgroups=cgroups, maker=maker)
        self.made: list[Started] = []

    def bundle(self, *args: str, **process: Any) -> Bundle:
        command = args if len(args) != 1 else ("/bin/sh", "-c", args[0])
        resources = process.pop("resources", None)
        path = f"/mamushka-test/{os.getpid()}-vm"
        linux = Linux(cgroups_path=path, namespaces=defaults.NAMESPACES, resources=resources)
        given = {"env": ("PATH=/usr/bin:/bin",), **process}
        return Bundle("/", Config("1.2.0", Process(args=command, **given), Root("/"), linux=linux))

    def run(self, *args: str, how: str = "run", stdin: int = -1, **process: Any) -> tuple[Started, int]:
        """(what was started, where its output comes from)."""
        reader, writer = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        try:
            make = getattr(self.runtime, how)
            given = null if stdin < 0 else stdin
            started = make("box", self.bundle(*args, **process), Stdio(given, writer, writer))
            self.made.append(started)
        finally:
            os.close(writer)
            os.close(null)
        return started, reader

    def exec(self, *args: str, terminal: bool = False) -> tuple[Started, int]:
        reader, writer = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        command = args if len(args) != 1 else ("/bin/sh", "-c", args[0])
        try:
            process = Process(args=command, env=("PATH=/usr/bin:/bin",), terminal=terminal)
            started = self.runtime.exec("box", process, Stdio(null, writer, writer))
            self.made.append(started)
        finally:
            os.close(writer)
            os.close(null)
        return started, reader

    def close(self) -> None:
        """Remove the machine and reap all that was started."""
        self.runtime.delete("box", force=True)
        for started in self.made:
            try:
                os.waitpid(started.pid, 0)
            except ChildProcessError:
                pass
            os.close(started.pidfd)
            if started.console >= 0:
                os.close(started.console)


def status(started: Started) -> int:
    """As waitstatus_to_exitcode has it."""
    return os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1])


def content(reader: int) -> str:
    with open(reader) as file:
        return file.read()


@pytest.fixture
def ground(tmp_path: Any) -> Iterator[Ground]:
    made = Ground(str(tmp_path / "state"), LocalMaker())
    yield made
    made.close()
    assert not os.path.exists(made.state) or os.listdir(made.state) == []


def test_the_monitor_ends_as_the_program_does(ground: Ground) -> None:
    started, reader = ground.run("echo out; echo err >&2; exit 7")
    assert content(reader) == "out\nerr\n"
    assert status(started) == 7
    assert ground.runtime.state("box").status == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_a_program_that_is_killed_kills_its_monitor_likewise(ground: Ground, number: int) -> None:
    started, _ = ground.run(f"kill -{number} $$")
    _, waited = os.waitpid(started.pid, 0)
    assert os.WTERMSIG(waited) == number
    assert not os.WCOREDUMP(waited)


def test_input_is_the_callers(ground: Ground) -> None:
    reader, writer = os.pipe()
    started, output = ground.run("cat", stdin=reader)
    os.close(reader)
    os.write(writer, b"through\n")
    os.close(writer)
    assert content(output) == "through\n"
    assert status(started) == 0


def test_create_waits_for_start(ground: Ground) -> None:
    started, reader = ground.run("echo it runs", how="create")
    assert ground.runtime.state("box").status == "created"
    assert not select.select([reader], [], [], 0.1)[0]
    ground.runtime.start("box")
    assert content(reader) == "it runs\n"
    assert status(started) == 0
    with pytest.raises(Conflict, match="stopped"):
        ground.runtime.start("box")


def test_a_created_machine_ends_by_a_signal(ground: Ground) -> None:
    started, _ = ground.run("echo never", how="create")
    ground.runtime.kill("box", signal.SIGTERM)
    assert status(started) == -signal.SIGTERM


def test_a_program_that_is_not_there(ground: Ground, tmp_path: Path) -> None:
    """Told by create as well, although start makes the machine; what only the guest can know is told by start."""
    for how in ("run", "create"):
        with pytest.raises(CommandNotFound):
            ground.run("/no/such", "program", how=how)
        with pytest.raises(NotFound):
            ground.runtime.state("box")
    (tmp_path / "link").symlink_to("/no/such")
    started, _ = ground.run(f"{tmp_path}/link", "program", how="create")
    with pytest.raises(CommandNotFound):
        ground.runtime.start("box")
    with pytest.raises(CommandNotFound):  # and once more
        ground.runtime.start("box")
    assert status(started) == 255


def test_signals_reach_the_program(ground: Ground) -> None:
    started, reader = ground.run("trap 'echo told; exit 3' USR1; echo ready; while :; do sleep 0.05; done")
    assert os.read(reader, 100) == b"ready\n"
    ground.runtime.kill("box", signal.SIGUSR1)
    assert content(reader) == "told\n"
    assert status(started) == 3
    with pytest.raises(NotRunning):
        ground.runtime.kill("box", signal.SIGTERM)


def test_a_signal_to_the_monitor_is_meant_for_the_program(ground: Ground) -> None:
    started, reader = ground.run("trap 'echo told; exit 4' TERM; echo ready; while :; do sleep 0.05; done")
    assert os.read(reader, 100) == b"ready\n"
    os.kill(started.pid, signal.SIGTERM)
    assert content(reader) == "told\n"
    assert status(started) == 4


def test_further_processes(ground: Ground) -> None:
    ground.run("sleep 60")
    first, reader = ground.exec("echo here; exit 9")
    assert content(reader) == "here\n"
    assert status(first) == 9
    second, _ = ground.exec("kill -TERM $$")
    assert status(second) == -signal.SIGTERM
    with pytest.raises(CommandNotFound):
        ground.exec("/no/such", "program")


def test_what_a_relay_is_signalled_reaches_the_process(ground: Ground) -> None:
    ground.run("sleep 60")
    started, reader = ground.exec("trap 'echo told; exit 5' HUP; echo ready; while :; do sleep 0.05; done")
    assert os.read(reader, 100) == b"ready\n"
    os.kill(started.pid, signal.SIGHUP)
    assert content(reader) == "told\n"
    assert status(started) == 5


def test_a_killed_relay_takes_its_process_along(ground: Ground) -> None:
    ground.run("sleep 60")
    started, reader = ground.exec("echo $$; exec sleep 60")
    inner = int(os.read(reader, 100))
    os.kill(started.pid, signal.SIGKILL)
    assert content(reader) == ""  # all writers are gone
    _until_gone(inner)


def _until_gone(pid: int) -> None:
    """Perhaps as a zombie that nobody reaps."""
    for _ in range(100):
        try:
            if not alive(pid, start_time(pid)):
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} still runs")


def test_with_the_machine_end_its_further_processes(ground: Ground) -> None:
    started, _ = ground.run("sleep 60")
    other, _ = ground.exec("sleep 60")
    ground.runtime.kill("box", signal.SIGKILL)
    assert status(started) == -signal.SIGKILL
    assert status(other) == -signal.SIGKILL


def test_pause_and_resume(ground: Ground) -> None:
    started, reader = ground.run("while echo x; do sleep 0.01; done")
    os.read(reader, 1)
    ground.runtime.pause("box")
    assert ground.runtime.state("box").status == "paused"
    with pytest.raises(Conflict, match="paused"):
        ground.exec("true")
    with pytest.raises(Conflict):
        ground.runtime.pause("box")
    ground.runtime.resume("box")
    assert ground.runtime.state("box").status == "running"
    with pytest.raises(Conflict, match="not paused"):
        ground.runtime.resume("box")
    ground.runtime.pause("box")
    ground.runtime.kill("box", signal.SIGKILL)
    assert status(started) == -signal.SIGKILL
    assert ground.runtime.state("box").status == "stopped"


def test_limits_change_while_it_runs_but_for_more_memory(ground: Ground) -> None:
    limit = Resources(memory=Memory(limit=256 << 20), cpu=CPU(quota=100_000, period=100_000))
    ground.run("sleep 60", resources=limit)
    ground.runtime.update("box", Resources(cpu=CPU(quota=50_000, period=100_000), memory=Memory(limit=128 << 20)))
    with pytest.raises(Unsupported, match="of 256 MiB cannot be given 512 MiB"):
        ground.runtime.update("box", Resources(memory=Memory(limit=512 << 20)))
    place = ground.runtime._record("box").read().cgroup
    assert cgroups.open_cgroup(place).stats().pids_limit == 0
    ground.runtime.update("box", Resources(pids=Pids(limit=10)))
    assert cgroups.open_cgroup(place).stats().pids_limit == 10 + TASKS_MORE


def test_a_terminal_and_its_size(ground: Ground) -> None:
    started, _ = ground.run("test -t 0 && test -t 1 && echo yes; sleep 60", terminal=True)
    assert os.read(started.console, 100).strip() == b"yes"
    set_size(started.console, 40, 100)
    for _ in range(100):
        if [40, 100] in ground.runtime.ask("box", "sizes")["sizes"]:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the monitor was not told of the size")
    other, _ = ground.exec("echo other; sleep 60", terminal=True)
    assert os.read(other.console, 100).strip() == b"other"
    set_size(other.console, 7, 70)
    for _ in range(100):
        if [7, 70] in ground.runtime.ask("box", "sizes")["sizes"]:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the monitor was not told of the other's size")


def test_a_machine_that_breaks_says_so_on_the_workloads_stream(ground: Ground) -> None:
    started, reader = ground.run("sleep 60")
    ground.runtime.ask("box", "break")
    assert os.read(reader, 100) == b"mamushka: the machine ended: it was asked to\n"
    assert status(started) == 255


def test_a_guest_that_ran_out_of_memory_is_told_apart(ground: Ground) -> None:
    started, _ = ground.run("kill -9 $$", env=("PATH=/usr/bin:/bin", "OOM=1"))
    assert status(started) == -signal.SIGKILL
    assert ground.runtime.stats("box").oom_kills == 1


def test_a_machine_that_does_not_come_up(tmp_path: Any) -> None:
    def boots() -> None:
        raise Unsupported("no such processor", hint="another")

    ground = Ground(str(tmp_path / "state"), LocalMaker(boots))
    with pytest.raises(Unsupported, match="no such processor") as caught:
        ground.run("true")
    assert caught.value.hint == "another"
    assert os.listdir(ground.state) == []


def test_a_killed_monitor_leaves_what_delete_removes(ground: Ground) -> None:
    started, _ = ground.run("sleep 60")
    assert ground.runtime.state("box").pid == started.pid
    os.kill(started.pid, signal.SIGKILL)
    assert status(started) == -signal.SIGKILL
    assert ground.runtime.state("box").status == "stopped"
    with pytest.raises(NotRunning):
        ground.runtime.ask("box", "sizes")
    ground.runtime.delete("box")
    ground.runtime.delete("box", force=True)
    with pytest.raises(NotFound):
        ground.runtime.delete("box")


def test_a_creator_that_is_killed_leaves_no_monitor(tmp_path: Any) -> None:
    marks = os.pipe()

    def boots() -> None:
        os.write(marks[1], b"%d\n" % os.getpid())
        time.sleep(0.2)

    ground = Ground(str(tmp_path / "state"), LocalMaker(boots))
    keep = os.fork()
    if keep == 0:
        try:
            bundle = ground.bundle("sleep 60")
            original = LocalMaker.prepare

            def prepare(self: LocalMaker, record: Record, bundle: Bundle, root: int) -> Any:
                made, _ = original(self, record, bundle, root)
                return made, (marks[1],)

            LocalMaker.prepare = prepare  # type: ignore[method-assign]
            ground.runtime.run("box", bundle, Stdio())
        finally:
            os._exit(1)
    monitor = int(os.read(marks[0], 100))
    os.kill(keep, signal.SIGKILL)
    os.waitpid(keep, 0)
    _until_gone(monitor)
    assert ground.runtime.state("box").status == "stopped"
    ground.runtime.delete("box", force=True)
    assert os.listdir(ground.state) == []


def _is_stale() -> None:
    raise Stale("it did not call")


class StaleMaker(LocalMaker):
    """Has a saved machine that never calls, until it forgets it."""

    forgotten = 0

    def prepare(self, record: Record, bundle: Bundle, root: int) -> Any:
        self._boots = (lambda: None) if self.forgotten else _is_stale
        return super().prepare(record, bundle, root)

    def forget(self) -> None:
        self.forgotten += 1


def test_a_saved_machine_that_never_calls_is_forgotten_and_the_start_succeeds(tmp_path: Any) -> None:
    maker = StaleMaker()
    ground = Ground(str(tmp_path / "state"), maker)
    events: list[str] = []
    sink = lambda name, fields: events.append(name)  # noqa: E731
    trace.subscribe(sink)
    try:
        started, reader = ground.run("echo once")
    finally:
        trace.unsubscribe(sink)
    assert status(started) == 0 and maker.forgotten == 1
    assert content(reader) == "once\n"
    assert events.count("warm.stale") == 1
    ground.runtime.delete("box")
    os.close(started.pidfd)
    assert os.listdir(ground.state) == []


def test_what_a_machine_cannot_honour_leaves_nothing(ground: Ground) -> None:
    with pytest.raises(Unsupported, match="preserve"):
        ground.runtime.run("box", ground.bundle("true"), Stdio(), preserve=(3,))
    assert not os.path.exists(f"{ground.state}/box")
    with pytest.raises(MamushkaError):
        ground.runtime.state("box")


def test_a_machine_that_is_not_made_yet_answers_at_once(ground: Ground) -> None:
    """Its links may come between create and start, so its monitor waits; who asks for more is told, and does not."""
    ground.run("echo never", how="create")
    begin = time.monotonic()
    with pytest.raises(Conflict, match="when it is started"):
        ground.runtime.pause("box")
    with pytest.raises(Conflict, match="when it is started"):
        ground.runtime.ask("box", "sizes")
    assert time.monotonic() - begin < 5
