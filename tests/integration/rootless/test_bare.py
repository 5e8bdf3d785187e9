"""A bare machine of an ordinary user's: it needs no subordinate ids, no engine, and is behind the cage like root's."""

from __future__ import annotations

import os

import pytest

from mamushka.machine.executors.kvm import DEVICE
from tests.integration.machine.test_bare import program
from tests.integration.machine.test_bare_command import ECHO
from tests.integration.rootless.conftest import somebody

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not os.path.exists(DEVICE) or os.stat(DEVICE).st_mode & 0o6 != 0o6, reason=f"{DEVICE} is not everybody's"
    ),
]


def test_a_program_of_an_ordinary_users() -> None:
    with somebody(ids=False) as person:
        path = f"{person.home}/program"
        with open(path, "wb") as file:
            file.write(program(ECHO))
        done = person.mamushka(
            "machine", "run", "--kernel", path, "-m", "16m", "--append", "x", input=b"abq", timeout=30
        )
        assert (done.stdout, done.returncode) == ("xabq", 43), done.stderr
