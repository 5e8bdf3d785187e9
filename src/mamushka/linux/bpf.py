"""bpf(2), as far as a cgroup's device program needs it: assemble, load, attach, replace.

The union bpf_attr is declared in the pieces that the commands read; its fields keep the header's names.
include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself would bring enum into every start
import errno
import os
import sys

from mamushka.linux.abi import address_of, sizeof, struct, syscall, u32, u64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16

BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4

BPF_DEVCG_ACC_MKNOD = 1
BPF_DEVCG_ACC_READ = 2
BPF_DEVCG_ACC_WRITE = 4
BPF_DEVCG_DEV_BLOCK = 1
BPF_DEVCG_DEV_CHAR = 2


@struct
class bpf_attr_prog_load:
    """BPF_PROG_LOAD's part of union bpf_attr, up to what a device program needs."""

    prog_type: u32
    insn_cnt: u32
    insns: u64
    license: u64
    log_level: u32 = 0
    log_size: u32 = 0
    log_buf: u64 = 0


@struct
class bpf_attr_prog_attach:
    """BPF_PROG_ATTACH's part of union bpf_attr; replace_bpf_fd is read with BPF_F_REPLACE. Linux 5.6."""

    target_fd: u32
    attach_bpf_fd: u32
    attach_type: u32
    attach_flags: u32 = 0
    replace_bpf_fd: u32 = 0


@struct
class bpf_attr_query:
    """BPF_PROG_QUERY's part of union bpf_attr: prog_ids points to prog_cnt u32."""

    target_fd: u32
    attach_type: u32
    query_flags: u32 = 0
    attach_flags: u32 = 0
    prog_ids: u64 = 0
    prog_cnt: u32 = 0


@struct
class bpf_attr_get_id:
    """BPF_PROG_GET_FD_BY_ID's part of union bpf_attr."""

    prog_id: u32
    next_id: u32 = 0
    open_flags: u32 = 0


@syscall(x86_64=321, aarch64=280, riscv64=280)
def bpf(
    command: int,
    attr: bpf_attr_prog_load | bpf_attr_prog_attach | bpf_attr_query | bpf_attr_get_id,
    size: int,
) -> int:
    """Programs and maps of the kernel's virtual machine. bpf(2)."""
    raise NotImplementedError


# Opcodes: class, operation and source in one byte. Documentation/bpf/standardization/instruction-set.rst.
_MOV32_IMM, _MOV32_REG, _AND32_IMM, _RSH32_IMM = 0xB4, 0xBC, 0x54, 0x74
_LOAD32, _JEQ32_IMM, _JNE32_IMM, _EXIT = 0x61, 0x16, 0x56, 0x95


