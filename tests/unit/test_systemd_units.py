"""What systemd is told of a container: names, places, properties; and the talk itself, against handmade bytes."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.container.cgroups import unit
from mamushka.container.cgroups.bus import Bus, connect, reachable
from mamushka.errors import Conflict, Denied, Invalid, NotFound, Unavailable, Unsupported
from mamushka.spec import dbus
from mamushka.spec.dbus import ERROR, RETURN, SIGNAL, Message, Variant
from mamushka.spec.runtime import CPU, BlockIO, Memory, Pids, Resources


@pytest.mark.parametrize(
    ("given_path", "slice", "name", "path"),
    [
        ("", "system.slice", "mamushka-box.scope", "/system.slice/mamushka-box.scope"),
        ("machine.slice:libpod:x", "machine.slice", "libpod-x.scope", "/machine.slice/libpod-x.scope"),
        ("a-b-c.slice::x", "a-b-c.slice", "x.scope", "/a.slice/a-b.slice/a-b-c.slice/x.scope"),
        ("-.slice:p:x", "-.slice", "p-x.scope", "/p-x.scope"),
        (":p:x", "system.slice", "p-x.scope", "/system.slice/p-x.scope"),
        (":p:a+b c", "system.slice", "p-a\\x2bb\\x20c.scope", "/system.slice/p-a\\x2bb\\x20c.scope"),
        (":p:é", "system.slice", "p-\\xc3\\xa9.scope", "/system.slice/p-\\xc3\\xa9.scope"),
    ],
)
def test_where_a_scope_lies(given_path: str, slice: str, name: str, path: str) -> None:
    found = unit.name(given_path, "box", user=False)
    assert (found.slice, found.unit, found.path) == (slice, name, path)


def test_a_users_scope_lies_in_the_users_slice() -> None:
    assert unit.name("", "box", user=True).path == "/user.slice/mamushka-box.scope"


@pytest.mark.parametrize(
    "path",
    ["/a/b", "a", "a.slice:b", "a.slice:b:", "a:b:c", ".slice:b:c", "../a.slice:b:c", "a..b.slice:b:c", "-a.slice:b:c",
     "a-.slice:b:c", "a--b.slice:b:c", "a/b.slice:b:c", "a b.slice:b:c", ".a.slice:b:c", "a.slice:../b:c",
     "a.slice:b:../c", "a.slice:b:c/d", "a.slice:b:c.slice", "a.slice::_c", "a.slice::.c", "a.slice:b:" + "c" * 255,
     "a\n.slice:b:c", "a.slice:b:c\0", "a.slice:b:c:d"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(Invalid):
        unit.name(path, "box", user=False)


@given(st.text(max_size=40))
def test_any_path_is_below_the_manager_or_invalid(path: str) -> None:
    """Any cgroupsPath becomes a scope's path below the manager's cgroup, without ``..``, or Invalid."""
    try:
        found = unit.name(path, "box", user=False).path
    except Invalid:
        return
    *above, last = found.split("/")[1:]
    assert all(part.endswith(".slice") for part in above)
    assert last.endswith(".scope")
    assert ".." not in found.split("/")


def test_limits_as_properties_of_cgroup_v2() -> None:
    resources = Resources(
        memory=Memory(limit=100, reservation=50, swap=-1),
        cpu=CPU(shares=1024, quota=33_333, cpus="0-2,9", mems="1"),
        pids=Pids(-1),
        block_io=BlockIO(weight=1000),
        unified={"memory.high": "max", "memory.max": "90", "cpu.max": "max 20000", "hugetlb.2MB.max": "0"},
    )
    found = unit.limits(resources, unified=True, version=252)
    assert {name: variant.content for name, variant in found.items()} == {
        "MemoryMax": 90, "MemoryLow": 50, "MemorySwapMax": unit.INFINITY, "MemoryHigh": unit.INFINITY,
        "CPUWeight": 100, "CPUQuotaPerSecUSec": unit.INFINITY, "CPUQuotaPeriodUSec": 20_000,
        "AllowedCPUs": b"\x07\x02", "AllowedMemoryNodes": b"\x02", "TasksMax": unit.INFINITY, "IOWeight": 10_000,
    }  # fmt: skip
    quota = unit.limits(Resources(cpu=CPU(quota=33_333)), unified=True, version=252)
    assert quota == {"CPUQuotaPerSecUSec": Variant("t", 340_000)}  # a third, in whole percents upwards
    old = unit.limits(resources, unified=True, version=240)
    assert old.keys().isdisjoint({"AllowedCPUs", "AllowedMemoryNodes", "CPUQuotaPeriodUSec"})
    idle = unit.limits(Resources(cpu=CPU(shares=5, idle=1)), unified=True, version=252)
    assert idle == {"CPUWeight": Variant("t", 0)}


def test_limits_as_properties_of_cgroup_v1() -> None:
    resources = Resources(
        memory=Memory(limit=100, reservation=50, swap=150), cpu=CPU(shares=512, quota=-1, period=50_000, cpus="0"),
        pids=Pids(7), block_io=BlockIO(weight=300), unified={"memory.high": "1"},
    )  # fmt: skip
    found = unit.limits(resources, unified=False, version=252)
    assert {name: variant.content for name, variant in found.items()} == {
        "MemoryLimit": 100, "CPUShares": 512, "CPUQuotaPerSecUSec": unit.INFINITY, "CPUQuotaPeriodUSec": 50_000,
        "TasksMax": 7, "BlockIOWeight": 300,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("true", Variant("b", True)), ("'a, text'", Variant("s", "a, text")), ('"x"', Variant("s", "x")),
        ("5", Variant("i", 5)), ("-5", Variant("i", -5)), ("uint64 5", Variant("t", 5)), ("@t 5", Variant("t", 5)),
        ("['a', 'b,c']", Variant("as", ("a", "b,c"))), ("[1, 2]", Variant("ai", (1, 2))),
    ],
)  # fmt: skip
def test_properties_by_annotation(text: str, kind: Variant) -> None:
    assert unit.annotated({"org.systemd.property.Some": text, "other": "x"}) == {"Some": kind}


def test_seconds_are_told_as_microseconds() -> None:
    assert unit.annotated({"org.systemd.property.TimeoutStopSec": "3"}) == {"TimeoutStopUSec": Variant("t", 3_000_000)}


@pytest.mark.parametrize(
    "text", ["", "nothing", "'", "'a'b'", "uint64 -1", "byte 256", "[1, 'a']", "[]", "float 1", "1.5"]
)
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(Invalid):
        unit.annotated({"org.systemd.property.Some": text})


@pytest.mark.parametrize(
    ("text", "number"), [("252.38-1~deb12u1", 252), ("v249", 249), ("256~rc3", 256), ("254 (254.1)", 254), ("", 0)]
)
def test_versions(text: str, number: int) -> None:
    assert unit.version(text) == number


@pytest.mark.parametrize("name", ["PIDs", "Slice", "Delegate", "A", "Exec Start", "DefaultDependencies", ""])
def test_properties_that_are_ours(name: str) -> None:
    with pytest.raises(Invalid):
        unit.annotated({f"org.systemd.property.{name}": "true"})


class Manager:
    """systemd's side of a connection: it answers calls from a list, and remembers what it was asked."""

    def __init__(self, *answers: list[Message]) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.asked: list[Message] = []
        self.answers = list(answers)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        buffer = b""
        with self.theirs:
            for answers in self.answers:
                while True:
                    message, used = dbus.decode(buffer)
                    if message:
                        break
                    buffer += self.theirs.recv(65536)
                buffer = buffer[used:]
                self.asked.append(message)
                raw = b"".join(map(dbus.encode, answers))
                for at in range(0, len(raw), 7):  # in pieces, as a stream may bring it
                    self.theirs.sendall(raw[at : at + 7])

    def __enter__(self) -> Bus:
        return Bus(self.ours, direct=True)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.thread.join(10)


