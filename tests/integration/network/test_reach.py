"""Who reaches whom: between workloads, out, in by published ports, and what nobody may reach."""

from __future__ import annotations

import os
import socket
import time

import pytest

from mamushka.errors import Conflict, Invalid
from mamushka.network import portmap
from mamushka.network.namespace import Entered
from mamushka.network.network import PortMapping
from tests.integration.network.conftest import HOST, HOST6, OUTSIDE, OUTSIDE6, SECOND, SILENCE, Host, Place

pytestmark = [pytest.mark.root, pytest.mark.network]


def test_workloads_of_a_network_reach_each_other(host: Host) -> None:
    network = host.network()
    (one, first), (two, second) = host.plug(network), host.plug(network)
    assert two.reaches(one.listen(first.address, 80), first.address, 80) == second.address


def test_a_workload_reaches_out_with_the_hosts_address(host: Host) -> None:
    workload, _ = host.plug(host.network())
    listener = host.outside.listen(OUTSIDE, 80)
    assert workload.reaches(listener, OUTSIDE, 80) == HOST


def test_the_mac_is_the_one_given_and_there_is_no_ipv6_without_a_subnet(host: Host) -> None:
    workload, entry = host.plug(host.network())
    shown = workload.run("ip", "address", "show", "eth0")
    assert entry.mac in shown
    assert "inet6" not in shown
    assert "inet6 ::1" in workload.run("ip", "address", "show", "lo")


def test_a_workload_sends_no_larger_packets_than_the_way_out_takes(host: Host) -> None:
    host.run("ip", "link", "set", "wan", "mtu", "1400")
    workload, _ = host.plug(host.network())
    assert "mtu 1400" in workload.run("ip", "link", "show", "eth0")
    small, _ = host.plug(host.network("small", 35, mtu=1300))
    assert "mtu 1300" in small.run("ip", "link", "show", "eth0")
    assert "mtu 1400" in host.run("ip", "link", "show", "mk-default")


@pytest.mark.parametrize("by", [HOST, SECOND])
def test_a_published_port_answers_from_outside(host: Host, by: str) -> None:
    workload, entry = host.plug(host.network())
    host.publish(PortMapping(entry.address, 80, 8080))
    assert host.outside.reaches(workload.listen("0.0.0.0", 80), by, 8080) == OUTSIDE


@pytest.mark.parametrize("by", ["127.0.0.1", HOST, SECOND, "172.30.0.1"])
def test_a_published_port_answers_from_the_host_itself(host: Host, by: str) -> None:
    workload, entry = host.plug(host.network())
    host.publish(PortMapping(entry.address, 80, 8080))
    assert host.reaches(workload.listen("0.0.0.0", 80), by, 8080)


@pytest.mark.parametrize("filtered", ["0", "1"])
def test_a_published_port_answers_workloads_by_the_hosts_address(host: Host, filtered: str) -> None:
    """With and without br_netfilter, which shows bridged packets to the filter as if they were routed."""
    switch = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    if not os.path.exists(switch):
        pytest.skip("no br_netfilter: modprobe br_netfilter")
    host.run("sh", "-c", f"echo {filtered} >{switch}")
    network, other = host.network(), host.network("other", 31)
    (server, entry), (neighbour, _), (stranger, _) = host.plug(network), host.plug(network), host.plug(other)
    host.publish(PortMapping(entry.address, 80, 8080))
    listener = server.listen("0.0.0.0", 80)
    assert neighbour.reaches(listener, HOST, 8080)
    assert server.reaches(listener, HOST, 8080)
    assert stranger.reaches(listener, HOST, 8080)


def test_a_port_published_at_one_address_answers_there_alone(host: Host) -> None:
    workload, entry = host.plug(host.network())
    host.publish(PortMapping(entry.address, 80, 8080, host_address=SECOND))
    listener = workload.listen("0.0.0.0", 80)
    assert host.outside.reaches(listener, SECOND, 8080)
    assert not host.outside.reaches(listener, HOST, 8080, timeout=SILENCE)
    assert not host.reaches(listener, "127.0.0.1", 8080, timeout=SILENCE)


def _send_loopback_to(place: Place, gateway: str, link: str) -> None:
    """Somebody with root in a namespace of its own, who sends packets for 127.0.0.1 over the wire."""
    place.run("sh", "-c", f"echo 1 >/proc/sys/net/ipv4/conf/{link}/route_localnet")
    place.run("ip", "route", "add", "127.0.0.0/8", "via", gateway, "dev", link, "table", "9")
    place.run("ip", "rule", "add", "lookup", "local", "pref", "100")
    place.run("ip", "rule", "add", "to", "127.0.0.0/8", "lookup", "9", "pref", "10")
    place.run("ip", "rule", "del", "lookup", "local", "pref", "0")