def _instruction(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    registers = dst | src << 4 if sys.byteorder == "little" else dst << 4 | src
    return b"%c%c" % (opcode, registers) + (offset & 0xFFFF).to_bytes(2, sys.byteorder) + _word(imm)


def _word(imm: int) -> bytes:
    return (imm & 0xFFFFFFFF).to_bytes(4, sys.byteorder)


# The program's registers: r1 comes in as the context and is scratch afterwards.
_RESULT, _SCRATCH, _TYPE, _ACCESS, _MAJOR, _MINOR = range(6)


def _unless(opcode: int, register: int, imm: int, tail: bytes) -> bytes:
    """A test that leaves out ``tail`` when it holds, followed by tail."""
    return _instruction(opcode, register, offset=len(tail) // 8, imm=imm) + tail


def _device_rule(allow: bool, kind: int, major: int, minor: int, access: int) -> bytes:
    code = _instruction(_MOV32_IMM, _RESULT, imm=allow) + _instruction(_EXIT)
    if allow:  # these accesses are settled; the call is allowed once none is open
        settle = _instruction(_AND32_IMM, _ACCESS, imm=~access)
        code = settle + _unless(_JNE32_IMM, _ACCESS, 0, code)
    else:
        pick = _instruction(_MOV32_REG, _SCRATCH, _ACCESS) + _instruction(_AND32_IMM, _SCRATCH, imm=access)
        code = pick + _unless(_JEQ32_IMM, _SCRATCH, 0, code)
    if minor >= 0:
        code = _unless(_JNE32_IMM, _MINOR, minor, code)
    if major >= 0:
        code = _unless(_JNE32_IMM, _MAJOR, major, code)
    if kind:
        code = _unless(_JNE32_IMM, _TYPE, kind, code)
    return code


def device_program(rules: Sequence[tuple[bool, int, int, int, int]], default: bool) -> bytes:
    """A cgroup device program: the last rule that names an access decides on it, else ``default``.

    A rule is (allow, BPF_DEVCG_DEV_… or 0 for both, major or -1, minor or -1, BPF_DEVCG_ACC_… bits).
    """
    code = [
        _instruction(_LOAD32, _TYPE, _SCRATCH, 0),  # access << 16 | type
        _instruction(_MOV32_REG, _ACCESS, _TYPE),
        _instruction(_AND32_IMM, _TYPE, imm=0xFFFF),
        _instruction(_RSH32_IMM, _ACCESS, imm=16),
        _instruction(_LOAD32, _MAJOR, _SCRATCH, 4),
        _instruction(_LOAD32, _MINOR, _SCRATCH, 8),
    ]
    code += [_device_rule(*rule) for rule in reversed(rules)]
    code += [_instruction(_MOV32_IMM, _RESULT, imm=default), _instruction(_EXIT)]
    return b"".join(code)


_LOG_SIZE = 1 << 16


def load_device_program(code: bytes) -> int:
    """A descriptor of the program; OSError with the verifier's last words when it is refused."""
    text, terms = bytearray(code), bytearray(b"Apache-2.0\0")
    attr = bpf_attr_prog_load(
        prog_type=BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt=len(code) // 8,
        insns=address_of(text),
        license=address_of(terms),
    )
    # The verifier gives up when a signal is pending, EAGAIN. One that is blocked is not: no loop, and no luck.
    blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    try:
        return _load(attr)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked)


def _load(attr: bpf_attr_prog_load) -> int:
    try:
        return bpf(BPF_PROG_LOAD, attr, sizeof(attr))
    except PermissionError:
        raise
    except OSError as error:
        log = bytearray(_LOG_SIZE)
        attr.log_level, attr.log_size, attr.log_buf = 1, _LOG_SIZE, address_of(log)
        try:
            return bpf(BPF_PROG_LOAD, attr, sizeof(attr))
        except OSError:
            words = bytes(log).rstrip(b"\0").decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(error.errno, f"{error.strerror}; the verifier says: {words or 'nothing'}") from None


# How many programs one cgroup may carry. include/linux/bpf-cgroup.h, BPF_CGROUP_MAX_PROGS.
_PROGRAMS_MAX = 64


def device_programs(cgroup: int) -> tuple[int, ...]:
    """The ids of the device programs attached to a cgroup v2 directory itself."""
    ids = bytearray(4 * _PROGRAMS_MAX)
    attr = bpf_attr_query(
        target_fd=cgroup, attach_type=BPF_CGROUP_DEVICE, prog_ids=address_of(ids), prog_cnt=_PROGRAMS_MAX
    )
    bpf(BPF_PROG_QUERY, attr, sizeof(attr))
    return tuple(int.from_bytes(ids[at : at + 4], sys.byteorder) for at in range(0, 4 * attr.prog_cnt, 4))


def attach_device_program(cgroup: int, program: int) -> None:
    """Put a program on a cgroup v2 directory, in place of the one that is there.

    With MULTI, so that a cgroup below may add its own; all of them must allow. EBUSY when there are
    several already: which one to replace would be a guess.
    """
    present = device_programs(cgroup)
    if len(present) > 1:
        raise OSError(errno.EBUSY, "bpf: several device programs are attached to this cgroup")
    attr = bpf_attr_prog_attach(
        target_fd=cgroup, attach_bpf_fd=program, attach_type=BPF_CGROUP_DEVICE, attach_flags=BPF_F_ALLOW_MULTI
    )
    if not present:
        bpf(BPF_PROG_ATTACH, attr, sizeof(attr))
        return
    get = bpf_attr_get_id(prog_id=present[0])
    old = bpf(BPF_PROG_GET_FD_BY_ID, get, sizeof(get))
    try:
        attr.attach_flags |= BPF_F_REPLACE
        attr.replace_bpf_fd = old
        bpf(BPF_PROG_ATTACH, attr, sizeof(attr))
    finally:
        os.close(old)
