"""From rules on system calls to a program for the kernel: classic BPF over struct seccomp_data.

For each architecture the program searches the call's number in ranges with one answer; a call whose answer hangs
on its arguments gets a small program of its own at the end of the search. libseccomp's generator is not used: its
programs are several times as long, and installing one at every container's start takes the kernel twice the time.

What rules mean where they meet: a rule with comparisons goes before one without, and among those the earlier one.
Several comparisons hold together. A call newer than every named one answers ENOSYS, if asked, since the default,
mostly EPERM, keeps programs from falling back to what they did on older kernels.
"""

from __future__ import annotations

import errno
import sys

from mamushka.errors import Invalid
from mamushka.linux.libseccomp import ARCHITECTURES, MULTIPLEXED, UNKNOWN, X32_BIT, numbers
from mamushka.linux.seccomp import INSTRUCTIONS_MAX, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_THREAD
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    # What a range of numbers leads to: an action, or a program that looks at the arguments.
    Answer = int | tuple["Rule", ...]

_X86_64, _X32 = ARCHITECTURES["SCMP_ARCH_X86_64"], ARCHITECTURES["SCMP_ARCH_X32"]
_64BIT = 0x80000000  # include/uapi/linux/audit.h, __AUDIT_ARCH_64BIT

NE, LT, LE, EQ, GE, GT, MASKED_EQ = "NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"


@value
class Comparison:
    """One argument, unsigned, against ``value``; for MASKED_EQ its bits under ``mask`` against value."""

    argument: int
    operation: str
    value: int
    mask: int = 0

    def holds(self, argument: int) -> bool:
        """What it says of an argument, for whoever can see it beforehand."""
        if self.operation == MASKED_EQ:
            return argument & self.mask == self.value
        return bool(getattr(int, f"__{self.operation.lower()}__")(argument, self.value))


@value
class Rule:
    """What happens to a call when all comparisons hold."""

    name: str
    action: int
    comparisons: tuple[Comparison, ...] = ()


def compile(default: int, architectures: Sequence[int], rules: Sequence[Rule], *, newest_nosys: bool) -> bytes:
    """The program. Names that nobody knows are left out; an architecture that is not listed is killed.

    Invalid when it gets longer than the kernel takes.
    """
    code = [_instruction(_LOAD, _ARCH)]
    for token in architectures:
        if token == _X32 and _X86_64 in architectures:
            continue  # it is the upper half of x86-64's numbers
        starts = _starts(token, rules, default, newest_nosys)
        if token == _X86_64:
            starts[X32_BIT] = SECCOMP_RET_KILL_THREAD
            if _X32 in architectures:
                starts.update(_starts(_X32, rules, default, newest_nosys))
        narrow = not token & _64BIT
        section = [_instruction(_LOAD, _NR), *_search(_merged(starts), default, narrow)]
        audit = _X86_64 if token == _X32 else token
        code += [_instruction(_JEQ, audit, 1, 0), _instruction(_JA, len(section)), *section]
    code.append(_instruction(_RET, SECCOMP_RET_KILL_THREAD))
    if len(code) > INSTRUCTIONS_MAX:
        raise Invalid(
            f"the seccomp filter has {len(code)} instructions, more than the {INSTRUCTIONS_MAX} that the kernel takes",
            hint="name fewer calls with comparisons, or fewer architectures",
        )
    return b"".join(code)


# What the rules mean for one architecture


def _starts(token: int, rules: Sequence[Rule], default: int, newest_nosys: bool) -> dict[int, Answer]:
    """An answer for each number from which on it is another."""
    by_number: dict[int, list[Rule]] = {}
    for rule in rules:
        number, stand_in = numbers(token, rule.name)
        if number >= 0:
            by_number.setdefault(number, []).append(rule)
        for through, (base, members) in MULTIPLEXED.items():
            # A multiplexed call's arguments lie behind a pointer, where no filter sees them.
            multiplexer = numbers(token, through)[0] if stand_in in members else UNKNOWN
            if multiplexer >= 0 and not rule.comparisons:
                which = Comparison(0, EQ, base - stand_in)
                by_number.setdefault(multiplexer, []).append(Rule(through, rule.action, (which,)))
    starts: dict[int, Answer] = {X32_BIT if token == _X32 else 0: default}
    for number in sorted(by_number):
        starts[number] = _answer(by_number[number])
        starts[number + 1] = default
    if newest_nosys and by_number:
        starts[max(by_number) + 1] = SECCOMP_RET_ERRNO | errno.ENOSYS
    return starts


def _answer(rules: Sequence[Rule]) -> Answer:
    """The rules of one call: those with comparisons, then the first without."""
    with_comparisons = tuple(rule for rule in rules if rule.comparisons)
    without = next((rule for rule in rules if not rule.comparisons), None)
    if without is None:
        return with_comparisons
    if all(rule.action == without.action for rule in with_comparisons):
        return without.action
    return (*with_comparisons, without)


def _merged(starts: Mapping[int, Answer]) -> list[tuple[int, Answer]]:
    """The ranges in order, neighbours with one answer made one."""
    result: list[tuple[int, Answer]] = []
    for start, answer in sorted(starts.items(), key=_first):
        if not result or result[-1][1] != answer:
            result.append((start, answer))
    return result


