"""Network devices that move into a container, out of a network namespace of the test's own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from mamushka.container import defaults
from mamushka.errors import Conflict, Denied, Invalid, MamushkaError, NotFound
from mamushka.linux.process import CLONE_NEWNET, setns, unshare
from mamushka.runtime import CannotExecute
from mamushka.spec.runtime import Hook, Hooks, Namespace, NetDevice
from mamushka.values import replace
from tests import peers

from .conftest import Ground

pytestmark = pytest.mark.root


class Wires:
    """The devices of this thread's network namespace, by iproute2."""

    def ip(self, *words: str) -> Any:
        """What ip(8) says, parsed where it says something."""
        said = peers.run("ip", "-j", *words)
        return json.loads(said) if said.strip() else []

    def names(self) -> set[str]:
        return {link["ifname"] for link in self.ip("link")}

    def addresses(self, name: str) -> set[str]:
        return {
            f"{entry['local']}/{entry['prefixlen']}"
            for link in self.ip("addr", "show", "dev", name)
            for entry in link["addr_info"]
            if entry["scope"] == "global"
        }


@pytest.fixture
def wires() -> Iterator[Wires]:
    """A veth pair, out and far, with addresses; and a bridge, which no kernel lets go."""
    peers.need("ip")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    unshare(CLONE_NEWNET)
    try:
        made = Wires()
        made.ip("link", "add", "out", "mtu", "1400", "type", "veth", "peer", "name", "far")
        made.ip("link", "add", "more", "type", "veth", "peer", "name", "far2")
        made.ip("link", "add", "bridge", "type", "bridge")
        made.ip("addr", "add", "10.9.8.7/24", "brd", "+", "dev", "out")
        made.ip("addr", "add", "fd00::7/64", "dev", "out", "nodad")
        made.ip("addr", "add", "169.254.3.4/16", "scope", "link", "dev", "out")
        made.ip("addr", "add", "10.9.9.9/24", "dev", "out", "valid_lft", "1000", "preferred_lft", "1000")
        made.ip("link", "set", "out", "up")
        made.ip("link", "set", "far", "up")
        yield made
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)


SHOW = "/bin/busybox ip addr show"


def test_a_device_moves_with_its_addresses_and_is_up(ground: Ground, wires: Wires) -> None:
    mac = wires.ip("link", "show", "dev", "out")[0]["address"]
    ground.start(ground.config("sleep 60", linux={"net_devices": {"out": NetDevice()}}))
    assert "out" not in wires.names()
    code, text = ground.exec(f"{SHOW} dev out")
    assert code == 0 and ",UP" in text and "mtu 1400" in text and mac in text
    assert "inet 10.9.8.7/24 brd 10.9.8.255 scope global" in text and "inet6 fd00::7/64 scope global" in text
    assert "169.254.3.4" not in text and "10.9.9.9" not in text, "neither another scope nor a lease goes along"
    wires.ip("addr", "add", "10.9.8.1/24", "dev", "far")
    assert ground.exec("/bin/busybox ping -c 1 -W 5 10.9.8.1")[0] == 0


def test_devices_have_the_names_asked_for(ground: Ground, wires: Wires) -> None:
    devices = {"out": NetDevice("eth0"), "more": NetDevice("eth%d")}
    text = ground.output(ground.config(SHOW, linux={"net_devices": devices}))
    assert " eth0@" in text and " eth1@" in text and "10.9.8.7/24" in text and " out@" not in text


def test_a_device_that_is_down_is_up_inside(ground: Ground, wires: Wires) -> None:
    text = ground.output(ground.config(f"{SHOW} dev in0", linux={"net_devices": {"more": NetDevice("in0")}}))
    assert "<NO-CARRIER,BROADCAST,MULTICAST,UP" in text or ",UP," in text


