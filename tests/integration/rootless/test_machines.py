"""Machines of an ordinary user who may open /dev/kvm: the same command, the same network, nothing of root's."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator

import pytest

from mamushka.engine.machines import obstacle
from tests.integration.rootless.person import UID, Person
from tests.lab.kernel import default_cache

pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow]
DEVICES = ("/dev/kvm", "/dev/net/tun", "/dev/vhost-net")


@pytest.fixture(scope="module", autouse=True)
def _devices() -> Iterator[None]:
    """Open to everybody meanwhile, as a distribution's rules make them for those who log in."""
    for module in ("kvm-amd", "kvm-intel", "tun", "vhost_net"):
        subprocess.run(["modprobe", "-q", module], check=False)
    lacking = obstacle(f"{default_cache()}/kernel")
    if lacking:
        pytest.skip(f"{lacking}: make lab runs it")
    modes = {path: stat.S_IMODE(os.stat(path).st_mode) for path in DEVICES if os.path.exists(path)}
    for path in modes:
        os.chmod(path, 0o666)
    yield
    for path, mode in modes.items():
        os.chmod(path, mode)


def run(person: Person, *words: str) -> subprocess.CompletedProcess[str]:
    """In a machine of his."""
    return person.mamushka("run", "--runtime", "vm", "--kernel", f"{default_cache()}/kernel", *words, timeout=240)


def test_root_of_the_machine_is_the_user_outside(ordinary: Person, name: str) -> None:
    script = "id -u; cat; uname -r >/dev/null && touch /home/me/made; chown 5:5 /tmp && stat -c %u /tmp; exit 7"
    done = run(ordinary, "--rm", "-i", "--name", name, "--network", "none", "-v", f"{ordinary.home}:/home/me",
               "busybox", "sh", "-c", script)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, "0\n5\n", "")
    found = os.stat(f"{ordinary.home}/made")
    assert (found.st_uid, found.st_gid) == (UID, UID)


def test_its_network_is_that_of_a_container(ordinary: Person, name: str) -> None:
    shown = "ip -o addr show dev eth0 | grep -o 'inet [^ ]*'; ip route | sort"
    container = ordinary.good("run", "--rm", "busybox", "sh", "-c", shown)
    done = run(ordinary, "-d", "--name", name, "-p", "0:80", "busybox", "sh", "-c",
               f"{shown}; echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp")  # fmt: skip
    assert done.returncode == 0, done.stderr
    try:
        port = ordinary.good("port", name, "80").rsplit(":", 1)[1].strip()
        got = ordinary.run("busybox", "wget", "-q", "-O-", f"http://127.0.0.1:{port}/")
        assert got.stdout == "hello\n", got.stderr + ordinary.mamushka("logs", name).stderr
        # What its network prohibits is no route of the guest's: the wire does not carry it (network/test_tap.py).
        wanted = [line for line in container.splitlines() if not line.startswith("prohibit")]
        assert ordinary.good("logs", name).splitlines() == wanted
        assert ordinary.good("exec", name, "id", "-u") == "0\n"
    finally:
        ordinary.mamushka("rm", "-f", name)
    assert ordinary.processes() == []