def test_a_port_published_on_the_loopback_is_the_hosts_alone(host: Host) -> None:
    workload, entry = host.plug(host.network())
    host.publish(PortMapping(entry.address, 80, 8080, host_address="127.0.0.1"))
    listener = workload.listen("0.0.0.0", 80)
    assert host.reaches(listener, "127.0.0.1", 8080)
    assert not host.outside.reaches(listener, HOST, 8080, timeout=SILENCE)
    _send_loopback_to(host.outside, HOST, "wan")
    assert not host.outside.reaches(listener, "127.0.0.1", 8080, timeout=SILENCE)
    host.run("nft", "insert", "rule", "inet", host.scope.table, "prerouting", "jump", "publish")
    assert host.outside.reaches(listener, "127.0.0.1", 8080)  # so the attack is a real one


def test_udp_is_answered_from_the_address_that_was_asked(host: Host) -> None:
    workload, entry = host.plug(host.network())
    host.publish(PortMapping(entry.address, 53, 5353, "udp"))
    server = workload.listen("0.0.0.0", 53, socket.SOCK_DGRAM)
    for place, asked in ((host.outside, HOST), (host.outside, SECOND), (host, "127.0.0.1"), (host, HOST)):
        with place.open(asked, socket.SOCK_DGRAM) as client:
            client.settimeout(2)
            client.connect((asked, 5353))
            client.send(b"question")
            data, peer = server.recvfrom(64)
            server.sendto(data + b"!", peer)
            assert client.recv(64) == b"question!"


def test_a_udp_client_that_goes_on_reaches_the_next_owner_of_the_port(host: Host) -> None:
    network = host.network()
    (one, first), (two, second) = host.plug(network), host.plug(network)
    with host.outside.open(HOST, socket.SOCK_DGRAM) as client:
        client.connect((HOST, 5353))
        for place, entry in ((one, first), (two, second)):
            server = place.listen("0.0.0.0", 53, socket.SOCK_DGRAM)
            mapping = host.publish(PortMapping(entry.address, 53, 5353, "udp"))
            client.send(b"question")
            assert server.recv(64) == b"question"
            portmap.unpublish(host.filter, host.scope, [mapping])
            os.close(host.held.pop())


def test_networks_are_apart(host: Host) -> None:
    (one, first), (two, _) = host.plug(host.network()), host.plug(host.network("other", 31))
    listener = one.listen("0.0.0.0", 80)
    assert not two.reaches(listener, first.address, 80, timeout=SILENCE)


def test_what_is_not_published_is_not_reached_from_outside(host: Host) -> None:
    workload, entry = host.plug(host.network())
    host.outside.run("ip", "route", "add", "172.30.0.0/16", "via", HOST)
    listener = workload.listen("0.0.0.0", 80)
    assert not host.outside.reaches(listener, entry.address, 80, timeout=SILENCE)
    assert host.reaches(listener, entry.address, 80)


def test_an_internal_network_has_no_way_out(host: Host) -> None:
    network = host.network("closed", 32, internal=True)
    (one, first), (two, second) = host.plug(network), host.plug(network)
    assert two.reaches(one.listen("0.0.0.0", 80), first.address, 80) == second.address
    one.run("ip", "route", "add", "default", "via", network.gateway)
    assert not one.reaches(host.outside.listen(OUTSIDE, 80), OUTSIDE, 80, timeout=SILENCE)


def test_the_hosts_loopback_is_out_of_reach(host: Host) -> None:
    workload, _ = host.plug(host.network())
    listener = host.listen("0.0.0.0", 2375)
    _send_loopback_to(workload, "172.30.0.1", "eth0")
    assert not workload.reaches(listener, "127.0.0.1", 2375, timeout=SILENCE)
    host.run("nft", "flush", "chain", "inet", host.scope.table, "guard")
    assert workload.reaches(listener, "127.0.0.1", 2375)  # so the attack is a real one


def _times_refused(place: Place, address: str) -> float:
    begin = time.monotonic()
    with place.open(address) as client:
        client.settimeout(5)
        with pytest.raises(OSError):
            client.connect((address, 80))
    return time.monotonic() - begin


def test_metadata_is_refused_at_once_unless_asked_for(host: Host) -> None:
    host.outside.run("ip", "address", "add", "169.254.169.254/32", "dev", "wan")
    host.run("ip", "address", "add", "169.254.20.10/32", "dev", "lo")
    listeners = host.outside.listen("169.254.169.254", 80), host.listen("169.254.20.10", 80)
    guarded, _ = host.plug(host.network())
    trusted, _ = host.plug(host.network("cloud", 33, metadata=True))
    for listener in listeners:
        address = listener.getsockname()[0]
        assert _times_refused(guarded, address) < 1
        assert trusted.reaches(listener, address, 80)


