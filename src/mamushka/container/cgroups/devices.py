"""Which devices a cgroup may open or make nodes of: one ordered list of rules, two kernels' ways to hold it.

The list begins with everything denied, and each access to a device (read, write, mknod) is decided by the last
rule that names both. cgroup v1 keeps a default and exceptions to it, and cannot carve a hole into an
exception; v2 runs a program, which can.
"""

from __future__ import annotations

from mamushka.errors import Invalid, Unsupported
from mamushka.spec.runtime import DeviceRule
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    # allow; any, b or c as 0, 1, 2; major and minor, -1 for all; a sum of accesses. Tuples and ints, because a
    # dozen of them are made for every container.
    Rule = tuple[bool, int, int, int, int]

# What every container may use, whatever the bundle's rules: making any node (mknod asks CAP_MKNOD as well,
# and a node that was made can still not be opened), the harmless devices, terminals. runtime-spec,
# config-linux.md#default-devices.
DEFAULT = (
    DeviceRule(True, "c", None, None, "m"),
    DeviceRule(True, "b", None, None, "m"),
    DeviceRule(True, "c", 1, 3, "rwm"),  # null
    DeviceRule(True, "c", 1, 5, "rwm"),  # zero
    DeviceRule(True, "c", 1, 7, "rwm"),  # full
    DeviceRule(True, "c", 1, 8, "rwm"),  # random
    DeviceRule(True, "c", 1, 9, "rwm"),  # urandom
    DeviceRule(True, "c", 5, 0, "rwm"),  # tty
    DeviceRule(True, "c", 5, 1, "rwm"),  # console
    DeviceRule(True, "c", 5, 2, "rwm"),  # ptmx
    DeviceRule(True, "c", 136, None, "rwm"),  # pts/*
)


# The kernel's numbers for both ways. include/uapi/linux/bpf.h, BPF_DEVCG_DEV_… and BPF_DEVCG_ACC_…
_TYPES = {"": 0, "a": 0, "b": 1, "c": 2, "u": 2}
_LETTERS = "abc"
_ACCESSES = {"m": 1, "r": 2, "w": 4}
_EVERY_ACCESS = 7
_NUMBER_MAX = (1 << 32) - 1


def check(rule: DeviceRule) -> Rule:
    """A bundle's rule as (allow, type, major, minor, accesses). Invalid for what the kernel could not hold."""
    type = _TYPES.get(rule.type, -1)
    major = -1 if rule.major is None else rule.major
    minor = -1 if rule.minor is None else rule.minor
    access = 0
    for letter in rule.access:
        access |= _ACCESSES.get(letter, 8)
    if type < 0 or access > _EVERY_ACCESS or not (-1 <= major <= _NUMBER_MAX and -1 <= minor <= _NUMBER_MAX):
        raise Invalid(f"the device rule {rule.type} {rule.major}:{rule.minor} {rule.access} is not valid")
    if not type:
        # As cgroup v1 and every runtime have it, "a" stands for everything, whatever numbers follow.
        return rule.allow, 0, -1, -1, _EVERY_ACCESS
    return rule.allow, type, major, minor, access or _EVERY_ACCESS


def text(rule: Rule) -> str:
    """As v1's devices.allow reads it."""
    _, type, major, minor, access = rule
    letters = "".join(letter for letter, bit in _ACCESSES.items() if access & bit)
    return f"{_LETTERS[type]} {'*' if major < 0 else major}:{'*' if minor < 0 else minor} {letters}"


def covers(rule: Rule, other: Rule) -> bool:
    """Whether every device of the other rule is one of this rule's; accesses aside. Types are equal or any."""
    return rule[1] in (0, other[1]) and rule[2] in (-1, other[2]) and rule[3] in (-1, other[3])


def overlaps(rule: Rule, other: Rule) -> bool:
    """Whether some device is in both rules; accesses aside."""
    return (
        (rule[1] == other[1] or not rule[1] or not other[1])
        and (rule[2] == other[2] or rule[2] < 0 or other[2] < 0)
        and (rule[3] == other[3] or rule[3] < 0 or other[3] < 0)
    )


@value
class Policy:
    """The list since it last meant everything or nothing: a default, and the rules after it in order."""

    allow: bool
    rules: tuple[Rule, ...]


def policy(rules: Iterable[DeviceRule]) -> Policy:
    """Everything denied, then these rules."""
    allow = False
    rest: list[Rule] = []
    for rule in map(check, rules):
        if not rule[1]:
            allow = rule[0]
            rest.clear()
        else:
            rest.append(rule)
    if all(rule[0] == allow for rule in rest):
        rest = []
    return Policy(allow, tuple(rest))


def v1_writes(wanted: Policy) -> list[tuple[str, list[str]]]:
    """The policy as (file, texts to write to it): the default first, which forgets all exceptions.

    Unsupported where a rule takes away a part of an earlier one.
    """
    exceptions: list[Rule] = []
    for rule in wanted.rules:
        if rule[0] == wanted.allow:
            exceptions = [left for item in exceptions for left in _without(item, rule)]
        else:
            exceptions.append(rule)
    default, file = ("devices.allow", "devices.deny") if wanted.allow else ("devices.deny", "devices.allow")
    texts = [text(rule) for rule in _merged(exceptions)]
    return [(default, ["a"]), (file, texts)] if texts else [(default, ["a"])]


def _without(item: Rule, taken: Rule) -> list[Rule]:
    """An exception after a rule that takes something of it back."""
    if not item[4] & taken[4] or not overlaps(item, taken):
        return [item]
    if not covers(taken, item):
        raise Unsupported(
            f"cannot take {text(taken)!r} out of the device rule {text(item)!r}: cgroup v1 holds whole rules only",
            hint="list the devices one by one, or use a host with cgroup v2",
        )
    access = item[4] & ~taken[4]
    return [(*item[:4], access)] if access else []


def _merged(rules: Iterable[Rule]) -> list[Rule]:
    """One rule for each device, with the accesses of all; what a wider rule covers is left out."""
    accesses: dict[tuple[bool, int, int, int], int] = {}
    for rule in rules:
        accesses[rule[:4]] = accesses.get(rule[:4], 0) | rule[4]
    merged = [(*device, access) for device, access in accesses.items()]
    wide = [rule for rule in merged if rule[2] < 0 or rule[3] < 0]
    return [
        rule
        for rule in merged
        if not any(other is not rule and not rule[4] & ~other[4] and covers(other, rule) for other in wide)
    ]


def v2_program(wanted: Policy) -> bytes:
    """The policy as a device program."""
    from mamushka.linux.bpf import device_program

    return device_program(wanted.rules, wanted.allow)
