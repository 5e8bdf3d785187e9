"""Every declared struct, system call, ioctl and constant of mamushka.linux, compared with the C headers.

One C program is generated from the declarations and prints what the compiler makes of them: sizes, offsets,
numbers. What the headers at hand do not know is found by compiling: it must stand in NEWER, with the kernel that
brought it, or be a constant of our own.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mamushka.linux
from mamushka.linux.abi import DECLARED

HEADERS = (
    "linux/types.h", "linux/audit.h", "linux/bpf.h", "linux/capability.h", "linux/close_range.h", "linux/falloc.h",
    "linux/fcntl.h", "linux/filter.h", "linux/fs.h", "linux/genetlink.h", "linux/if_addr.h", "linux/if_bridge.h",
    "linux/if_link.h", "linux/if_packet.h", "linux/if_tun.h", "linux/inotify.h", "linux/ioprio.h", "linux/keyctl.h",
    "linux/kvm.h", "linux/timerfd.h",
    "linux/landlock.h", "linux/loop.h", "linux/magic.h", "linux/mempolicy.h", "linux/mount.h", "linux/netfilter.h",
    "linux/netfilter/nf_tables.h", "linux/netfilter/nfnetlink.h",
    "linux/netfilter/nfnetlink_conntrack.h", "linux/neighbour.h", "linux/netlink.h", "linux/nsfs.h",
    "linux/openat2.h", "linux/personality.h", "linux/pidfd.h", "linux/pkt_cls.h", "linux/pkt_sched.h",
    "linux/prctl.h", "linux/resource.h", "linux/rtnetlink.h",
    "linux/sched.h", "linux/sched/types.h", "linux/seccomp.h", "linux/securebits.h", "linux/stat.h",
    "linux/tc_act/tc_gact.h",
    "linux/tc_act/tc_mirred.h", "linux/veth.h", "linux/vhost.h", "linux/wait.h", "linux/xattr.h", "asm/unistd.h",
    "sys/statfs.h", "sys/ioctl.h", "sys/syscall.h", "seccomp.h", "stddef.h", "stdio.h",
)  # fmt: skip

# What lies in a header of the C library that does not go together with the kernel's.
APART = {"net/if.h": r"\b(ifreq|IFF_(?!TAP|NO_PI|VNET_HDR)\w+|SIOCSIFFLAGS)\b"}

# Structs whose name in C is another, or which are one arm of a union: (type, path of the arm, whole?)
SPELLED = {
    "bpf_attr_prog_load": ("union bpf_attr", "", False),
    "bpf_attr_prog_attach": ("union bpf_attr", "", False),
    "bpf_attr_query": ("union bpf_attr", "query.", False),
    "bpf_attr_get_id": ("union bpf_attr", "", False),
    "ifreq": ("struct ifreq", "", False),
    "kvm_run": ("struct kvm_run", "", False),
    "kvm_run_io": ("struct kvm_run", "io.", False),
    "kvm_run_mmio": ("struct kvm_run", "mmio.", False),
    "kvm_run_internal": ("struct kvm_run", "internal.", False),
    "kvm_run_fail_entry": ("struct kvm_run", "fail_entry.", False),
    "kvm_run_system_event": ("struct kvm_run", "system_event.", False),
    "landlock_ruleset_attr": ("struct landlock_ruleset_attr", "", False),  # later kernels append fields
}
# Structs that no header has: the reason is that the kernel takes a bare type there.
OURS = {
    "fs_flags": "FS_IOC_GETFLAGS is declared with long and transfers an int",
    "tun_number": "TUNSETVNETHDRSZ takes a pointer to an int",
    "vhost_number": "VHOST_SET_FEATURES takes a pointer to a __u64",
    "kvm_irq_routing_entry_msi": "kvm_irq_routing_entry with the arm msi of its union spread out",
    "kvm_vcpu_events": "taken and given back as it is",
    "kvm_guest_debug": "kvm_guest_debug_arch is one array",
}
# What the oldest headers we build against (6.1) lack, and the kernel that brought it.
NEWER = {
    "statmount": "Linux 6.8",
    "listmount": "Linux 6.8",
    "mnt_id_req": "Linux 6.8",
    "landlock_net_port_attr": "Linux 6.7",
    "scmp_arg_cmp": "libseccomp's header, when it is installed",
    "scmp_version": "libseccomp's header, when it is installed",
}


def modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.iter_modules(mamushka.linux.__path__)]
    return [importlib.import_module(f"mamushka.linux.{name}") for name in names]


def struct_lines(name: str, declared: Any) -> list[str]:
    kind, arm, whole = SPELLED.get(name, (f"struct {name}", "", True))
    lines = [f'SHOW("{name}", sizeof({kind}));'] if whole else []
    for field in (field[0] for field in declared._fields_):
        base = f" - offsetof({kind}, {arm[:-1]})" if arm else ""
        lines.append(f'SHOW("{name}.{field} offset", offsetof({kind}, {arm}{field}){base});')
        lines.append(f'SHOW("{name}.{field} size", sizeof((({kind} *)0)->{arm}{field}));')
    return lines


def struct_values(name: str, declared: Any) -> dict[str, int]:
    whole = SPELLED.get(name, ("", "", True))[2]
    values = {name: ctypes.sizeof(declared)} if whole else {}
    for field in (field[0] for field in declared._fields_):
        values[f"{name}.{field} offset"] = getattr(declared, field).offset
        values[f"{name}.{field} size"] = getattr(declared, field).size
    return values


def expectations() -> tuple[list[str], dict[str, int]]:
    """The statements of the C program, and what each is to print."""
    lines: list[str] = []
    values: dict[str, int] = {}
    for name, (kind, item) in DECLARED.items():
        if kind == "struct" and name not in OURS:
            lines += struct_lines(name, item)
            values |= struct_values(name, item)
        elif kind == "syscall":
            lines.append(f'SHOW("{name}", __NR_{name});')
            values[name] = item
        elif kind == "ioctl":
            lines.append(f'SHOW("{name}", {name});')
            values[name] = item
    for module in modules():
        for name, item in vars(module).items():
            if re.fullmatch(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+", name) and type(item) is int:
                lines.append(f'SHOW("{name} =", {name});')
                values[f"{name} ="] = item
    return list(dict.fromkeys(lines)), values


UNKNOWN = re.compile(
    r"(?:'(\w+)' undeclared|(?:type|use of undefined type) '(?:struct|union) (\w+)'|has no member named '(\w+)')"
)


def compile_and_run(
    compiler: str, lines: list[str], directory: Path, headers: tuple[str, ...]
) -> tuple[dict[str, int], set[str]]:
    """What the program prints, and the names that the headers do not know."""
    unknown: set[str] = set()
    source, program = directory / "abi.c", directory / "abi"
    top = "\n".join(f"#if __has_include(<{header}>)\n#include <{header}>\n#endif" for header in headers)
    show = '#define SHOW(name, value) printf("%s\\t%llu\\n", name, (unsigned long long)(value))'
    for _ in range(4):  # a compiler does not always name everything in the first round
        body = "\n".join(line for line in lines if not any(re.search(rf"\b{name}\b", line) for name in unknown))
        source.write_text(f"#define _GNU_SOURCE\n{top}\n{show}\nint main(void) {{\n{body}\nreturn 0;\n}}\n")
        built = subprocess.run(
            [compiler, "-w", "-fmax-errors=0", "-fno-diagnostics-show-caret", "-o", program, source],
            env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if built.returncode == 0:
            text = subprocess.run([program], capture_output=True, text=True, check=True).stdout
            return {
                name: int(number) for name, _, number in (row.partition("\t") for row in text.splitlines())
            }, unknown
        found = {name for pair in UNKNOWN.findall(built.stderr) for name in pair if name}
        if not found - unknown:
            break
        unknown |= found
    pytest.fail(f"the generated program does not compile:\n{built.stderr[:4000]}")


def test_declarations_agree_with_the_headers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev linux-libc-dev")
    modules()
    lines, expected = expectations()
    printed: dict[str, int] = {}
    unknown: set[str] = set()
    apart = {header: [line for line in lines if re.search(names, line)] for header, names in APART.items()}
    rest = [line for line in lines if not any(line in some for some in apart.values())]
    for headers, some in (
        (HEADERS, rest), *(((header, "sys/ioctl.h", "stddef.h", "stdio.h"), some) for header, some in apart.items()),
    ):  # fmt: skip
        found, lacking = compile_and_run(compiler, some, tmp_path, headers)
        printed |= found
        unknown |= lacking
    wrong = [
        f"{name}: declared {expected[name]:#x}, the headers say {number:#x}"
        for name, number in printed.items()
        if number != expected[name] % (1 << 64)
    ]
    assert not wrong, "\n".join(wrong)
    missing = {name.removeprefix("__NR_") for name in unknown}
    declared = {name for name, (kind, _) in DECLARED.items() if name not in OURS}
    assert not missing & declared - NEWER.keys(), "not in the headers, and not listed as newer"
    assert len(printed) > 100, "the comparison compared next to nothing"
