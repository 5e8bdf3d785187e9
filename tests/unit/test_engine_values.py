"""Lifecycle, identifiers, records, frames, restart policy: the engine's pure parts."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka import document
from mamushka.engine import frames, ids, records, restart, traffic
from mamushka.engine.settings import Attachment, Health, Limits, Mount, Restart, Settings, Throttle, Ulimit
from mamushka.engine.workload import ACTIVE, LIFE, Connection, Workload, after, load, record
from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.runtime import CommandNotFound, Exit, Stats

STATES = set(LIFE)


def test_every_state_is_reached_and_leads_on() -> None:
    reached = {following for events in LIFE.values() for following in events.values()}
    assert reached | {"created"} == STATES
    assert all(events for events in LIFE.values())
    assert set(ACTIVE) <= STATES


def test_a_removal_is_possible_from_everywhere_and_a_start_only_from_rest() -> None:
    assert all("remove" in events for events in LIFE.values())
    assert {state for state, events in LIFE.items() if "start" in events} == {"created", "exited"}


def test_an_event_without_a_place_is_a_conflict() -> None:
    assert after("running", "pause", "box") == "paused"
    with pytest.raises(Conflict, match="cannot pause container box: it is exited"):
        after("exited", "pause", "box")


def test_names_and_ids() -> None:
    assert ids.is_hex(ids.new_id()) and len(ids.new_id()) == 64
    for attempt in range(4):
        assert ids.check_name(ids.random_name(attempt))
    assert ids.check_name("/web.1") == "web.1"


@pytest.mark.parametrize("name", ["", "a", "-a", ".a", "a b", "a/b", "é1", "a" * 300, "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(Invalid):
        ids.check_name(name)


def _settings() -> Settings:
    return Settings(
        image="busybox",
        command=("sh", "-c", "echo \udc80 é"),
        entrypoint=(),
        mounts=(Mount("bind", "/a", "/b", read_only=True, labels={"k": "v"}), Mount("tmpfs", "/t", size=1 << 40)),
        networks=(Attachment("web", aliases=("a", "b")),),
        limits=Limits(cpus=1.5, read_bps=(Throttle("/dev/sda", 10),)),
        restart=Restart("on-failure", 3),
        health=Health(("CMD", "true"), retries=1),
        ulimits=(Ulimit("nofile", -1, -1),),
        labels={"x": ""},
    )


def test_settings_survive_being_written() -> None:
    settings = _settings()
    again = records.decode(Settings, document.parse(document.dump(records.encode(settings)), "settings"))
    assert again == settings
    assert records.encode(Settings(image="x")) == {"image": "x"}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_other_documents_are_refused(item: object) -> None:
    """Anything that is no object is Invalid."""
    with pytest.raises(Invalid):
        records.decode(Settings, item)


def test_a_record_of_another_version() -> None:
    assert records.decode(Restart, {"policy": "always", "since": "tomorrow"}) == Restart("always")
    with pytest.raises(Invalid, match="Settings"):
        records.decode(Settings, {"name": "no image"})


def test_a_workload_comes_back_from_its_row() -> None:
    from mamushka.engine.state import Row

    workload = Workload(
        id="1" * 64,
        name="box",
        settings=_settings(),
        image_id="sha256:1",
        image_name="busybox",
        command=("sh",),
        environment=("A=1",),
        status="exited",
        created=5.0,
        finished=7.0,
        exit=Exit(code=3),
        connections=(Connection("bridge", "2", aliases=("x",)),),
    )
    news = {"finished": 7.0, "exit": records.encode(workload.exit), "connections": records.encode(workload.connections)}
    raw, told = document.dump(record(workload)).decode(), document.dump(news).decode()
    assert load(Row(workload.id, "box", "exited", 5.0, raw, told)) == workload


def test_frames_come_back() -> None:
    size = frames.resize(70000, 80)
    assert frames.parse(frames.data(frames.OUT, b"\0x")) == (frames.OUT, b"\0x")
    assert frames.parse(frames.plain(frames.END)) == (frames.END, None)
    assert frames.parse(frames.exit(Exit(signal=9, oom_killed=True))) == (frames.EXIT, Exit(signal=9, oom_killed=True))
    assert frames.parse(frames.started(7, 1.5)) == (frames.STARTED, (7, 1.5))
    assert frames.parse(size) == (frames.RESIZE, (65535, 80))
    assert frames.parse(frames.attach(3)) == (frames.ATTACH, 3)
    assert frames.parse(frames.policy("always", 0)) == (frames.POLICY, ("always", 0))
    assert frames.parse(frames.names("/run/i", ("10.0.0.1",))) == (frames.NAMES, ("/run/i", ("10.0.0.1",)))
    assert frames.parse(frames.names("/run/i", ())) == (frames.NAMES, ("/run/i", ()))
    assert frames.parse(frames.traced("a.b", {"n": 1})) == (frames.TRACE, ("a.b", {"n": "1"}))


def test_errors_keep_their_kind_and_hint() -> None:
    _, error = frames.parse(frames.failed(CommandNotFound("no x", hint="install x")))
    assert type(error) is CommandNotFound and str(error) == "no x" and error.hint == "install x"
    _, other = frames.parse(frames.failed(ZeroDivisionError("bug")))
    assert str(other) == "bug" and not isinstance(other, NotFound)


@given(st.binary(max_size=64))
def test_any_message_is_parsed_or_invalid(message: bytes) -> None:
    """A client is no friend: whatever it sends is understood or refused, never anything else."""
    try:
        kind, _ = frames.parse(message)
    except Invalid:
        return
    assert kind == message[0]


def test_restart_policies() -> None:
    failed, fine = Exit(code=1), Exit()
    assert restart.again(Restart("always"), fine, 99) and restart.again(Restart("unless-stopped"), failed, 0)
    assert not restart.again(Restart("no"), failed, 0)
    assert restart.again(Restart("on-failure"), Exit(signal=9), 50) and not restart.again(
        Restart("on-failure"), fine, 0
    )
    assert [restart.again(Restart("on-failure", 2), failed, count) for count in range(3)] == [True, True, False]


def test_the_wait_before_a_restart_doubles_up_to_a_minute() -> None:
    waits, last = [], 0.0
    for _ in range(12):
        last = restart.delay(last, 0.5)
        waits.append(last)
    assert waits[:3] == [0.1, 0.2, 0.4] and waits[-1] == restart.DELAY_MAX
    assert restart.delay(last, restart.GOOD_RUN) == restart.DELAY_MIN


@pytest.mark.parametrize("policy", [Restart("sometimes"), Restart("always", 3), Restart("on-failure", -1)])
def test_bad_restart_policies(policy: Restart) -> None:
    with pytest.raises(Invalid):
        restart.check(policy)


def test_traffic_is_that_of_all_links_but_the_loopback() -> None:
    text = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 7777777       1    0    0    0     0          0         0      99       1    0    0    0     0       0          0
  eth0:    1000      10    0    0    0     0          0         0     200       3    0    0    0     0       0          0
eth1:9:      10       1    0    0    0     0          0         0       5       1    0    0    0     0       0          0
"""  # noqa: E501
    assert traffic.counted(text) == (1010, 205)
    own = traffic.add(Stats(pids=3), os.getpid())
    assert own.pids == 3
    assert traffic.add(Stats(pids=3), 0) == Stats(pids=3)