def removed(job: str, result: str) -> Message:
    return Message(SIGNAL, 9, "/m", "org.freedesktop.systemd1.Manager", "JobRemoved",
                   signature="uoss", body=(1, job, "x.scope", result))  # fmt: skip


def test_a_job_is_waited_for_whichever_comes_first() -> None:
    answer = Message(RETURN, 5, signature="o", body=("/job/1",), reply_to=1)
    for order in ([answer, removed("/job/7", "done"), removed("/job/1", "done")], [removed("/job/1", "done"), answer]):
        manager = Manager(order)
        with manager as bus:
            bus.job("StopUnit", "ss", "x.scope", "replace")
        assert manager.asked[0].body == ("x.scope", "replace")
        assert manager.asked[0].destination == "org.freedesktop.systemd1"


def test_a_job_that_fails() -> None:
    answer = Message(RETURN, 5, signature="o", body=("/job/1",), reply_to=1)
    with Manager([answer, removed("/job/1", "failed")]) as bus, pytest.raises(Conflict, match="'failed'"):
        bus.job("StartTransientUnit", "s", "x.scope")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("org.freedesktop.systemd1.NoSuchUnit", NotFound), ("org.freedesktop.systemd1.UnitExists", Conflict),
        ("org.freedesktop.DBus.Error.AccessDenied", Denied), ("org.freedesktop.DBus.Error.InvalidArgs", Invalid),
        ("org.freedesktop.DBus.Error.ServiceUnknown", Unsupported),
    ],
)  # fmt: skip
def test_errors_are_of_few_kinds(error: str, kind: type[Exception]) -> None:
    refusal = Message(ERROR, 5, error=error, signature="s", body=("Because.",), reply_to=1)
    with Manager([refusal]) as bus, pytest.raises(kind, match=r"systemd refuses to stop unit: because$"):
        bus.call("StopUnit", "ss", "x", "y")


def test_a_manager_that_hangs_up() -> None:
    with Manager([]) as bus, pytest.raises(Unavailable):
        bus.call("StopUnit", "ss", "x", "y")


def test_the_address_of_a_session(tmp_path: Any, monkeypatch: Any) -> None:
    """The manager's own socket first, then the bus's; what is not there is passed over."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"tcp:host=x;unix:guid=1,path={tmp_path}/session")
    heard = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/session")
        listening.listen()

        def serve() -> None:
            line, _ = listening.accept()
            with line:
                heard.append(line.recv(100))
                line.sendall(b"DATA\r\nOK 00\r\n")
                for serial, signature, body in ((1, "s", (":1.1",)), (2, "", ())):
                    message, _ = dbus.decode(line.recv(1000))
                    assert message
                    heard.append(message.member)
                    answer = Message(RETURN, serial, signature=signature, body=body, reply_to=serial)
                    line.sendall(dbus.encode(answer))

        thread = threading.Thread(target=serve)
        thread.start()
        connect(user=True).close()
        thread.join(10)
    assert heard == [dbus.AUTHENTICATE, "Hello", "AddMatch"]


def test_no_manager_at_all(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    with pytest.raises(Unsupported, match="no session"):
        connect(user=True)
    assert not reachable(user=True)
