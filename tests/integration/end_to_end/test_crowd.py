"""Many callers at once: names, images, state and networks are shared, and nobody steps on anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.root, pytest.mark.registry]

CALLERS, EACH = 4, 25


def program(roots: tuple[str, str], *words: str) -> subprocess.CompletedProcess[bytes]:
    path = os.path.join(os.path.dirname(sys.executable), "mamushka")
    command = [path, "--data-root", roots[0], "--run-root", roots[1], *words]
    return subprocess.run(command, capture_output=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_hundred_containers_by_four_callers(roots: tuple[str, str], busybox_reference: str, untouched: None) -> None:
    def caller(number: int) -> list[str]:
        said = []
        for turn in range(EACH):
            text = f"{number}-{turn}"
            done = program(roots, "run", "--rm", busybox_reference, "echo", text)
            assert (done.returncode, done.stdout.decode()) == (0, f"{text}\n"), done.stderr.decode()
            said.append(text)
        return said

    with ThreadPoolExecutor(CALLERS) as pool:
        assert sum(len(said) for said in pool.map(caller, range(CALLERS))) == CALLERS * EACH
    assert program(roots, "ps", "-aq").stdout == b""


def test_one_image_is_pulled_by_several_at_once(roots: tuple[str, str], layered_reference: str) -> None:
    with ThreadPoolExecutor(CALLERS) as pool:
        done = list(pool.map(lambda _: program(roots, "pull", "-q", layered_reference), range(CALLERS)))
    assert [one.returncode for one in done] == [0] * CALLERS, [one.stderr.decode() for one in done]
    assert program(roots, "run", "--rm", "--network", "none", layered_reference).stdout == b"from the image\n"


def test_one_name_is_given_once(roots: tuple[str, str], busybox_reference: str) -> None:
    assert program(roots, "pull", "-q", busybox_reference).returncode == 0
    with ThreadPoolExecutor(CALLERS) as pool:
        done = list(pool.map(lambda _: program(roots, "create", "--name", "one", busybox_reference), range(CALLERS)))
    codes = sorted(one.returncode for one in done)
    assert codes[0] == 0 and set(codes[1:]) <= {1, 125} and 0 not in codes[1:]
    assert len(program(roots, "ps", "-aq").stdout.split()) == 1
    assert program(roots, "rm", "one").returncode == 0
