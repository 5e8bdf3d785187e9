"""gdb's packets without a socket, and target.xml as gdb's own parser reads it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.machine.gdb.protocol import INTERRUPT, PACKET_MAX, Packets, checksum, number, octets
from mamushka.machine.gdb.x86 import X86_64


def packet(text: bytes) -> bytes:
    return b"$" + text + b"#" + checksum(text)


def test_packets_are_acknowledged_until_it_is_agreed_that_they_are_not() -> None:
    packets = Packets()
    assert packets.feed(b"+" + packet(b"g")) == [b"$g"] and bytes(packets.out) == b"+"
    packets.out.clear()
    assert packets.feed(b"$g#00") == [] and bytes(packets.out) == b"-"
    packets.out.clear()
    packets.send(b"OK")
    assert bytes(packets.out) == b"$OK#9a"
    packets.out.clear()
    packets.feed(b"-")
    assert bytes(packets.out) == b"$OK#9a", "it is sent again"
    packets.acknowledged = False
    packets.out.clear()
    assert packets.feed(packet(b"g") + INTERRUPT + packet(b"?")) == [b"$g", INTERRUPT, b"$?"]
    assert not packets.out


def test_escapes() -> None:
    packets = Packets()
    packets.send(b"a#b$c}d*")
    assert bytes(packets.out).startswith(b"$a}\x03b}\x04c}]d}\x0a#")
    other = Packets()
    assert other.feed(bytes(packets.out)) == [b"$a#b$c}d*"]


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(1, 7))
def test_what_is_sent_arrives_in_any_pieces(texts: list[bytes], step: int) -> None:
    sender, receiver = Packets(), Packets()
    for text in texts:
        sender.send(text)
    raw = bytes(sender.out)
    found = [event for at in range(0, len(raw), step) for event in receiver.feed(raw[at : at + step])]
    assert found == [b"$" + text for text in texts]
    assert bytes(receiver.out) == b"+" * len(texts)


def test_a_packet_without_an_end_is_refused() -> None:
    packets = Packets()
    with pytest.raises(Invalid):
        for _ in range(PACKET_MAX):
            packets.feed(b"$" * 100)


@pytest.mark.parametrize("digits", [b"", b"-1", b"x", b"1" * 17, b" 1"])
def test_numbers(digits: bytes) -> None:
    assert number(b"fF") == 255
    with pytest.raises(Invalid):
        number(digits)
    with pytest.raises(Invalid):
        octets(b"abc")


def test_the_description_names_every_register_once() -> None:
    tree = ElementTree.fromstring(X86_64.description())
    assert tree.findtext("architecture") == "i386:x86-64"
    names = [item.get("name") for item in tree.iter("reg")]
    assert len(names) == len(set(names)) == len(X86_64.registers)
    assert names[:3] == ["rax", "rbx", "rcx"] and names[16:18] == ["rip", "eflags"]
