"""libseccomp: from rules on system calls' names to a program for the kernel. seccomp_init(3) and its kin.

An installed libseccomp is often older than the kernel and does not know its newest calls by name. Without care
two things go wrong: a rule for such a call is lost, and the call meets the default action, mostly EPERM, where
programs expect ENOSYS from a kernel that lacks it and would fall back. So ``compile`` puts a short program of
its own in front: calls that a rule names and only this file knows get their action, and a call newer than every
named one answers ENOSYS.
"""

from __future__ import annotations

import errno
import os
import sys

from mamushka.errors import Invalid
from mamushka.linux.abi import address_of, struct, u32, u64
from mamushka.linux.libraries import LIBSECCOMP, pointer
from mamushka.linux.seccomp import INSTRUCTION_SIZE, INSTRUCTIONS_MAX, SECCOMP_RET_ERRNO
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mamushka.linux.abi import s32

# /usr/include/seccomp.h, scmp_arch tokens: the kernel's AUDIT_ARCH_…, and one of libseccomp's own for x32.
ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_MIPS": 0x00000008,
    "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008,
    "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008,
    "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PPC": 0x00000014,
    "SCMP_ARCH_PPC64": 0x80000015,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_PARISC": 0x0000000F,
    "SCMP_ARCH_PARISC64": 0x8000000F,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_LOONGARCH64": 0xC0000102,
}  # fmt: skip
_X86_64, _X32 = ARCHITECTURES["SCMP_ARCH_X86_64"], ARCHITECTURES["SCMP_ARCH_X32"]
_X32_BIT = 0x40000000

COMPARISONS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

SCMP_FLTATR_CTL_OPTIMIZE = 8
_BINARY_TREE = 2
_UNKNOWN = -1  # __NR_SCMP_ERROR

# Calls that the libseccomp of long-lived distributions (2.5.4, 2022) does not know. From 424 on a call has the same
# number everywhere. arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
NEWER = {
    "set_mempolicy_home_node": 450, "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454,
    "futex_wait": 455, "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460, "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464,
    "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}  # fmt: skip
# Calls of one machine only.
_NEWER_OF = {(_X86_64, "uretprobe"): 335, (ARCHITECTURES["SCMP_ARCH_RISCV64"], "riscv_hwprobe"): 258}


@struct
class scmp_arg_cmp:
    """One comparison with an argument. seccomp.h."""

    arg: u32
    op: u32
    datum_a: u64
    datum_b: u64 = 0


@struct
class scmp_version:
    """The library's version. seccomp.h."""

    major: u32 = 0
    minor: u32 = 0
    micro: u32 = 0


@LIBSECCOMP.function
def seccomp_init(def_action: u32) -> pointer:
    """A filter context with a default action and the native architecture; 0 when the action is not valid."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_release(ctx: pointer) -> None:
    """Free a context."""


@LIBSECCOMP.function
def seccomp_arch_add(ctx: pointer, arch_token: u32) -> s32:
    """Cover a further architecture. Negative errno."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_arch_remove(ctx: pointer, arch_token: u32) -> s32:
    """Cover an architecture no more. Negative errno."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_arch_native() -> u32:
    """The token of the machine that runs."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_attr_set(ctx: pointer, attr: u32, value: u32) -> s32:
    """Set an attribute of the filter. Negative errno."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_syscall_resolve_name_arch(arch_token: u32, name: bytes) -> s32:
    """A call's number; -1 for an unknown name, below it a stand-in for a call of other architectures."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_rule_add_array(ctx: pointer, action: u32, syscall: s32, arg_cnt: u32, arg_array: pointer) -> s32:
    """Add a rule for a call, on every architecture that has it. Negative errno."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_export_bpf(ctx: pointer, fd: s32) -> s32:
    """Write the program to a descriptor. Negative errno."""
    raise NotImplementedError


@LIBSECCOMP.function
def seccomp_version() -> pointer:
    """Where a struct scmp_version lies."""
    raise NotImplementedError


def version() -> str:
    """The library's version, as 2.5.4."""
    found = scmp_version.from_address(seccomp_version())  # type: ignore[attr-defined]
    return f"{found.major}.{found.minor}.{found.micro}"


@value
class Rule:
    """A call and what happens when all comparisons (argument, COMPARISONS, a, b) hold."""

    name: str
    action: int
    comparisons: tuple[tuple[int, int, int, int], ...] = ()


def compile(default: int, architectures: Sequence[int], rules: Sequence[Rule], *, newest_nosys: bool) -> bytes:
    """The program of these rules; unknown names are left out. Invalid for rules that libseccomp refuses.

    ``newest_nosys`` makes calls newer than all that the rules name answer ENOSYS.
    """
    ctx = seccomp_init(default)
    if not ctx:
        raise Invalid(f"libseccomp does not take the default action {default:#x}")
    try:
        native = seccomp_arch_native()
        _add_architectures(ctx, native, architectures)
        for rule in rules:
            _add_rule(ctx, native, rule)
        if len(rules) > 8:  # shorter than that, a tree is no faster than a list
            seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, _BINARY_TREE)
        program = _export(ctx)
    finally:
        seccomp_release(ctx)
    prologue = _prologue(architectures or (native,), rules, default, newest_nosys)
    if len(prologue) + len(program) > INSTRUCTIONS_MAX * INSTRUCTION_SIZE:
        raise Invalid(f"the seccomp filter has more than the {INSTRUCTIONS_MAX} instructions that the kernel takes")
    return prologue + program


