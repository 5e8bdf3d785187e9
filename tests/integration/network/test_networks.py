"""The engine's networks: rows, addresses and wires together, as an engine uses them."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator

import pytest

from mamushka.engine import naming, plugging, wires
from mamushka.engine.networks import Networks
from mamushka.engine.paths import Paths, read_json
from mamushka.engine.settings import Attachment, Port, Settings
from mamushka.engine.state import State
from mamushka.engine.workload import Workload
from mamushka.errors import Conflict, Invalid, NotFound, Unavailable
from mamushka.network.namespace import Entered, new_namespace
from mamushka.values import replace
from tests import peers
from tests.integration.network.conftest import HOST, HOST6, OUTSIDE, Host, Place

pytestmark = [pytest.mark.root, pytest.mark.network]


class World:
    """An engine's networks on a host of the test's own, and workloads that are namespaces."""

    def __init__(self, host: Host, base: str) -> None:
        self.host = host
        self.paths = Paths(f"{base}/data", f"{base}/run")
        self.paths.make()
        self.state = State(self.paths.database)
        self.networks = Networks(self.state, self.paths, lambda name: self.workloads[name])
        self.workloads: dict[str, Workload] = {}
        self.joined: dict[str, plugging.Joined] = {}
        self.places: dict[str, Place] = {}

    def start(self, name: str, *networks: str | Attachment, ports: tuple[Port, ...] = ()) -> plugging.Joined:
        attached = tuple(item if isinstance(item, Attachment) else Attachment(item) for item in networks)
        settings = Settings("image", networks=attached or (Attachment(),))
        place = self.places.setdefault(name, Place())
        workload = Workload(
            id=name.encode().hex().ljust(64, "0"),
            name=name,
            settings=settings,
            image_id="",
            image_name="",
            command=(),
            environment=(),
            status="running",
            created=0.0,
        )
        self.workloads[name] = workload
        with Entered(self.host.fd):
            self.joined[name] = plugging.join(self.networks, workload, ports, place.fd)
        return self.joined[name]

    def end(self, name: str, *, killed: bool = False) -> None:
        """As its shim does; or the shim was killed, and somebody settles."""
        joined = self.joined.pop(name)
        with Entered(self.host.fd):
            if killed:
                for held in joined.wires.descriptors:
                    os.close(held)
            else:
                wires.silence(joined.wires)
            plugging.leave(self.networks, self.workloads[name].id)
            self.places.pop(name).close()
            if not killed:
                wires.tidy(joined.wires)

    def close(self) -> None:
        for place in self.places.values():
            place.close()
        for joined in self.joined.values():
            for held in joined.wires.descriptors:
                os.close(held)
        self.state.close()


@pytest.fixture
def world(host: Host, tmp_path) -> Iterator[World]:
    world = World(host, str(tmp_path))
    with Entered(host.fd):
        world.networks.ready()
    yield world
    world.close()


def test_three_networks_always_exist(world: World) -> None:
    assert {item.name: item.driver for item in world.networks.networks()} == {
        "bridge": "bridge",
        "host": "host",
        "none": "null",
    }
    for name in ("bridge", "host", "none"):
        with pytest.raises(Conflict, match="pre-defined"):
            world.networks.remove(name)


def test_a_workload_goes_through_its_life_and_leaves_nothing(world: World) -> None:
    joined = world.start("web", ports=(Port(80, host_port=8080), Port(53, "udp")))
    (connection,) = joined.connections
    assert connection.network == "bridge"
    listener = world.places["web"].listen("0.0.0.0", 80)
    assert world.host.outside.reaches(listener, HOST, 8080) == OUTSIDE
    assert world.places["web"].reaches(world.host.outside.listen(OUTSIDE, 81), OUTSIDE, 81) == HOST
    assert [item.port for item in joined.published] == [80, 53]
    assert joined.published[1].host_port > 0
    member = world.networks.get("bridge").members[world.workloads["web"].id]
    assert member == connection
    world.end("web")
    assert world.networks.get("bridge").members == {}
    assert world.host.state() == world.host.before


def test_two_start_and_the_last_one_out_turns_off_the_light(world: World) -> None:
    one, two = world.start("one"), world.start("two")
    assert one.connections[0].address != two.connections[0].address
    world.end("one")
    listener = world.places["two"].listen("0.0.0.0", 80)
    assert world.host.reaches(listener, two.connections[0].address, 80)
    world.end("two")
    assert world.host.state() == world.host.before


def test_a_killed_shims_ports_are_withdrawn_when_it_is_settled(world: World) -> None:
    world.start("web", ports=(Port(80, host_port=8080),))
    world.end("web", killed=True)
    assert "8080" not in world.host.run("nft", "list", "ruleset")
    world.start("again", ports=(Port(80, host_port=8080),))
    world.end("again")
    with Entered(world.host.fd):
        plugging.restore(world.networks)
    assert world.host.state() == world.host.before


def test_a_port_of_a_workload_that_outlives_its_shim_stays_its_own(world: World) -> None:
    joined = world.start("web", ports=(Port(80, host_port=8080),))
    for held in joined.wires.reservations:
        os.close(held)
    world.joined["web"] = replace(joined, wires=replace(joined.wires, reservations=()))
    with pytest.raises(Conflict, match="port is already allocated"):
        world.start("thief", ports=(Port(80, host_port=8080, host_address="127.0.0.1"),))
    listener = world.places["web"].listen("0.0.0.0", 80)
    assert world.host.outside.reaches(listener, HOST, 8080)


def test_the_first_free_port_of_a_range(world: World) -> None:
    ports = (Port(80, host_port=8080, host_port_last=8082),)
    assert [item.host_port for item in world.start("one", ports=ports).published] == [8080]
    assert [item.host_port for item in world.start("two", ports=(*ports, *ports)).published] == [8081, 8082]
    listener = world.places["two"].listen("0.0.0.0", 80)
    assert world.host.outside.reaches(listener, HOST, 8081)
    with pytest.raises(Conflict, match="port is already allocated"):
        world.start("late", ports=ports)
    world.end("one")
    assert [item.host_port for item in world.start("next", ports=ports).published] == [8080]


def test_a_taken_port_gives_everything_back(world: World) -> None:
    world.start("web", ports=(Port(80, host_port=8080),))
    with pytest.raises(Conflict, match=r"endpoint late .*port is already allocated"):
        world.start("late", ports=(Port(81, host_port=8081), Port(80, host_port=8080)))
    assert list(world.networks.get("bridge").members) == [world.workloads["web"].id]
    world.start("next", ports=(Port(81, host_port=8081),))
    listener = world.places["web"].listen("0.0.0.0", 80)
    assert world.host.outside.reaches(listener, HOST, 8080)


def test_a_flushed_ruleset_comes_back_with_the_next_start(world: World) -> None:
    world.start("web", ports=(Port(80, host_port=8080),))
    world.host.run("nft", "flush", "ruleset")
    world.start("next", "bridge")
    listener = world.places["web"].listen("0.0.0.0", 80)
    assert world.host.outside.reaches(listener, HOST, 8080)


def test_user_made_networks_have_names_addresses_and_walls(world: World) -> None:
    with Entered(world.host.fd):
        made = world.networks.create("app", subnet="10.77.0.0/24", ip_range="10.77.0.128/25")
        world.networks.create("other")
    joined = world.start("db", Attachment("app", aliases=("store",), address="10.77.0.200"))
    assert joined.connections[0].address == "10.77.0.200"
    far = world.start("web", "other", "app")
    assert [item.network for item in far.connections] == ["other", "app"]
    assert far.connections[1].address == "10.77.0.128"
    (told,) = read_json(joined.wires.index)
    members = {tuple(item["names"]): item["addresses"] for item in read_json(told)}
    assert members[("db", "store", world.workloads["db"].id[:12])] == ["10.77.0.200"]
    listener = world.places["db"].listen("0.0.0.0", 80)
    assert world.places["web"].reaches(listener, "10.77.0.200", 80) == "10.77.0.128"
    with pytest.raises(Conflict, match="active endpoints"):
        world.networks.remove("app")
    plugging.rename(world.networks, world.workloads["db"].id, "data")
    assert "data" in {name for item in read_json(told) for name in item["names"]}
    world.end("db")
    assert len(read_json(told)) == 1
    world.end("web")
    world.networks.remove(made.id[:12])
    assert world.networks.prune() == []  # web is stopped, and will want it again
    plugging.forget(world.networks, world.workloads["web"].id)
    assert world.networks.prune(filters={"until": ["1h"]}) == []
    assert world.networks.prune(filters={"until": ["0s"]}) == ["other"]
    assert world.host.state() == world.host.before


def test_connect_and_disconnect_while_it_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Entered(world.host.fd):
        world.networks.create("late")
    world.start("box")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # the workload's first process: it lives until the pipe ends
        with Entered(world.places["box"].fd):
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        world.workloads["box"] = replace(world.workloads["box"], pid=pid)
        while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            os.sched_yield()
        with Entered(world.host.fd):
            world.networks.connect("late", "box", aliases=("b",))
            with pytest.raises(Conflict, match="already exists in network"):
                world.networks.connect("late", "box")
        shown = world.places["box"].run("ip", "-4", "-brief", "address")
        assert "eth1" in shown
        assert world.networks.get("late").members[world.workloads["box"].id].address in shown
        with Entered(world.host.fd):
            world.networks.disconnect("late", "box")
            world.networks.disconnect("bridge", "box")
            with pytest.raises(NotFound, match="is not connected"):
                world.networks.disconnect("late", "box")
        assert "eth" not in world.places["box"].run("ip", "-brief", "link")

        def fail(*_: object, outward: bool) -> None:
            assert outward
            raise Unavailable("no names")

        monkeypatch.setattr(naming, "give", fail)
        with Entered(world.host.fd), pytest.raises(Unavailable, match="no names"):
            world.networks.connect("late", "box")
        assert "eth" not in world.places["box"].run("ip", "-brief", "link")
        assert not world.networks.get("late").members
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(pid, 0)


def test_concurrent_starts_get_addresses_of_their_own(world: World) -> None:
    """Threads with a database connection each stand for processes."""
    found: list[str] = []
    failures: list[BaseException] = []

    def start(number: int) -> None:
        state = State(world.paths.database)
        try:
            networks = Networks(state, world.paths, lambda name: world.workloads[name])
            workload = replace(template, id=f"{number:064x}", name=f"w{number}")
            place = new_namespace({})
            with Entered(world.host.fd):
                joined = plugging.join(networks, workload, (Port(80),), place)
            found.append(joined.connections[0].address)
            for held in joined.wires.descriptors:
                os.close(held)
            os.close(place)
        except BaseException as error:
            failures.append(error)
        finally:
            state.close()

    world.start("template")
    template = world.workloads["template"]
    threads = [threading.Thread(target=start, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(set(found)) == 8


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "bridge"}, Conflict),
        ({"name": "a/b"}, Invalid),
        ({"name": ""}, Invalid),
        ({"name": "x", "driver": "overlay"}, Invalid),
        ({"name": "x", "subnet": "10.0.0.0/32"}, Invalid),
        ({"name": "x", "subnet": "10.0.0.1/24"}, Invalid),
        ({"name": "x", "subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}, Invalid),
        ({"name": "x", "subnet": "10.0.0.0/24", "ip_range": "10.0.1.0/25"}, Invalid),
        ({"name": "x", "subnet": "203.0.113.0/25"}, Conflict),
        ({"name": "x", "options": {"com.docker.network.driver.mtu": "many"}}, Invalid),
        ({"name": "x", "options": {"com.docker.network.bridge.name": "a-name-that-is-too-long"}}, Invalid),
    ],
)
def test_what_cannot_be_a_network_is_refused(world: World, arguments, error) -> None:
    with Entered(world.host.fd), pytest.raises(error):
        world.networks.create(**arguments)
    assert len(world.networks.networks()) == 3


def test_a_route_that_came_later_moves_the_default_network_and_stops_another(world: World) -> None:
    before = world.networks.get("bridge").subnet
    with Entered(world.host.fd):
        world.networks.create("app", subnet="10.88.0.0/24")
    for route in (before, "10.88.0.0/16"):
        world.host.run("ip", "route", "add", route, "via", OUTSIDE)
    joined = world.start("box")
    assert world.networks.get("bridge").subnet != before
    assert world.places["box"].reaches(world.host.outside.listen(OUTSIDE, 80), OUTSIDE, 80)
    assert joined.connections[0].gateway == world.networks.get("bridge").gateway
    with pytest.raises(Conflict, match=r"has a route to 10\.88\.0\.0/16 by now"):
        world.start("other", "app")


def test_an_ipv6_subnet_comes_beside_one_of_ipv4(world: World) -> None:
    with Entered(world.host.fd):
        made = world.networks.create("six", subnet="fd00:77::/64")
    assert made.subnet
    assert (made.subnet6, made.gateway6) == ("fd00:77::/64", "fd00:77::1")
    joined = world.start("box", "six", ports=(Port(80, host_port=8080, host_address="::"),))
    assert joined.connections[0].address6 == "fd00:77::2"
    listener = world.places["box"].listen("::", 80)
    assert world.host.outside.reaches(listener, HOST6, 8080)
    world.end("box")
    assert world.host.state() == world.host.before


def test_networks_are_found_and_filtered(world: World) -> None:
    with Entered(world.host.fd):
        made = world.networks.create("app", labels={"tier": "front"})
    assert world.networks.get(made.id[:8]).name == "app"
    assert [item.name for item in world.networks.networks(filters={"label": ["tier=front"]})] == ["app"]
    assert [item.name for item in world.networks.networks(filters={"driver": ["host"]})] == ["host"]
    assert [item.name for item in world.networks.networks(filters={"type": ["custom"]})] == ["app"]
    with pytest.raises(NotFound):
        world.networks.get("nowhere")
    with pytest.raises(Invalid):
        world.networks.networks(filters={"colour": ["red"]})
    with pytest.raises(Conflict):
        world.networks.create("app")


def test_addresses_are_for_user_made_networks(world: World) -> None:
    peers.need_root()
    with pytest.raises(Invalid, match="user-made"):
        world.start("box", Attachment("bridge", address="172.17.0.9"))


def test_many_that_end_at_once_leave_nothing(world: World) -> None:
    """Whoever tidies last must see that it is the last."""
    for number in range(6):
        world.start(f"w{number}")
    joined = [world.joined.pop(f"w{number}") for number in range(6)]
    for name, item in zip(list(world.places), joined, strict=True):
        with Entered(world.host.fd):
            wires.silence(item.wires)
            plugging.leave(world.networks, world.workloads[name].id)
        world.places.pop(name).close()

    def tidy(item: plugging.Joined) -> None:
        with Entered(world.host.fd):
            wires.tidy(item.wires)

    threads = [threading.Thread(target=tidy, args=(item,)) for item in joined]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.host.state() == world.host.before


def test_removed_directories_do_not_keep_the_links(world: World) -> None:
    joined = world.start("box")
    world.joined.pop("box")
    world.state.close()
    shutil.rmtree(world.paths.run)
    shutil.rmtree(world.paths.data)
    world.places.pop("box").close()
    with Entered(world.host.fd):
        wires.silence(joined.wires)
        wires.tidy(joined.wires)
    assert world.host.state() == world.host.before
