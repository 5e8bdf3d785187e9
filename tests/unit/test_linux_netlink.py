"""Netlink messages: golden bytes for what we send, any bytes for what we read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.linux import netlink, nftables, rtnetlink


def test_an_attribute_is_length_type_payload_padding():
    assert netlink.attribute(3, b"abcde") == struct.pack("=HH", 9, 3) + b"abcde\0\0\0"
    assert netlink.text(3, "eth0") == struct.pack("=HH", 9, 3) + b"eth0\0\0\0\0"
    assert netlink.number(4, 1500) == struct.pack("=HHI", 8, 4, 1500)


def test_a_nest_says_that_it_is_one():
    assert netlink.nest(18, netlink.number(1, 7)) == struct.pack("=HHHHI", 12, 18 | 0x8000, 8, 1, 7)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=10))
def test_attributes_come_back(items):
    encoded = b"".join(netlink.attribute(kind, payload) for kind, payload in items)
    assert list(netlink.each_attribute(encoded)) == items


@given(st.binary(max_size=200))
def test_any_bytes_are_attributes_up_to_the_first_lie(data):
    assert sum(4 + len(payload) for _, payload in netlink.each_attribute(data)) <= len(data)


def test_a_default_route_is_the_kernels_struct():
    message = rtnetlink.new_default_route(5, bytes([172, 17, 0, 1]))
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)
    assert message.body == header + struct.pack("=HH4sHHI", 8, 5, bytes([172, 17, 0, 1]), 8, 4, 5)


def test_the_kernel_answers_in_words_and_the_error_names_the_message():
    with rtnetlink.open_route() as route:
        loopback = rtnetlink.find_link(route, "lo")
        assert loopback is not None
        assert loopback.index == 1
        assert loopback.flags & rtnetlink.IFF_LOOPBACK
        assert loopback in rtnetlink.links(route)
        assert rtnetlink.find_link(route, "no-such-link") is None
        with pytest.raises(OSError, match="delete link 2147483647"):
            route.request([rtnetlink.delete_link(2**31 - 1)])
        assert rtnetlink.find_link(route, "lo") is not None


def test_an_nftables_rule_is_expressions_in_order():
    rule = nftables.new_rule("t", "c", nftables.meta(nftables.META_IIFNAME), nftables.verdict(nftables.NF_DROP))
    assert rule.type == nftables.NFNL_SUBSYS_NFTABLES << 8 | nftables.NFT_MSG_NEWRULE
    assert rule.body[:4] == bytes([nftables.NFPROTO_INET, 0, 0, 0])
    parts = netlink.attributes(rule.body[4:])
    assert parts[nftables.NFTA_RULE_TABLE] == b"t\0"
    expressions = [
        netlink.attributes(item) for _, item in netlink.each_attribute(parts[nftables.NFTA_RULE_EXPRESSIONS])
    ]
    assert [item[nftables.NFTA_EXPR_NAME] for item in expressions] == [b"meta\0", b"immediate\0"]
    load = netlink.attributes(expressions[0][nftables.NFTA_EXPR_DATA])
    assert load == {1: struct.pack(">I", nftables.REGISTER), 2: struct.pack(">I", nftables.META_IIFNAME)}


def test_a_jump_is_a_negative_number_in_network_order():
    assert struct.pack(">i", nftables.NFT_JUMP) in nftables.verdict(nftables.NFT_JUMP, "publish")
    assert b"publish\0" in nftables.verdict(nftables.NFT_JUMP, "publish")


def test_a_concatenations_type_and_size_are_its_fields_together():
    made = nftables.new_set("t", nftables.Set("s", (nftables.IPV4_ADDR, nftables.INET_SERVICE)), 1)
    parts = netlink.attributes(made.body[4:])
    assert parts[nftables.NFTA_SET_KEY_TYPE] == struct.pack(">I", 7 << 6 | 13)
    assert parts[nftables.NFTA_SET_KEY_LEN] == struct.pack(">I", 8)


def test_a_veths_peer_is_described_inside_it():
    message = rtnetlink.new_veth("mkv0", "eth0", peer_namespace=9, peer_mac=bytes(6), master=3, group=7)
    parts = netlink.attributes(message.body[16:])
    assert parts[rtnetlink.IFLA_IFNAME] == b"mkv0\0"
    assert netlink.as_number(parts[rtnetlink.IFLA_MASTER]) == 3
    kind = netlink.attributes(parts[rtnetlink.IFLA_LINKINFO])
    peer = netlink.attributes(kind[rtnetlink.IFLA_INFO_DATA])[rtnetlink.VETH_INFO_PEER]
    inner = netlink.attributes(peer[16:])
    assert inner[rtnetlink.IFLA_IFNAME] == b"eth0\0"
    assert netlink.as_number(inner[rtnetlink.IFLA_NET_NS_FD]) == 9
