"""The guest protocol from the host's side: any bytes are events or a GuestFault, in pieces as at once."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import GuestFault, Invalid
from mamushka.machine.agent import protocol, words
from mamushka.machine.agent.protocol import Answer, Exited, Failure, Fields, Hello, Log, Opened, Parser

GUEST = Path(words.__file__).parents[2] / "guest"


def enums() -> dict[str, int]:
    """Every constant of the C header's unnamed enums, and its numeric macros."""
    text = re.sub(r"/\*.*?\*/", "", (GUEST / "guest.h").read_text(), flags=re.S)
    found = {}
    for body in re.findall(r"enum \{(.*?)\};", text, flags=re.S):
        number = 0
        for item in filter(None, (part.strip() for part in body.split(","))):
            name, _, value = (part.strip() for part in item.partition("="))
            number = int(value) if value else number
            found[name] = number
            number += 1
    found.update({name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)$", text, flags=re.M)})
    return found


def test_the_words_are_the_guests():
    guest = enums()
    ours = {name: value for name, value in vars(words).items() if isinstance(value, int)}
    assert len(ours) > 100
    assert {name: guest.get(name) for name in ours} == ours
    assert {name for name in guest if name.startswith("K_")} == {name for name in ours if name.startswith("K_")}


def test_the_types_of_keys_are_the_guests():
    source = (GUEST / "frame.c").read_text()

    def cases(function: str, answer: str) -> set[int]:
        body = source[source.index(f"static int {function}(") :]
        body = body[: body.index("\n}")]
        listed = re.search(
            r"((?:\s*case K_\w+:)+)\s*return " + answer, body.split("BYTES;")[-1] if answer == "TEXT" else body
        )
        assert listed
        return {getattr(words, name) for name in re.findall(r"K_\w+", listed[1])}

    assert cases("is_group", "1") == words.GROUPS
    assert cases("type_of", "BYTES") == words.BYTES
    assert cases("type_of", "TEXT") == words.TEXTS


def test_a_frame_is_header_and_fields():
    made = protocol.frame(7, 9, protocol.number(words.K_PID, -1), protocol.text(words.K_PATH, "/a\udcff"))
    body = struct.pack("<HIQ", words.K_PID, 8, 2**64 - 1) + struct.pack("<HI", words.K_PATH, 3) + b"/a\xff"
    assert made == struct.pack("<IHHI", len(body), 7, 0, 9) + body


def test_what_the_guest_would_not_take_is_refused_here():
    with pytest.raises(Invalid, match="arguments and environment are"):
        protocol.frame(words.EXEC, 1, protocol.raw(words.K_DATA, bytes(protocol.REQUEST_MAX)))


def frames() -> st.SearchStrategy[bytes]:
    """Frames such as an agent sends, and such as none does."""
    key = st.sampled_from(sorted(value for name, value in vars(words).items() if name.startswith("K_"))) | st.integers(
        0, 0xFFFF
    )
    payload = st.binary(max_size=20) | st.integers(0, 2**64 - 1).map(lambda number: number.to_bytes(8, "little"))
    field = st.builds(protocol.raw, key, payload)
    nested = st.recursive(
        field, lambda inner: st.builds(lambda key, parts: protocol.group(key, *parts), key, st.lists(inner, max_size=3))
    )
    kind = st.sampled_from(
        [words.HELLO, words.REPLY, words.ERROR, words.EXITED, words.LOG, words.STREAM]
    ) | st.integers(0, 0xFFFF)
    return st.builds(
        lambda kind, id, parts: protocol.frame(kind, id, *parts),
        kind, st.integers(0, 2**32 - 1), st.lists(nested, max_size=4),
    )  # fmt: skip


def events(pieces: list[bytes]) -> tuple[list[Any], bool]:
    """All that is told, and whether it ended in a fault."""
    parser = Parser()
    told: list[Any] = []
    for piece in pieces:
        # One at a time: a fault must not take along what was whole before it.
        data = piece
        try:
            while found := parser.feed(data, most=1):
                told += found
                data = b""
        except GuestFault:
            return told, True
    return told, False


def shape(event: Any) -> Any:
    return (event.id, list(event.fields)) if isinstance(event, Answer) else event


@given(st.lists(frames() | st.binary(max_size=40), max_size=5).map(b"".join), st.lists(st.integers(1, 50), max_size=20))
def test_any_bytes_are_events_or_a_fault_in_pieces_as_at_once(data, sizes):
    whole, fault = events([data])
    pieces = []
    left = data
    for size in sizes:
        pieces.append(left[:size])
        left = left[size:]
    told, fault_in_pieces = events([*pieces, left])
    assert [shape(event) for event in told] == [shape(event) for event in whole]
    assert fault_in_pieces == fault


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<IHHI", protocol.FRAME_MAX + 1, words.LOG, 0, 0),
        struct.pack("<IHHI", 0, words.LOG, 1, 0),
        struct.pack("<IHHI", 0, words.CREATE, 0, 0),
        protocol.frame(words.EXITED, 0, protocol.number(words.K_CODE, 256)),
        protocol.frame(words.EXITED, 0, protocol.number(words.K_SIGNAL, 65)),
        protocol.frame(words.ERROR, 1, protocol.number(words.K_ERRNO, 4096)),
        protocol.frame(words.LOG, 0, protocol.raw(words.K_TEXT, b"a\0b")),
        protocol.frame(words.LOG, 0, protocol.raw(words.K_TEXT, bytes([65]) * (protocol.TEXT_MAX + 1))),
        protocol.frame(words.STREAM, 0, protocol.raw(words.K_TOKEN, b"short")),
        protocol.frame(words.REPLY, 1, protocol.raw(words.K_PID, b"1234567")),
        protocol.frame(words.REPLY, 1, struct.pack("<HI", words.K_PID, 9) + bytes(8)),
        protocol.frame(words.REPLY, 1, b"\1\0\0"),
    ],
)
def test_lies_are_faults(raw):
    with pytest.raises(GuestFault, match="the guest's agent"):
        Parser().feed(raw)


