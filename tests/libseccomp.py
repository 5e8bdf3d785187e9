"""libseccomp's own generator, as the judge of ours: the same rules, the program that it makes of them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

OPERATIONS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}


class Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_uint), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def compile(default: int, architectures: Iterable[int], rules: Iterable[tuple[str, int, list[tuple]]]) -> bytes:
    """A program of rules (name, action, [(argument, operation, value, mask)])."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    try:
        for token in architectures:
            assert library.seccomp_arch_add(context, ctypes.c_uint32(token)) in (0, -17)
        for name, action, tests in rules:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1 or action == default:
                continue
            array = (Comparison * len(tests))()
            for item, (argument, operation, value, mask) in zip(array, tests, strict=True):
                item.arg, item.op = argument, OPERATIONS[operation]
                item.a, item.b = (mask, value) if operation == "MASKED_EQ" else (value, 0)
            added = library.seccomp_rule_add_array(
                context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(tests)), array
            )
            assert added in (0, -17), (name, added)
        fd = os.memfd_create("oracle")
        try:
            assert library.seccomp_export_bpf(context, ctypes.c_int(fd)) == 0
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(context)
