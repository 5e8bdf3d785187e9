"""Programs for a cgroup's devices, as the kernel's verifier takes them."""

from __future__ import annotations

import os
import signal

import pytest

from mamushka.linux.bpf import device_program, load_device_program

pytestmark = pytest.mark.root


def test_signals_that_come_meanwhile_do_not_keep_a_program_from_being_loaded() -> None:
    """The verifier gives up with EAGAIN where a signal is pending: a resized terminal, a child's end."""
    code = device_program([(True, 1, 1, minor, 7) for minor in range(60)], False)
    came: list[int] = []
    former = signal.signal(signal.SIGALRM, lambda number, frame: came.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        for _ in range(100):
            os.close(load_device_program(code))
    except PermissionError:
        pytest.skip("needs CAP_BPF or CAP_SYS_ADMIN over the host")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert came
    assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