def _first(pair: tuple[int, Answer]) -> int:
    return pair[0]


# Code. Classic BPF, include/uapi/linux/bpf_common.h; offsets are those of struct seccomp_data.

_LOAD, _AND, _JEQ, _JGT, _JGE, _JA, _RET = 0x20, 0x54, 0x15, 0x25, 0x35, 0x05, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16
_LOW, _HIGH = (0, 4) if sys.byteorder == "little" else (4, 0)
_32BITS = 0xFFFFFFFF
_JUMP_MAX = 255  # a conditional jump's offset has eight bits


def _instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return code.to_bytes(2, sys.byteorder) + bytes((jt, jf)) + (k & _32BITS).to_bytes(4, sys.byteorder)


def _search(ranges: Sequence[tuple[int, Answer]], default: int, narrow: bool) -> list[bytes]:
    """A binary search for the range that the loaded word lies in."""
    if len(ranges) == 1:
        answer = ranges[0][1]
        return [_instruction(_RET, answer)] if isinstance(answer, int) else _arguments(answer, default, narrow)
    middle = len(ranges) // 2
    lower, upper = _search(ranges[:middle], default, narrow), _search(ranges[middle:], default, narrow)
    start = ranges[middle][0]
    if len(lower) <= _JUMP_MAX:
        return [_instruction(_JGE, start, len(lower), 0), *lower, *upper]
    return [_instruction(_JGE, start, 0, 1), _instruction(_JA, len(lower)), *lower, *upper]


def _arguments(rules: tuple[Rule, ...], default: int, narrow: bool) -> list[bytes]:
    """What decides a call by its arguments; on a machine with ``narrow`` words these are the low halves."""
    if _searchable(rules):
        return _one_argument(rules, default, narrow)
    code: list[bytes] = []
    for rule in rules:
        test = [_instruction(_RET, rule.action)]
        for comparison in reversed(rule.comparisons):
            test = [*_comparison(comparison, len(test), narrow), *test]
        code += test
    return [*code, _instruction(_RET, default)]


def _searchable(rules: tuple[Rule, ...]) -> bool:
    """Whether the rules compare one argument alone, and with nothing beyond 32 bits: then ranges decide here too."""
    tests = [rule.comparisons for rule in rules if rule.comparisons]
    return all(
        len(comparisons) == 1
        and comparisons[0].argument == tests[0][0].argument
        and comparisons[0].operation != MASKED_EQ
        and comparisons[0].value <= _32BITS
        for comparisons in tests
    )


def _settle(rules: tuple[Rule, ...], argument: int, default: int) -> int:
    for rule in rules:
        if all(comparison.holds(argument) for comparison in rule.comparisons):
            return rule.action
    return default


def _one_argument(rules: tuple[Rule, ...], default: int, narrow: bool) -> list[bytes]:
    """A search over an argument's values; all that need more than 32 bits have one answer."""
    values = {test.value + side for rule in rules for test in rule.comparisons for side in (0, 1)}
    ranges = _merged({value: _settle(rules, value, default) for value in {0, *values} if value <= _32BITS})
    at = _ARGS + 8 * rules[0].comparisons[0].argument
    low = [_instruction(_LOAD, at + _LOW), *_search(ranges, default, narrow)]
    if narrow:
        return low
    beyond = _instruction(_RET, _settle(rules, _32BITS + 1, default))
    return [_instruction(_LOAD, at + _HIGH), _instruction(_JEQ, 0, 1, 0), beyond, *low]


def _comparison(test: Comparison, then: int, narrow: bool) -> list[bytes]:
    """Falls through to the ``then`` instructions that follow when it holds, and behind them when not."""
    at = _ARGS + 8 * test.argument
    low, high = test.value & _32BITS, test.value >> 32
    load_low, load_high = _instruction(_LOAD, at + _LOW), _instruction(_LOAD, at + _HIGH)
    operation = test.operation
    if operation == MASKED_EQ:
        code = [load_low, _instruction(_AND, test.mask & _32BITS), _instruction(_JEQ, low, 0, then)]
        if narrow:
            return code
        return [load_high, _instruction(_AND, test.mask >> 32), _instruction(_JEQ, high, 0, then + len(code)), *code]
    # The negated operations are the others with their ways out exchanged.
    opcode, positive = _OPCODES[operation]
    hit, miss = (0, then) if positive else (then, 0)
    code = [load_low, _instruction(opcode, low, hit, miss)]
    if narrow:
        return code
    if opcode == _JEQ:
        return [load_high, _instruction(_JEQ, high, 0, miss + 2), *code]
    # The high half decides unless it is equal: greater is a hit, less a miss.
    return [load_high, _instruction(_JGT, high, hit + 3, 0), _instruction(_JEQ, high, 0, miss + 2), *code]


_OPCODES = {
    EQ: (_JEQ, True),
    NE: (_JEQ, False),
    GT: (_JGT, True),
    LE: (_JGT, False),
    GE: (_JGE, True),
    LT: (_JGE, False),
}
