"""DNS messages from anybody: parsed, or refused as Invalid; answers that another parser understands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.network import dns
from mamushka.network.address import pack


def query(name: str, kind: int = dns.A, *, id: int = 7, flags: int = 0x0100, questions: int = 1) -> bytes:
    header = b"".join(item.to_bytes(2, "big") for item in (id, flags, questions, 0, 0, 0))
    return header + dns.encode_name(name) + kind.to_bytes(2, "big") + b"\0\1"


def records(message: bytes) -> list[tuple[int, bytes]]:
    """The answers of a message of ours: names are pointers to the question."""
    question = dns.parse(message)
    offset, found = 12 + len(question.raw), []
    for _ in range(int.from_bytes(message[6:8], "big")):
        assert message[offset : offset + 2] == b"\xc0\x0c"
        length = int.from_bytes(message[offset + 10 : offset + 12], "big")
        found.append(
            (int.from_bytes(message[offset + 2 : offset + 4], "big"), message[offset + 12 : offset + 12 + length])
        )
        offset += 12 + length
    assert offset == len(message)
    return found


labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
hostnames = st.lists(labels, min_size=1, max_size=5).map(".".join)


@given(hostnames, st.integers(0, 65535), st.integers(0, 65535))
def test_a_question_comes_back(name, kind, id):
    question = dns.parse(query(name.upper(), kind, id=id))
    assert (question.name, question.type, question.id, question.klass) == (name, kind, id, dns.IN)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_question_or_invalid(data):
    try:
        question = dns.parse(data)
    except Invalid:
        assert dns.malformed(data) == b"" or dns.malformed(data)[:2] == data[:2]
        return
    assert len(question.name) < 255
    assert question.raw in data


@given(st.binary(max_size=40), st.integers(0, 80))
def test_a_cut_or_bent_query_is_parsed_or_invalid(tail, cut):
    message = query("a-rather-long-label.and.another.one")[:cut] + tail
    try:
        dns.parse(message)
    except Invalid:
        pass


def test_a_compressed_question_is_refused():
    message = query("x")[:12] + b"\xc0\x0c\0\1\0\1"
    with pytest.raises(Invalid, match="label of 192 bytes"):
        dns.parse(message)


def test_an_answer_is_never_answered_as_malformed():
    assert dns.malformed(b"\0\7\x80\0" + bytes(8)) == b""
    assert dns.malformed(b"\0\7") == b""
    assert dns.malformed(b"\0\7\1\0" + bytes(8))[:4] == b"\0\7\x80\x81"


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, "a." * 130, "\u20ac"])
def test_what_is_no_name_is_invalid(name):
    with pytest.raises(Invalid):
        dns.encode_name(name)


@pytest.fixture
def directory():
    directory = dns.Directory()
    directory.add(["db", "store"], [pack("172.18.0.2"), pack("fd00::2")])
    directory.add(["db2", "store"], [pack("172.18.0.3")])
    return directory


def test_names_have_their_addresses_of_the_type_asked_for(directory):
    assert directory.find(dns.parse(query("DB"))) == [(dns.A, pack("172.18.0.2"))]
    assert directory.find(dns.parse(query("db", dns.AAAA))) == [(dns.AAAA, pack("fd00::2"))]
    assert directory.find(dns.parse(query("db2", dns.AAAA))) == []
    assert directory.find(dns.parse(query("db", 15))) == []
    assert directory.find(dns.parse(query("elsewhere"))) is None


def test_an_alias_of_two_names_both_in_turn(directory):
    answers = {tuple(directory.find(dns.parse(query("store", id=id)))) for id in range(6)}
    assert {address for answer in answers for _, address in answer} == {pack("172.18.0.2"), pack("172.18.0.3")}
    assert len({answer[0] for answer in answers}) == 2


def test_an_address_has_its_name(directory):
    for address in ("172.18.0.2", "fd00::2"):
        found = directory.find(dns.parse(query(dns.reverse_name(pack(address)), dns.PTR)))
        assert found == [(dns.PTR, dns.encode_name("db"))]
    assert directory.find(dns.parse(query("9.9.9.9.in-addr.arpa", dns.PTR))) is None
    assert dns.reverse_name(pack("172.17.0.2")) == "2.0.17.172.in-addr.arpa"


def test_an_answer_keeps_the_question_as_it_was_written():
    question = dns.parse(query("Db.TEST", id=99))
    message = dns.answer(question, [(dns.A, bytes(4))])
    assert message[:2] == b"\0\x63"
    assert question.raw in message
    assert records(message) == [(dns.A, bytes(4))]
    assert dns.parse(message).flags & 0x8180 == 0x8180


def test_an_answer_that_does_not_fit_says_that_it_is_cut():
    question = dns.parse(query("many"))
    many = [(dns.A, number.to_bytes(4, "big")) for number in range(100)]
    cut = dns.answer(question, many)
    assert len(cut) <= dns.UDP_MAX
    assert dns.parse(cut).flags & 0x0200
    assert records(cut) == many[: len(records(cut))]
    assert records(dns.answer(question, many, limit=65535)) == many
