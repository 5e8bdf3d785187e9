"""Nothing is left behind, and what others took away comes back."""

from __future__ import annotations

import os
import time

import pytest

from mamushka.network import portmap
from mamushka.network.network import PortMapping
from tests.integration.network.conftest import HOST, OUTSIDE, Host

pytestmark = [pytest.mark.root, pytest.mark.network]


def settle(host: Host) -> None:
    """Wait until the kernel has taken the links of closed namespaces away."""
    deadline = time.monotonic() + 10
    while "mkv" in host.run("ip", "-brief", "link") and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_last_one_out_leaves_the_host_as_it_was(host: Host) -> None:
    workload, entry = host.plug(host.network())
    mapping = host.publish(PortMapping(entry.address, 80, 8080))
    host.sweep()
    assert workload.reaches(host.outside.listen(OUTSIDE, 80), OUTSIDE, 80)
    portmap.unpublish(host.filter, host.scope, [mapping])
    portmap.unpublish(host.filter, host.scope, [mapping])
    workload.close()
    settle(host)
    host.sweep()
    assert host.state() == host.before
    host.sweep()
    assert host.state() == host.before


def test_after_a_kill_one_reconcile_cleans_everything(host: Host) -> None:
    """A starter that was killed: links, bridge, table and ports stand, and nobody will take them down."""
    for network in (host.network(), host.network("other", 31)):
        _, entry = host.plug(network)
        host.publish(PortMapping(entry.address, 80, 0))
    host.reconcile(networks=False)
    assert host.state() == host.before


def test_reconcile_keeps_the_living_and_removes_the_rest(host: Host) -> None:
    network = host.network()
    (one, first), (_, second) = host.plug(network), host.plug(network)
    alive = host.publish(PortMapping(first.address, 80, 8080))
    host.publish(PortMapping(second.address, 80, 8081))
    host.plug(host.network("other", 31))
    host.endpoints[:] = [first]
    del host.networks["other"]
    host.reconcile(alive)
    links = host.run("ip", "-brief", "link")
    assert "mk-default" in links
    assert "mk-other" not in links
    assert links.count("mkv") == 1
    listener = one.listen("0.0.0.0", 80)
    assert host.outside.reaches(listener, HOST, 8080)
    assert "8081" not in host.run("nft", "list", "ruleset")
    before = host.state()
    host.reconcile(alive)
    assert host.state() == before


def test_a_flushed_ruleset_comes_back(host: Host) -> None:
    workload, entry = host.plug(host.network())
    mapping = host.publish(PortMapping(entry.address, 80, 8080))
    host.run("nft", "flush", "ruleset")
    host.reconcile(mapping)
    assert host.outside.reaches(workload.listen("0.0.0.0", 80), HOST, 8080)


def test_who_holds_the_reservation_replaces_what_a_killed_holder_left(host: Host) -> None:
    network = host.network()
    (_, first), (two, second) = host.plug(network), host.plug(network)
    host.publish(PortMapping(first.address, 80, 8080))
    os.close(host.held.pop())
    host.publish(PortMapping(second.address, 80, 8080))
    assert host.outside.reaches(two.listen("0.0.0.0", 80), HOST, 8080)


def test_a_half_made_bridge_is_completed(host: Host) -> None:
    network = host.network()
    host.run("ip", "link", "add", network.bridge, "group", str(host.scope.group), "type", "bridge")
    workload, _ = host.plug(network)
    assert workload.reaches(host.outside.listen(OUTSIDE, 80), OUTSIDE, 80)


def test_what_others_have_stays(host: Host) -> None:
    host.run("ip", "link", "add", "theirs", "type", "bridge")
    host.run("nft", "add", "table", "inet", "theirs")
    before = host.state()
    host.plug(host.network())
    host.reconcile(networks=False)
    assert host.state() == before


def test_a_host_that_forwards_goes_on_forwarding(host: Host) -> None:
    host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    before = host.state()
    workload, _ = host.plug(host.network())
    assert workload.reaches(host.outside.listen(OUTSIDE, 80), OUTSIDE, 80)
    host.reconcile(networks=False)
    assert host.state() == before
