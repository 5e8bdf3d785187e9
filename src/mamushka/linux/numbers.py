"""Numbers of system calls that scripts make and nothing else does, so that nothing declares them with arguments."""

from __future__ import annotations

from mamushka.linux.abi import DECLARED, MACHINE

# x86_64, and aarch64 and riscv64, which have the same.
_NUMBERS = {
    "add_key": (248, 217), "connect": (42, 203), "faccessat": (269, 48), "fcntl": (72, 25), "getdents64": (217, 61),
    "init_module": (175, 105), "io_uring_setup": (425, 425), "kexec_load": (246, 104),
    "open_by_handle_at": (304, 265), "perf_event_open": (298, 241), "ptrace": (101, 117), "reboot": (169, 142),
    "sendto": (44, 206), "setsockopt": (54, 208), "settimeofday": (164, 170), "shmat": (30, 196),
    "shmctl": (31, 195), "shmdt": (67, 197), "shmget": (29, 194), "socket": (41, 198), "syslog": (103, 116),
    "unlinkat": (263, 35), "userfaultfd": (323, 282),
}  # fmt: skip
for _name, _number in _NUMBERS.items():
    DECLARED.setdefault(_name, ("syscall", _number[MACHINE != "x86_64"]))
if MACHINE == "x86_64":
    DECLARED.setdefault("iopl", ("syscall", 172))
