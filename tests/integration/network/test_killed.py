"""SIGKILL at every step of a workload's life in its networks: the next command repairs, and nothing is left."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

from mamushka.engine import plugging, wires
from mamushka.engine.networks import Networks
from mamushka.engine.settings import Attachment, Port, Settings
from mamushka.engine.state import State
from mamushka.engine.workload import Workload
from mamushka.network.namespace import Entered, new_namespace
from tests.integration.network.conftest import HOST, OUTSIDE, Host
from tests.integration.network.test_networks import World

pytestmark = [pytest.mark.root, pytest.mark.network]

# Each of these changes something outside the process, or is the last thing before such a change.
STEPS = {"_send", "execute", "__exit__", "write_json", "reserve", "new_namespace", "write_sysctl", "unlink", "close"}


@pytest.fixture
def world(host: Host, tmp_path) -> Iterator[World]:
    world = World(host, str(tmp_path))
    with Entered(host.fd):
        world.networks.ready()
        world.networks.create("app")
    world.state.close()  # a connection must not cross a fork
    yield world
    world.close()


WORKLOAD = Workload(
    id="ab" * 32,
    name="box",
    settings=Settings("image", networks=(Attachment("bridge"), Attachment("app"))),
    image_id="",
    image_name="",
    command=(),
    environment=(),
    status="running",
    created=0.0,
)


def live(world: World, step: int) -> None:
    """The whole life, in a process of its own that kills itself before its step number ``step``."""
    left = step

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event == "call" and frame.f_code.co_name in STEPS and "mamushka" in frame.f_code.co_filename:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    with Entered(world.host.fd):
        sys.setprofile(watch)
        state = State(world.paths.database)
        networks = Networks(state, world.paths, lambda _: WORKLOAD)
        ports = (Port(80, host_port=8080), Port(53, "udp", host_port=5353))
        joined = plugging.join(networks, WORKLOAD, ports, new_namespace(), servers=("192.0.2.53",))
        wires.silence(joined.wires)
        plugging.forget(networks, WORKLOAD.id)
        wires.tidy(joined.wires)


def killed(world: World, step: int) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            live(world, step)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def left_behind(world: World) -> set[str]:
    """Files in the run root that nobody has a use for any more."""
    found = {name for _, _, names in os.walk(world.paths.run) for name in names}
    return found - {"network.lock"} - {item.id for item in world.networks.networks()}


@pytest.mark.slow
def test_nothing_is_left_wherever_it_was_killed(world: World) -> None:
    step = 0
    while killed(world, step):
        with Entered(world.host.fd):
            plugging.forget(world.networks, WORKLOAD.id)
            plugging.restore(world.networks)
        assert world.host.state() == world.host.before, f"killed before step {step}"
        assert not left_behind(world), f"killed before step {step}"
        world.state.close()
        step += 1
    assert step > 20
    assert world.host.state() == world.host.before


@pytest.mark.slow
def test_the_next_start_works_wherever_the_one_before_was_killed(world: World) -> None:
    """Without a reconcile in between: what a start needs it repairs itself."""
    step = 0
    while killed(world, step):
        if step % 8 == 0:
            with Entered(world.host.fd):
                plugging.forget(world.networks, WORKLOAD.id)  # as whoever finds its lock free
            joined = world.start("box", "bridge", "app", ports=(Port(80, host_port=8080),))
            listener = world.places["box"].listen("0.0.0.0", 80)
            assert world.host.outside.reaches(listener, HOST, 8080) == OUTSIDE, f"killed before step {step}"
            assert len(joined.connections) == 2
            world.end("box")
            world.state.close()
        step += 1
