"""Device rules: the program for cgroup v2 and the writes for v1, each run against the plain reading of the rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.container.cgroups import devices
from mamushka.errors import Invalid, Unsupported
from mamushka.spec.runtime import DeviceRule

BITS = {"m": 1, "r": 2, "w": 4}

rules = st.lists(
    st.builds(
        DeviceRule,
        st.booleans(),
        st.sampled_from(["a", "b", "c", "c", "c"]),
        st.sampled_from([None, 1, 5]),
        st.sampled_from([None, 0, 3]),
        st.sampled_from(["r", "w", "m", "rw", "rwm", ""]),
    ),
    max_size=6,
)
accesses = st.tuples(
    st.sampled_from("bc"), st.sampled_from([1, 5, 7]), st.sampled_from([0, 3, 9]), st.sampled_from("rwm")
)


def allowed(given_rules, access) -> bool:
    """The last rule that names the device and the access decides."""
    kind, major, minor, letter = access
    result = False
    for rule in given_rules:
        everything = rule.type == "a"
        device = rule.type == kind and rule.major in (None, major) and rule.minor in (None, minor)
        if everything or (device and letter in (rule.access or "rwm")):
            result = rule.allow
    return result


def run_program(code: bytes, kind: int, major: int, minor: int, access: int) -> int:
    """The few instructions of a device program, on 32-bit registers."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    registers = [0] * 11
    at = 0
    while True:
        opcode, pair, offset, imm = struct.unpack_from("<BBhi", code, at * 8)
        dst, src = pair & 15, pair >> 4
        at += 1
        if opcode == 0x61:
            registers[dst] = struct.unpack_from("<I", context, offset)[0]
        elif opcode == 0xB4:
            registers[dst] = imm & 0xFFFFFFFF
        elif opcode == 0xBC:
            registers[dst] = registers[src]
        elif opcode == 0x54:
            registers[dst] &= imm & 0xFFFFFFFF
        elif opcode == 0x74:
            registers[dst] >>= imm
        elif opcode == 0x16:
            at += offset if registers[dst] == imm & 0xFFFFFFFF else 0
        elif opcode == 0x56:
            at += offset if registers[dst] != imm & 0xFFFFFFFF else 0
        elif opcode == 0x95:
            return registers[0]
        else:
            raise AssertionError(f"unexpected opcode {opcode:#x}")


def run_writes(writes, access) -> bool:
    """Documentation/admin-guide/cgroup-v1/devices.rst: a default, and exceptions to it."""
    default, exceptions = True, []
    for file, text in [(file, text) for file, texts in writes for text in texts]:
        allow = file == "devices.allow"
        if text == "a":
            default, exceptions = allow, []
        else:
            assert allow != default, "an exception that is none"
            kind, numbers, letters = text.split()
            exceptions.append((kind, *numbers.split(":"), letters))
    kind, major, minor, letter = access
    hit = any(
        k == kind and a in ("*", str(major)) and i in ("*", str(minor)) and letter in letters
        for k, a, i, letters in exceptions
    )
    return default != hit


@given(rules, accesses)
def test_the_program_decides_as_the_rules_read(given_rules, access) -> None:
    code = devices.v2_program(devices.policy(given_rules))
    kind, major, minor, letter = access
    result = run_program(code, 1 if kind == "b" else 2, major, minor, BITS[letter])
    assert bool(result) == allowed(given_rules, access)


@given(rules, accesses, accesses)
def test_several_accesses_at_once_need_each(given_rules, access, other) -> None:
    kind, major, minor, letter = access
    code = devices.v2_program(devices.policy(given_rules))
    both = BITS[letter] | BITS[other[3]]
    result = run_program(code, 1 if kind == "b" else 2, major, minor, both)
    assert bool(result) == (allowed(given_rules, access) and allowed(given_rules, (kind, major, minor, other[3])))


@given(rules, accesses)
def test_the_writes_decide_as_the_rules_read_or_are_refused(given_rules, access) -> None:
    try:
        writes = devices.v1_writes(devices.policy(given_rules))
    except Unsupported:
        return
    assert run_writes(writes, access) == allowed(given_rules, access)


def test_an_ordinary_container_takes_few_writes() -> None:
    deny_all = DeviceRule(False, access="rwm")
    writes = devices.v1_writes(devices.policy((deny_all, *devices.DEFAULT, *devices.DEFAULT)))
    assert [file for file, _ in writes] == ["devices.deny", "devices.allow"]
    assert [len(texts) for _, texts in writes] == [1, len(devices.DEFAULT)]
    everything = DeviceRule(True, access="rwm")
    assert devices.v1_writes(devices.policy((everything, *devices.DEFAULT))) == [("devices.allow", ["a"])]


def test_a_hole_in_a_rule_is_refused_on_v1() -> None:
    hole = (DeviceRule(True, "c", 1, None, "rwm"), DeviceRule(False, "c", 1, 3, "rwm"))
    with pytest.raises(Unsupported, match=r"c 1:3"):
        devices.v1_writes(devices.policy(hole))


@pytest.mark.parametrize(
    "rule",
    [DeviceRule(True, "x"), DeviceRule(True, "c", -2), DeviceRule(True, "c", 1, 1 << 32), DeviceRule(access="rx")],
)
def test_a_rule_that_no_kernel_holds_is_invalid(rule: DeviceRule) -> None:
    with pytest.raises(Invalid):
        devices.policy([rule])