def test_groups_are_not_endless():
    nested = protocol.number(words.K_PID, 1)
    for _ in range(protocol.DEPTH_MAX):
        nested = protocol.group(words.K_ITEM, nested)
    assert Fields(nested)
    with pytest.raises(GuestFault, match="deep"):
        Fields(protocol.group(words.K_ITEM, nested))


def test_events():
    token = bytes(range(16))
    raw = b"".join((
        protocol.frame(
            words.HELLO, 0, protocol.number(words.K_VERSION, 1), protocol.number(words.K_FEATURES, 3),
            protocol.text(words.K_RELEASE, "6.1"), protocol.text(words.K_MACHINE, "x86_64"),
        ),
        protocol.frame(words.REPLY, 5, protocol.number(words.K_PID, 77)),
        protocol.frame(
            words.ERROR, 6, protocol.number(words.K_KIND, 1), protocol.number(words.K_ERRNO, 2),
            protocol.text(words.K_OPERATION, "execve"), protocol.text(words.K_PATH, "x"),
        ),
        protocol.frame(words.EXITED, 0, protocol.number(words.K_PROCESS, 4), protocol.number(words.K_SIGNAL, 9),
                       protocol.number(words.K_OOM, 1),
                       protocol.group(words.K_OPEN, protocol.number(words.K_STREAM, 1),
                                      protocol.number(words.K_SIZE, 12))),
        protocol.frame(words.LOG, 0, protocol.text(words.K_TEXT, "hm")),
        protocol.frame(words.STREAM, 0, protocol.raw(words.K_TOKEN, token), protocol.number(words.K_PROCESS, 4),
                       protocol.number(words.K_STREAM, 2)),
    ))  # fmt: skip
    hello, answer, failure, exited, log, opened = Parser().feed(raw + b"tail")
    assert hello == Hello(1, 3, "6.1", "x86_64", b"")
    assert isinstance(answer, Answer)
    assert (answer.id, answer.fields.number(words.K_PID)) == (5, 77)
    assert failure == Failure(6, 1, 2, "execve", "x")
    assert exited == Exited(4, 0, 9, True, ((1, 12),))
    assert log == Log("hm")
    assert opened == Opened(token, 4, 2)


def test_at_most_one_leaves_the_rest():
    parser = Parser()
    first = protocol.frame(words.STREAM, 0, protocol.raw(words.K_TOKEN, bytes(16)))
    assert len(parser.feed(first + b"bytes of the stream", most=1)) == 1
    assert parser.rest == b"bytes of the stream"
