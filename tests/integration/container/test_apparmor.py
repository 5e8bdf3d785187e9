"""process.apparmorProfile with a real profile: what it denies is denied inside, to the program and to later ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from mamushka.container.privileges import apparmor
from mamushka.errors import NotFound
from mamushka.runtime import Stdio
from mamushka.spec.runtime import User
from tests import peers
from tests.integration.container.conftest import Ground, Output, reap

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(not apparmor(), reason="this kernel has no AppArmor: boot with apparmor=1"),
]

# Everything but one file and one program; what is denied explicitly is not logged either.
PROFILE = """
profile {name} flags=(attach_disconnected) {{
  capability,
  file,
  signal,
  deny /tmp/secret rw,
  deny /tmp/forbidden/echo x,
}}
"""


@pytest.fixture
def profile(unique: str) -> Iterator[str]:
    """The name of a profile that the kernel has."""
    peers.need("apparmor_parser")
    text = PROFILE.format(name=unique).encode()
    peers.run("apparmor_parser", "--add", "--skip-cache", input=text)
    yield unique
    subprocess.run([peers.find("apparmor_parser"), "--remove"], input=text, capture_output=True, check=False)


@pytest.fixture
def tempted(ground: Ground) -> Ground:
    """Ground with the file and the program that the profile denies."""
    with open(f"{ground.rootfs}/tmp/secret", "w") as file:
        file.write("told\n")
    os.mkdir(f"{ground.rootfs}/tmp/forbidden")
    shutil.copy(f"{ground.rootfs}/bin/busybox", f"{ground.rootfs}/tmp/forbidden/echo")
    return ground


ATTEMPT = "cat /proc/self/attr/current; cat /tmp/secret; /tmp/forbidden/echo ran; echo still here"
DENIED = "cat: can't open '/tmp/secret': Permission denied"


def test_the_program_is_confined_by_the_profile(tempted: Ground, profile: str) -> None:
    code, text = tempted.run(tempted.config(ATTEMPT, apparmor_profile=profile))
    assert code == 0, text
    assert text.startswith(f"{profile} (enforce)\n")
    assert DENIED in text
    assert "told" not in text
    assert "ran" not in text
    assert "still here" in text


def test_without_a_profile_nothing_of_it_is_denied(tempted: Ground, profile: str) -> None:
    """So that the test before it proves the profile, and not something else in the wall."""
    text = tempted.output(tempted.config(ATTEMPT))
    assert "unconfined" in text
    assert "told\nran\nstill here" in text


@pytest.mark.parametrize("gated", [False, True])
def test_the_label_outlives_the_other_descriptors(tempted: Ground, profile: str, *, gated: bool) -> None:
    """Also behind the gate, with preserved descriptors, for another user: the file is opened long before it is used."""
    config = tempted.config(f"{ATTEMPT}; ls /proc/self/fd", apparmor_profile=profile, user=User(uid=1000, gid=1000))
    with Output() as output:
        stdio = Stdio(0, output.writing, output.writing)
        make = tempted.runtime.create if gated else tempted.runtime.run
        started = make(tempted.name, tempted.bundle(config), stdio, preserve=(output.reading, output.reading))
        if gated:
            tempted.runtime.start(tempted.name)
        assert reap(started) == 0
        text = output.text()
    assert text.startswith(f"{profile} (enforce)\n")
    assert DENIED in text
    assert text.endswith("still here\n0\n1\n2\n3\n4\n5\n")  # 5 is ls's own


def test_exec_is_confined_by_its_own_profile(tempted: Ground, profile: str) -> None:
    tempted.start(tempted.config("sleep", "60"))
    code, text = tempted.exec(ATTEMPT, apparmor_profile=profile)
    assert (code, text.partition("\n")[0]) == (0, f"{profile} (enforce)")
    assert DENIED in text
    assert "told" in tempted.exec(ATTEMPT)[1]


def test_a_profile_that_is_not_loaded_is_refused_and_nothing_stays(ground: Ground, unique: str) -> None:
    with pytest.raises(NotFound, match=f"AppArmor profile '{unique}' is not loaded") as raised:
        ground.start(ground.config("true", apparmor_profile=unique))
    assert "apparmor_parser" in raised.value.hint
    assert [*ground.runtime.list()] == []
    ground.start(ground.config("sleep", "60"))
    with pytest.raises(NotFound, match=f"AppArmor profile '{unique}' is not loaded"):
        ground.exec("true", apparmor_profile=unique)
