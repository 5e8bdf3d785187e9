"""D-Bus messages: bytes as jeepney makes and reads them, and any bytes at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.spec import dbus
from mamushka.spec.dbus import CALL, ERROR, RETURN, SIGNAL, Message, Variant

jeepney = pytest.importorskip("jeepney", reason="jeepney is the oracle: pip install '.[test]'")

START = Message(
    CALL, 7, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "StartTransientUnit",
    "org.freedesktop.systemd1", "ssa(sv)a(sa(sv))",
    ("mamushka-x.scope", "fail", (("Slice", Variant("s", "a.slice")), ("PIDs", Variant("au", (3, 4))),
      ("Delegate", Variant("b", True)), ("MemoryMax", Variant("t", 1 << 20)), ("AllowedCPUs", Variant("ay", b"\x03"))),
     ()),
)  # fmt: skip

# A reply to Hello as the specification lays it out, byte for byte, big-endian: serial 1, reply to 2, ":1.5".
BIG_ENDIAN = bytes.fromhex(
    "42020101 00000009 00000001 0000000f"  # B, return, no reply expected, version 1; lengths
    "05017500 00000002"  # reply to 2
    "08016700 01730000"  # the body's signature: s; one byte of padding
    "00000004 3a312e35 00"
)


def _theirs(item: Any) -> Any:
    """Our value as jeepney has it."""
    if isinstance(item, Variant):
        return item.signature, _theirs(item.content)
    if isinstance(item, dict):
        return {_theirs(key): _theirs(inner) for key, inner in item.items()}
    if isinstance(item, tuple):
        return [_theirs(inner) for inner in item]
    return item


def _plain(item: Any) -> Any:
    """jeepney's value without the difference between its lists and tuples."""
    if isinstance(item, list | tuple):
        return [_plain(inner) for inner in item]
    if isinstance(item, dict):
        return {key: _plain(inner) for key, inner in item.items()}
    return item


def test_a_message_is_what_jeepney_reads() -> None:
    raw = dbus.encode(START)
    read = jeepney.Parser().feed(raw)[0]
    fields = read.header.fields
    assert read.header.serial == 7
    assert fields[jeepney.HeaderFields.member] == "StartTransientUnit"
    assert fields[jeepney.HeaderFields.destination] == "org.freedesktop.systemd1"
    assert _plain(read.body) == _plain(_theirs(START.body))


def test_what_jeepney_writes_is_read_in_any_pieces() -> None:
    address = jeepney.DBusAddress("/a/b", bus_name="c.d", interface="e.f")
    call = jeepney.new_method_call(address, "Get", "sa{sv}", ("x", {"y": ("t", 5)}))
    signal = jeepney.new_signal(address, "JobRemoved", "uoss", (9, "/job/9", "a.scope", "done"))
    raw = call.serialise(3) + signal.serialise(4)
    for length in range(len(raw)):
        message, used = dbus.decode(raw[:length])
        assert (message is None) == (used == 0) == (length < len(call.serialise(3)))
    first, used = dbus.decode(raw)
    second, rest = dbus.decode(raw[used:])
    assert first is not None
    assert first.body == ("x", {"y": Variant("t", 5)})
    assert second == Message(
        SIGNAL, 4, "/a/b", "e.f", "JobRemoved", signature="uoss", body=(9, "/job/9", "a.scope", "done")
    )
    assert used + rest == len(raw)


def test_the_other_byte_order() -> None:
    message, used = dbus.decode(BIG_ENDIAN)
    assert used == len(BIG_ENDIAN)
    assert message == Message(RETURN, 1, signature="s", body=(":1.5",), reply_to=2)


TYPES = st.recursive(
    st.sampled_from("ybnqiuxtdsog"),
    lambda inner: st.one_of(
        inner.map("a{}".format), st.lists(inner, min_size=1, max_size=3).map(lambda kinds: f"({''.join(kinds)})"),
        inner.map("a{{s{}}}".format), st.just("v"),
    ),
    max_leaves=5,
)  # fmt: skip
INTEGERS = {"y": (0, 8), "n": (1, 15), "q": (0, 16), "i": (1, 31), "u": (0, 32), "x": (1, 63), "t": (0, 64)}


def _values(kind: str) -> st.SearchStrategy[Any]:
    letter = kind[0]
    if letter in INTEGERS:
        signed, bits = INTEGERS[letter]
        return st.integers(-signed << bits if signed else 0, (1 << bits) - 1)
    if letter == "a" and kind[1] == "{":
        return st.dictionaries(st.text("abc", max_size=3), _values(kind[3:-1]), max_size=3)
    if letter == "a":
        return st.binary(max_size=4) if kind == "ay" else st.lists(_values(kind[1:]), max_size=3).map(tuple)
    if letter == "(":
        return st.tuples(*map(_values, dbus.split(kind[1:-1])))
    texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
    single = {
        "b": st.booleans(),
        "d": st.floats(allow_nan=False),
        "s": texts,
        "o": st.just("/a"),
        "g": st.just("a{sv}"),
    }
    return single.get(
        letter, st.sampled_from((Variant("s", "x"), Variant("at", (1, 2)), Variant("v", Variant("y", 1))))
    )


@given(TYPES.flatmap(lambda kind: st.tuples(st.just(kind), _values(kind))))
def test_every_value_comes_back_and_jeepney_agrees(drawn: tuple[str, Any]) -> None:
    kind, item = drawn
    raw = dbus.encode(Message(ERROR, 1, error="a.b", reply_to=4, signature=kind, body=(item,)))
    message, used = dbus.decode(raw)
    assert used == len(raw)
    assert message is not None
    assert message.body == (item,)
    assert _plain(jeepney.Parser().feed(raw)[0].body) == _plain(_theirs((item,)))


@given(st.binary(max_size=200), st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_any_bytes_are_a_message_or_invalid(raw: bytes, at: int, change: bytes) -> None:
    """Any bytes, and a real message with some bytes changed, are read or raise Invalid, and nothing is read beyond."""
    real = bytearray(dbus.encode(START))
    real[at % len(real) : at % len(real) + len(change)] = change
    for given_ in (raw, bytes(real), b"l\2\0\1" + raw):
        try:
            message, used = dbus.decode(given_)
        except Invalid:
            continue
        assert (message is None) == (used == 0)
        assert used <= len(given_)


@pytest.mark.parametrize("signature", ["a", "(", "()", "a{vs}", "a{s}", "a{sss}", "z", "{sv}", "a" * 40 + "y", ")"])
def test_signatures_that_are_none(signature: str) -> None:
    with pytest.raises(Invalid):
        dbus.split(signature)


def test_being_let_in() -> None:
    assert dbus.accepted(b"DATA\r\nOK 0123456789abcdef0123456789abcdef\r\n")
    assert not dbus.accepted(b"DATA\r\nOK 01234")
    with pytest.raises(Invalid, match="REJECTED EXTERNAL"):
        dbus.accepted(b"REJECTED EXTERNAL\r\n")
