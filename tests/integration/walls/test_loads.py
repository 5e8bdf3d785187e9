"""Programs that other people wrote to find fault with a kernel or a library: behind each wall they find the same.

The root is the host's own programs (the image ``host``), Python's tests are those that came with the Python that runs
this. Disks (fio --verify), networks (iperf3) and bare programs have theirs in integration/machine.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests import peers
from tests.integration.walls.conftest import CONTAINER, MACHINE, Done, Wall, make

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.lab, pytest.mark.slow]

PYTHON = f"/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
# Those that ask the kernel much and take a second.
SUITES = ("test_struct", "test_fcntl", "test_mmap", "test_select", "test_thread")
Walls = Callable[[str], Wall]

# Calls that a filter, a capability or a mount is to refuse, and some that are to be let through: (number, arguments).
# x86-64; what they would do is harmless: null pointers and descriptors that there are not.
CALLS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "keyctl": (250, 0, -3, 0), "add_key": (248, 0, 0, 0), "request_key": (249, 0, 0, 0), "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1), "userfaultfd": (323, 1), "unshare user": (272, 0x10000000),
    "unshare net": (272, 0x40000000), "setns": (308, -1, 0), "mount": (165, 0, 0, 0), "umount2": (166, 0, 0),
    "pivot_root": (155, 0, 0), "swapon": (167, 0, 0), "reboot": (169, 0, 0, 0), "init_module": (175, 0, 0, 0),
    "delete_module": (176, 0, 0), "iopl": (172, 3), "ioperm": (173, 0, 1, 1), "kexec_load": (246, 0, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0), "name_to_handle_at": (303, -1, 0, 0), "acct": (163, 0), "quotactl": (179, 0),
    "settimeofday": (164, 0, 0), "clock_settime": (227, 0, 0), "sethostname": (170, 0, 0), "syslog": (103, 3, 0, 0),
    "ptrace": (101, 99, 0, 0), "process_vm_readv": (310, 0, 0, 0), "kcmp": (312, 1, 1, 0),
    "io_uring_setup": (425, 0, 0), "move_mount": (429, -1, 0, -1), "fsopen": (430, 0, 0), "open_tree": (428, -1, 0, 0),
    "clone3": (435, 0, 0),
    "pidfd_open": (434, -1, 0), "memfd_create": (319, 0, 0), "landlock_create_ruleset": (444, 0, 0, 1),
    "personality": (135, 0x20000), "personality reading": (135, 0xffffffff), "mbind": (237, 0, 0, 0),
    "lookup_dcookie": (212, 0, 0, 0), "nfsservctl": (180, 0, 0, 0), "vhangup": (153,), "chroot": (161, 0),
    "socket vsock": (41, 40, 1, 0), "socket raw": (41, 2, 3, 1), "socket packet": (41, 17, 3, 0),
    "socket alg": (41, 38, 5, 0), "no such": (999,),
}
for name, words in calls.items():
    ctypes.set_errno(0)
    answer = libc.syscall(*map(ctypes.c_long, words))
    print(name, "done" if answer >= 0 else errno.errorcode[ctypes.get_errno()])
"""


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walls]:
    """The wall of that name, with the host's programs behind it."""
    peers.need("stress-ng")
    with ExitStack() as stack:

        @functools.cache
        def wall(name: str) -> Wall:
            return stack.enter_context(contextmanager(make)(name, str(tmp_path_factory.mktemp("l")), "host"))

        yield wall


def both(walls: Walls, *words: str) -> tuple[Done, Done]:
    """What a machine and a container make of it; python is /python."""
    options = ("-v", f"{sys.base_prefix}:/python:ro", "--tmpfs", "/work", "-w", "/work", "-m", "512m")
    environment = ("-e", "PYTHONDONTWRITEBYTECODE=1", "-e", "LD_LIBRARY_PATH=/python/lib")
    machine, container = (walls(name).once(*options, *environment, "--", *words) for name in (MACHINE, CONTAINER))
    return machine, container


def test_python_tests_itself(walls: Walls) -> None:
    if not os.path.isdir(f"{sys.base_prefix}/lib/python{PYTHON.rpartition('python')[2]}/test"):
        pytest.skip("this Python came without its tests")
    machine, container = both(walls, PYTHON, "-m", "test", "-v", *SUITES)

    def results(done: Done) -> dict[str, str]:
        text = (done.stdout + done.stderr).decode(errors="replace")
        return dict(re.findall(r"^(test\w+ \([\w.]+\))[^\n]*? \.\.\. (ok|FAIL|ERROR|skipped)", text, re.MULTILINE))

    assert len(results(machine)) > 100, machine.stderr.decode()[-2000:]
    assert results(machine) == results(container)
    assert (machine.returncode, container.returncode) == (0, 0), machine.stdout.decode()[-3000:]


def test_stress_ng_finds_no_fault(walls: Walls) -> None:
    """It verifies what it calculates, what it finds in memory, and what comes out of pipes."""
    words = (
        "stress-ng",
        "--verify",
        "--cpu",
        "1",
        "--cpu-ops",
        "10",
        "--vm",
        "1",
        "--vm-bytes",
        "16M",
        "--vm-ops",
        "60",
    )
    more = ("--pipe", "1", "--pipe-ops", "5000", "--fork", "1", "--fork-ops", "50", "--timeout", "60")
    for done in both(walls, *words, *more, "--temp-path", "/work"):
        text = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, text
        assert "successful run completed" in text
        assert "fail:" not in text


def test_calls_are_refused_alike(walls: Walls) -> None:
    machine, container = both(walls, PYTHON, "-c", CALLS)
    found = machine.stdout.decode().splitlines()
    assert len(found) > 40, machine.stderr.decode()
    assert found == container.stdout.decode().splitlines()
    assert {"keyctl EPERM", "unshare user EPERM", "bpf EPERM"} <= set(found)
