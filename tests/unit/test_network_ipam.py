"""Addresses and subnets: our integers against the standard library, and what allocation promises."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Conflict, Invalid
from mamushka.network import ipam
from mamushka.network.address import Subnet, parse, parse_subnet, unpack

subnets4 = st.builds(
    lambda base, prefix: parse_subnet(f"{ipaddress.IPv4Address(base)}/{prefix}", strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(16, 29),
)


@given(st.ip_addresses())
def test_an_address_comes_back_as_the_standard_library_writes_it(address):
    bits = 32 if address.version == 4 else 128
    assert parse(str(address)) == int(address)
    assert ipaddress.ip_address(unpack(int(address), bits)) == address


@given(st.text(max_size=30))
def test_any_text_is_a_subnet_or_invalid(text):
    try:
        subnet = parse_subnet(text)
    except Invalid:
        return
    assert ipaddress.ip_network(str(subnet)).network_address == ipaddress.ip_network(text).network_address


@pytest.mark.parametrize("text", ["172.17.0.1/16", "172.17.0.0", "172.17.0.0/33", "::/129", "1.2.3/8", "a/8", "/8", ""])
def test_broken_subnets_are_refused(text):
    with pytest.raises(Invalid):
        parse_subnet(text)


@given(subnets4, subnets4)
def test_overlap_is_the_standard_librarys(one, other):
    assert one.overlaps(other) == ipaddress.ip_network(str(one)).overlaps(ipaddress.ip_network(str(other)))


@given(st.lists(subnets4, max_size=12))
def test_a_chosen_subnet_overlaps_none_in_use(used):
    assert not any(ipam.choose_subnet(used).overlaps(subnet) for subnet in used)


def test_the_pools_are_dockers_in_order():
    used: list[Subnet] = []
    for _ in range(31):
        used.append(ipam.choose_subnet(used))
    assert str(used[0]) == "172.17.0.0/16"
    assert str(used[15]) == "192.168.0.0/20"
    with pytest.raises(Conflict, match="used up"):
        ipam.choose_subnet(used)


def test_a_host_route_to_everything_private_leaves_the_other_pools():
    assert str(ipam.choose_subnet([parse_subnet("172.16.0.0/12")])) == "192.168.0.0/20"


def test_addresses_come_in_turn_and_rest_before_they_come_back():
    subnet = parse_subnet("10.0.0.0/29")
    taken = {parse("10.0.0.1")}
    assert ipam.allocate(subnet, taken) == "10.0.0.2"
    assert ipam.allocate(subnet, taken, after=parse("10.0.0.2")) == "10.0.0.3"
    assert ipam.allocate(subnet, taken, after=parse("10.0.0.6")) == "10.0.0.2"
    assert ipam.allocate(subnet, {*taken, parse("10.0.0.6")}, after=parse("10.0.0.5")) == "10.0.0.2"


def test_an_exhausted_subnet_is_a_conflict():
    subnet = parse_subnet("10.0.0.0/30")
    with pytest.raises(Conflict, match="no free address"):
        ipam.allocate(subnet, {parse("10.0.0.1"), parse("10.0.0.2")})


@pytest.mark.parametrize(
    ("requested", "error"),
    [("10.0.0.1", Conflict), ("10.0.1.1", Invalid), ("10.0.0.255", Invalid), ("10.0.0.0", Invalid), ("::1", Invalid)],
)
def test_a_requested_address_must_be_free_and_inside(requested, error):
    with pytest.raises(error):
        ipam.allocate(parse_subnet("10.0.0.0/24"), {parse("10.0.0.1")}, requested=requested)


@given(subnets4, st.integers(0, 2**16), st.sets(st.integers(0, 40), max_size=40))
def test_an_allocated_address_is_inside_and_free(subnet, offset, offsets):
    taken = {subnet.base + 1 + step for step in offsets}
    try:
        address = parse(ipam.allocate(subnet, taken, after=subnet.base + offset))
    except Conflict:
        assert len(taken & set(range(subnet.base + 1, subnet.last))) == subnet.last - subnet.base - 1
        return
    assert address not in taken
    assert subnet.base < address < subnet.last


def test_the_mac_is_dockers():
    assert ipam.mac_of("172.17.0.2") == "02:42:ac:11:00:02"


def test_a_range_bounds_what_is_given_out():
    subnet = parse_subnet("10.0.0.0/24")
    assert ipam.allocate(subnet, (), ip_range=parse_subnet("10.0.0.128/25")) == "10.0.0.128"