def test_a_namespace_that_was_there_gets_them_too(ground: Ground, wires: Wires) -> None:
    first = Ground(ground.state, ground.rootfs, f"{ground.name}-1")
    first.start(first.config("sleep 60"))
    pid = first.runtime.state(first.name).pid
    joined = tuple(entry for entry in defaults.NAMESPACES if entry.type != "network")
    joined += (Namespace("network", f"/proc/{pid}/ns/net"),)
    ground.output(ground.config("true", linux={"namespaces": joined, "net_devices": {"out": NetDevice("eth0")}}))
    assert "10.9.8.7/24" in first.exec(SHOW)[1], "it stays, as the namespace does"
    with pytest.raises(Conflict, match="eth0 already"):
        ground.run(ground.config("true", linux={"namespaces": joined, "net_devices": {"more": NetDevice("eth0")}}))
    assert "more" in wires.names()
    first.clean()


def test_hooks_find_them_inside(ground: Ground, wires: Wires, tmp_path: Any) -> None:
    hook = tmp_path / "hook"
    hook.write_text(
        '#!/bin/sh\npid=$(sed "s/.*\\"pid\\": *\\([0-9]*\\).*/\\1/")\n'
        f"grep -c eth0 /proc/$pid/net/dev > {tmp_path}/found\n"
    )
    hook.chmod(0o755)
    config = ground.config("true", linux={"net_devices": {"out": NetDevice("eth0")}})
    ground.output(replace(config, hooks=Hooks(create_runtime=(Hook(str(hook), env=("PATH=/bin:/usr/bin",)),))))
    assert (tmp_path / "found").read_text() == "1\n"


@pytest.mark.parametrize("verb", ["a device that stays", "a program that is not there"])
def test_a_failure_moves_nothing(ground: Ground, wires: Wires, verb: str) -> None:
    """Neither one of the kernel's, in the middle, nor one of the program, at the end."""
    before = wires.names(), wires.addresses("out"), wires.ip("link", "show", "dev", "out")[0]["flags"]
    devices = {"out": NetDevice("eth0"), "more": NetDevice("eth1")}
    if verb == "a device that stays":
        devices["bridge"] = NetDevice()
    with pytest.raises(MamushkaError) as caught:
        program = "/bin/true" if "bridge" in devices else "/etc/passwd"
        ground.run(ground.config(program, "x", linux={"net_devices": devices}))
    assert isinstance(caught.value, Denied if "bridge" in devices else CannotExecute)
    names, found, flags = wires.names(), wires.addresses("out"), wires.ip("link", "show", "dev", "out")[0]["flags"]
    assert names == before[0] and {"10.9.8.7/24", "fd00::7/64"} <= found and "UP" in flags and "UP" in before[2]
    assert os.listdir(ground.state) == []


def test_a_virtual_device_ends_with_the_container(ground: Ground, wires: Wires) -> None:
    ground.output(ground.config("true", linux={"net_devices": {"out": NetDevice()}}))
    for _ in range(100):  # the kernel takes a namespace down behind everybody's back
        if "far" not in wires.names():
            break
        peers.run("sleep", "0.05")
    assert not {"out", "far"} & wires.names()


@pytest.mark.parametrize(
    ("devices", "kind", "message"),
    [
        ({"nowhere": NetDevice()}, NotFound, "no network device nowhere"),
        ({"out": NetDevice("a/b")}, Invalid, "'a/b'"),
        ({"out": NetDevice("x" * 16)}, Invalid, "is not a network device's name"),
        ({"out": NetDevice("eth%s")}, Invalid, "%d"),
        ({"out": NetDevice("same"), "more": NetDevice("same")}, Invalid, "same name"),
        ({"out": NetDevice("lo")}, Conflict, "a device lo already"),
    ],
)
def test_wrong_devices_are_named_and_nothing_moves(
    ground: Ground, wires: Wires, devices: dict[str, NetDevice], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        ground.run(ground.config("true", linux={"net_devices": devices}))
    assert message in f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert {"out", "more"} <= wires.names()


def test_a_shared_network_takes_none(ground: Ground, wires: Wires) -> None:
    shared = tuple(entry for entry in defaults.NAMESPACES if entry.type != "network")
    with pytest.raises(Invalid, match="needs a network namespace"):
        ground.run(ground.config("true", linux={"namespaces": shared, "net_devices": {"out": NetDevice("eth0")}}))
    assert not os.path.exists(ground.state)
