"""The registers of x86-64, in the order of gdb's features for it: gdb/features/i386/64bit-*.xml."""

from __future__ import annotations

from mamushka.machine.gdb.architecture import Architecture, Feature, Register

_GENERAL = (
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
)
_POINTERS = {"rbp": "data_ptr", "rsp": "data_ptr"}
_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")

_CORE = Feature(
    "org.gnu.gdb.i386.core",
    (
        *(Register(name, 64, name, _POINTERS.get(name, "int64")) for name in _GENERAL),
        Register("rip", 64, "rip", "code_ptr"),
        Register("eflags", 32, "rflags", "int32"),
        *(Register(name, 32, name, "int32", writable=False) for name in ("cs", "ss", "ds", "es", "fs", "gs")),
        # gdb insists that they exist; a kernel under a debugger hardly uses them.
        *(Register(f"st{index}", 80, "", "i387_ext", writable=False) for index in range(8)),
        *(Register(name, 32, "", "int", writable=False) for name in _CONTROL),
    ),
)
_SEGMENTS = Feature(
    "org.gnu.gdb.i386.segments",
    tuple(Register(name, 64, name, "int64", writable=False) for name in ("fs_base", "gs_base")),
)
_SYSTEM = Feature(
    "org.mamushka.x86.system",
    tuple(
        Register(name, 64, name, "int64", writable=False)
        for name in ("k_gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer")
    ),
)

X86_64 = Architecture("i386:x86-64", (_CORE, _SEGMENTS, _SYSTEM), b"\xcc", "rip")