def test_ipv6_goes_out_and_comes_in(host: Host) -> None:
    network = host.network("six", 34, subnet6="fd00:34::/64", gateway6="fd00:34::1")
    (one, first), (two, second) = host.plug(network), host.plug(network)
    assert two.reaches(one.listen("::", 80), first.address6, 80) == second.address6
    assert one.reaches(host.outside.listen(OUTSIDE6, 81), OUTSIDE6, 81) == HOST6
    host.publish(PortMapping(first.address6, 82, 8082))
    assert host.outside.reaches(one.listen("::", 82), HOST6, 8082) == OUTSIDE6
    assert host.reaches(one.listen("::", 83), first.address6, 83)


@pytest.mark.parametrize("outside", [OUTSIDE, OUTSIDE6])
def test_the_first_packet_out_goes_through(host: Host, outside: str) -> None:
    """One that is lost is sent again after a second; a question for a name after five."""
    network = host.network("six", 34, subnet6="fd00:34::/64", gateway6="fd00:34::1")
    listener = host.outside.listen(outside, 80)
    workload, _ = host.plug(network)
    begin = time.monotonic()
    assert workload.reaches(listener, outside, 80)
    assert time.monotonic() - begin < 0.9


def test_ipv6_works_from_the_first_packet(host: Host) -> None:
    """Duplicate detection would hold it back for a second or two, links that are not ready yet for one."""
    network = host.network("six", 34, subnet6="fd00:34::/64", gateway6="fd00:34::1")
    workload, entry = host.plug(network)
    host.publish(PortMapping(entry.address6, 80, 8080))
    begin = time.monotonic()
    assert host.outside.reaches(workload.listen("::", 80), HOST6, 8080)
    assert time.monotonic() - begin < 0.9


def test_the_hosts_own_rules_stand(host: Host) -> None:
    workload, entry = host.plug(host.network())
    host.publish(PortMapping(entry.address, 80, 8080))
    listener = workload.listen("0.0.0.0", 80)
    assert host.outside.reaches(listener, HOST, 8080)
    host.run("nft", "add table ip filter")
    host.run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    assert not host.outside.reaches(listener, HOST, 8080, timeout=SILENCE)
    host.run("nft", "add rule ip filter FORWARD iifname mk-default accept")
    host.run("nft", "add rule ip filter FORWARD oifname mk-default accept")
    assert host.outside.reaches(listener, HOST, 8080)


def test_the_host_is_no_router_between_its_own_links(host: Host) -> None:
    third = Place()
    try:
        host.wire("lan", third)
        for place, address in ((host, "198.51.100.1/24"), (third, "198.51.100.2/24")):
            place.run("ip", "address", "add", address, "dev", "lan")
            place.run("ip", "link", "set", "lan", "up")
        third.run("ip", "route", "add", "default", "via", "198.51.100.1")
        host.outside.run("ip", "route", "add", "198.51.100.0/24", "via", HOST)
        host.plug(host.network())
        assert host.run("cat", "/proc/sys/net/ipv4/conf/lan/forwarding").strip() == "1"
        assert not third.reaches(host.outside.listen(OUTSIDE, 80), OUTSIDE, 80, timeout=SILENCE)
    finally:
        third.close()


def test_a_taken_port_is_a_conflict_whoever_has_it(host: Host) -> None:
    _, entry = host.plug(host.network())
    host.publish(PortMapping(entry.address, 80, 8080))
    program = host.listen("0.0.0.0", 9090)
    for port, address in ((8080, ""), (8080, "127.0.0.1"), (9090, "")):
        with Entered(host.fd), pytest.raises(Conflict, match="port is already allocated"):
            portmap.reserve(PortMapping(entry.address, 81, port, host_address=address))
    program.close()
    host.publish(PortMapping(entry.address, 80, 8080, "udp"))


def test_an_address_that_the_host_lacks_is_invalid(host: Host) -> None:
    with Entered(host.fd), pytest.raises(Invalid, match="does not have the address"):
        portmap.reserve(PortMapping("172.30.0.2", 80, 8080, host_address="192.0.2.99"))


def test_a_free_port_is_found(host: Host) -> None:
    workload, entry = host.plug(host.network())
    mapping = host.publish(PortMapping(entry.address, 80, 0))
    assert mapping.host_port >= 1024
    assert host.outside.reaches(workload.listen("0.0.0.0", 80), HOST, mapping.host_port)