def _check(result: int, what: str) -> None:
    if result < 0 and result != -errno.EEXIST:
        raise Invalid(f"libseccomp does not take {what}: {os.strerror(-result)}")


def _add_architectures(ctx: int, native: int, architectures: Sequence[int]) -> None:
    for token in architectures:
        _check(seccomp_arch_add(ctx, token), f"the architecture {token:#x}")
    if architectures and native not in architectures:
        _check(seccomp_arch_remove(ctx, native), "a filter without the native architecture")


def _add_rule(ctx: int, native: int, rule: Rule) -> None:
    number = seccomp_syscall_resolve_name_arch(native, rule.name.encode())
    if number == _UNKNOWN:
        return
    count = len(rule.comparisons)
    array = (scmp_arg_cmp * count)(  # type: ignore[operator]
        *(scmp_arg_cmp(arg=arg, op=op, datum_a=a, datum_b=b) for arg, op, a, b in rule.comparisons)
    )
    where = address_of(array) if count else 0
    _check(seccomp_rule_add_array(ctx, rule.action, number, count, where), f"the rule for {rule.name}")


def _export(ctx: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(seccomp_export_bpf(ctx, fd), "the filter as a whole")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


# Classic BPF. include/uapi/linux/bpf_common.h; offsets are those of struct seccomp_data.
_LOAD, _JEQ, _JGT, _JGE, _JA, _RET = 0x20, 0x15, 0x25, 0x35, 0x05, 0x06
_NR, _ARCH = 0, 4


def _instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    order = sys.byteorder
    return code.to_bytes(2, order) + bytes((jt, jf)) + (k & 0xFFFFFFFF).to_bytes(4, order)


def _number(token: int, name: str) -> int:
    """The number of a call on an architecture, by libseccomp or by the table above; negative without one."""
    number = seccomp_syscall_resolve_name_arch(token, name.encode())
    if number >= 0 or number != _UNKNOWN:
        return number
    return _supplement(token).get(name, _UNKNOWN)


def _supplement(token: int) -> Mapping[str, int]:
    bit = _X32_BIT if token == _X32 else 0
    numbers = {name: number | bit for name, number in NEWER.items()}
    numbers.update({name: number for (owner, name), number in _NEWER_OF.items() if owner == token})
    return numbers


def _section(token: int, rules: Iterable[Rule], default: int, newest_nosys: bool) -> list[bytes]:
    """For one architecture, the number loaded already: actions of calls new to libseccomp, then ENOSYS."""
    newest = 0
    actions: dict[int, int] = {}
    for rule in rules:
        number = _number(token, rule.name)
        newest = max(newest, number)
        known = seccomp_syscall_resolve_name_arch(token, rule.name.encode()) != _UNKNOWN
        if not known and number >= 0 and not rule.comparisons and rule.action != default:
            actions.setdefault(number, rule.action)
    code = []
    for number, action in sorted(actions.items()):
        code += [_instruction(_JEQ, number, 0, 1), _instruction(_RET, action)]
    if newest_nosys and newest:
        code += [_instruction(_JGT, newest, 0, 1), _instruction(_RET, SECCOMP_RET_ERRNO | errno.ENOSYS)]
    if actions:
        # Nearly every call is older than these: one comparison, and on to libseccomp's tree.
        code.insert(0, _instruction(_JGE, min(actions), 0, len(code)))
    return code


def _prologue(architectures: Sequence[int], rules: Sequence[Rule], default: int, newest_nosys: bool) -> bytes:
    """What runs before libseccomp's own program, which begins just behind it."""
    sections: list[tuple[int, list[bytes]]] = []
    for token in architectures:
        if token != _X32:
            code = _section(token, rules, default, newest_nosys)
            if token == _X86_64:
                inner = _section(_X32, rules, default, newest_nosys) if _X32 in architectures else []
                # One audit architecture, two tables: x32's numbers carry a bit.
                code = [_instruction(_JGE, _X32_BIT, 0, len(inner) + 1), *inner, _END, *code]
            sections.append((token, [_instruction(_LOAD, _NR), *code, _END]))
    code = [_instruction(_LOAD, _ARCH)]
    for token, section in sections:
        code += [_instruction(_JEQ, token, 0, len(section)), *section]
    end = len(code)
    return b"".join(_instruction(_JA, end - at - 1) if item is _END else item for at, item in enumerate(code))


_END = b"END"  # stands for a jump behind the prologue until its length is known
