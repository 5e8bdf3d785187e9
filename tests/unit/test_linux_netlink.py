"""Netlink messages: golden bytes for what we send, any bytes for what we read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.linux import netlink, rtnetlink


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
