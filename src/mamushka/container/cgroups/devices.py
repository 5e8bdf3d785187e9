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


@value
class Rule:
    """A checked rule: type ``a``, ``b`` or ``c``, -1 for any number, a non-empty set of ``rwm``."""

    allow: bool
    type: str
    major: int
    minor: int
    access: frozenset[str]

    def covers(self, other: Rule) -> bool:
        """Whether every device of the other rule is one of this rule's; accesses aside."""
        return self.type in ("a", other.type) and self.major in (-1, other.major) and self.minor in (-1, other.minor)

    def overlaps(self, other: Rule) -> bool:
        """Whether some device is in both rules; accesses aside."""
        return (
            ("a" in (self.type, other.type) or self.type == other.type)
            and (-1 in (self.major, other.major) or self.major == other.major)
            and (-1 in (self.minor, other.minor) or self.minor == other.minor)
        )

    def text(self) -> str:
        """As v1's devices.allow reads it."""
        major = "*" if self.major < 0 else self.major
        minor = "*" if self.minor < 0 else self.minor
        return f"{self.type} {major}:{minor} {''.join(letter for letter in 'rwm' if letter in self.access)}"


_ALL = frozenset("rwm")
_NUMBER_MAX = (1 << 32) - 1


def check(rule: DeviceRule) -> Rule:
    """A bundle's rule, checked. Invalid for what the kernel could not hold."""
    type = {"": "a", "u": "c"}.get(rule.type, rule.type)
    major = -1 if rule.major is None else rule.major
    minor = -1 if rule.minor is None else rule.minor
    access = frozenset(rule.access) or _ALL
    if type not in ("a", "b", "c") or access - _ALL or not (-1 <= major <= _NUMBER_MAX and -1 <= minor <= _NUMBER_MAX):
        raise Invalid(f"the device rule {rule.type} {rule.major}:{rule.minor} {rule.access} is not valid")
    if type == "a":
        # As cgroup v1 and every runtime have it, "a" stands for everything, whatever numbers follow.
        return Rule(rule.allow, "a", -1, -1, _ALL)
    return Rule(rule.allow, type, major, minor, access)


@value
class Policy:
    """The list since it last meant everything or nothing: a default, and the rules after it in order."""

    allow: bool
    rules: tuple[Rule, ...]


def policy(rules: Iterable[DeviceRule]) -> Policy:
    """Everything denied, then these rules."""
    allow, rest = False, list[Rule]()
    for rule in map(check, rules):
        if rule.type == "a":
            allow, rest = rule.allow, []
        elif rule not in rest[-1:]:
            rest.append(rule)
    if all(rule.allow == allow for rule in rest):
        rest = []
    return Policy(allow, tuple(rest))


def v1_writes(wanted: Policy) -> list[tuple[str, list[str]]]:
    """The policy as (file, texts to write to it): the default first, which forgets all exceptions.

    Unsupported where a rule takes away a part of an earlier one.
    """
    exceptions: list[Rule] = []
    for rule in wanted.rules:
        if rule.allow == wanted.allow:
            exceptions = [left for item in exceptions for left in _without(item, rule)]
        else:
            exceptions.append(rule)
    default, file = ("devices.allow", "devices.deny") if wanted.allow else ("devices.deny", "devices.allow")
    texts = [rule.text() for rule in _merged(exceptions)]
    return [(default, ["a"]), (file, texts)] if texts else [(default, ["a"])]


def _without(item: Rule, taken: Rule) -> list[Rule]:
    """An exception after a rule that takes something of it back."""
    if not item.overlaps(taken) or not item.access & taken.access:
        return [item]
    if not taken.covers(item):
        raise Unsupported(
            f"cannot take {taken.text()!r} out of the device rule {item.text()!r}: cgroup v1 holds whole rules only",
            hint="list the devices one by one, or use a host with cgroup v2",
        )
    access = item.access - taken.access
    return [Rule(item.allow, item.type, item.major, item.minor, access)] if access else []


def _merged(rules: Iterable[Rule]) -> list[Rule]:
    """One rule for each device, with the accesses of all; what a wider rule covers is left out."""
    accesses: dict[tuple[bool, str, int, int], frozenset[str]] = {}
    for rule in rules:
        key = (rule.allow, rule.type, rule.major, rule.minor)
        accesses[key] = accesses.get(key, frozenset()) | rule.access
    merged = [Rule(*key, access) for key, access in accesses.items()]
    wide = [rule for rule in merged if rule.major < 0 or rule.minor < 0]
    return [
        rule
        for rule in merged
        if not any(other is not rule and other.access >= rule.access and other.covers(rule) for other in wide)
    ]


_ACCESSES = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_…
_TYPES = {"a": 0, "b": 1, "c": 2}  # BPF_DEVCG_DEV_…


def v2_program(wanted: Policy) -> bytes:
    """The policy as a device program."""
    from mamushka.linux.bpf import device_program

    rules = [
        (rule.allow, _TYPES[rule.type], rule.major, rule.minor, sum(_ACCESSES[letter] for letter in rule.access))
        for rule in wanted.rules
    ]
    return device_program(rules, wanted.allow)
