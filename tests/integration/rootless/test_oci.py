"""``mamushka-oci`` for an ordinary user: his own bundles, and those of engines that he runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import images, peers
from tests.integration.rootless.conftest import somebody
from tests.integration.rootless.person import FIRST, PROGRAMS, SIZE, UID, Person

pytestmark = [pytest.mark.root]
PROGRAM = f"{PROGRAMS}/mamushka-oci"


class Bundles:
    """Bundles of one user, and the runtime for them."""

    def __init__(self, user: Person) -> None:
        self.user = user
        self.path = f"{user.home}/bundle"
        self.config: dict[str, Any] = {}
        images.add_busybox(f"{self.path}/rootfs")
        for directory, _, names in os.walk(self.path):
            for name in (".", *names):
                os.chown(f"{directory}/{name}", UID, UID, follow_symlinks=False)
        self.fresh()

    def fresh(self) -> None:
        """What ``spec --rootless`` writes, without a terminal."""
        if os.path.exists(f"{self.path}/config.json"):
            os.unlink(f"{self.path}/config.json")
        assert self("spec", "--rootless", "--bundle", self.path)[0] == 0
        with open(f"{self.path}/config.json") as file:
            self.config = json.load(file)
        self.config["process"]["terminal"] = False

    def set(self, command: str, **process: object) -> None:
        """What the container runs."""
        self.config["process"].update(args=["sh", "-c", command], **process)
        with open(f"{self.path}/config.json", "w") as file:
            json.dump(self.config, file)

    def __call__(self, *words: str, program: str = PROGRAM) -> tuple[int, str, str]:
        """Exit code, output, complaints. What stays in the background must not hold our pipes."""
        said = f"{self.user.home}/said"
        done = self.user.run("sh", "-c", f'"$@" </dev/null >{said}.out 2>{said}.err', "sh", program, *words)
        with open(f"{said}.out") as out, open(f"{said}.err") as err:
            return done.returncode, out.read(), err.read()

    def good(self, *words: str) -> str:
        """The output of a command that succeeds."""
        code, out, err = self(*words)
        assert code == 0, f"{words}: {err}"
        return out


@pytest.fixture(scope="module", params=["many ids", "one id"])
def bundles(request: pytest.FixtureRequest) -> Iterator[Bundles]:
    peers.need("busybox")
    with somebody(ids=request.param == "many ids") as user:
        yield Bundles(user)


@pytest.fixture
def container(bundles: Bundles, name: str) -> Iterator[Callable[[str], str]]:
    """Makes a detached container that runs a command; its name."""
    bundles.fresh()

    def run(command: str) -> str:
        bundles.set(command)
        bundles.good("run", "--detach", "--bundle", bundles.path, name)
        return name

    yield run
    bundles("delete", "--force", name)


def test_a_life(bundles: Bundles, name: str) -> None:
    bundles.fresh()
    bundles.config["root"]["readonly"] = False
    bundles.set("id -u > /tmp/ran; exit 6")
    bundles.good("create", "--bundle", bundles.path, name)
    assert json.loads(bundles.good("state", name))["status"] == "created"
    assert not os.path.exists(f"{bundles.path}/rootfs/tmp/ran")
    bundles.good("start", name)
    deadline = time.monotonic() + 10
    while json.loads(bundles.good("state", name))["status"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with open(f"{bundles.path}/rootfs/tmp/ran") as file:
        assert file.read() == "0\n"
    assert os.stat(f"{bundles.path}/rootfs/tmp/ran").st_uid == UID
    bundles.good("delete", name)
    assert os.listdir(f"{bundles.user.run_directory}/mamushka-oci") == []


def test_run_waits_and_tells_the_exit_code(bundles: Bundles, name: str) -> None:
    bundles.fresh()
    bundles.set("cat /proc/self/uid_map; exit 7")
    code, out, err = bundles("run", "--bundle", bundles.path, name)
    assert (code, out.split()) == (7, ["0", str(UID), "1"]), err


def test_exec_ps_and_kill(bundles: Bundles, container: Callable[[str], str]) -> None:
    name = container("exec sleep 600")
    code, out, err = bundles("exec", name, "sh", "-c", "id -u; readlink /proc/self/ns/user; exit 4")
    assert code == 4 and out.startswith("0\n"), err
    pid = json.loads(bundles.good("state", name))["pid"]
    assert os.readlink(f"/proc/{pid}/ns/user") == out.split()[1] != os.readlink("/proc/self/ns/user")
    assert json.loads(bundles.good("ps", "--format", "json", name)) == [pid]
    assert "sleep 600" in bundles.good("ps", name)
    assert name in bundles.good("list", "-q")
    bundles.good("kill", "--all", name, "KILL")
    deadline = time.monotonic() + 10
    while json.loads(bundles.good("state", name))["status"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    bundles.good("delete", name)
    assert bundles.good("list", "-q") == ""


def test_a_terminal_in_exec(bundles: Bundles, container: Callable[[str], str]) -> None:
    assert "/dev/pts/0" in bundles.good("exec", "--tty", container("exec sleep 600"), "tty")


def test_several_ids(bundles: Bundles, name: str) -> None:
    bundles.fresh()
    for kind in ("uidMappings", "gidMappings"):
        bundles.config["linux"][kind].append({"containerID": 1, "hostID": FIRST, "size": SIZE})
    bundles.set("id; cat /proc/self/gid_map", user={"uid": 33, "gid": 34, "additionalGids": [5]})
    code, out, err = bundles("run", "--bundle", bundles.path, name)
    if bundles.user.ids:
        assert code == 0 and out.startswith("uid=33 gid=34 groups=5"), err
        assert out.split()[-3:] == ["1", str(FIRST), str(SIZE)]
    else:
        assert code == 1 and "refuses the ids of the user namespace" in err


def test_what_is_refused(bundles: Bundles, name: str) -> None:
    bundles.fresh()
    bundles.set("true")
    assert "--rootless is false" in bundles("--rootless", "false", "run", "--bundle", bundles.path, name)[2]
    assert "--rootless takes" in bundles("--rootless", "perhaps", "run", "--bundle", bundles.path, name)[2]
    bundles.config["linux"]["uidMappings"][0]["containerID"] = 5
    bundles.set("true")
    assert "no root" in bundles("run", "--bundle", bundles.path, name)[2]
    bundles.fresh()
    namespaces = bundles.config["linux"]["namespaces"]
    bundles.config["linux"]["namespaces"] = [item for item in namespaces if item["type"] != "user"]
    bundles.set("true")
    assert "rootless containers need a user namespace" in bundles("run", "--bundle", bundles.path, name)[2]
    assert bundles.good("list", "-q") == ""


def test_it_sees_what_runc_shows_it(bundles: Bundles, name: str) -> None:
    """The same bundle by Debian's runc for the same user."""
    peers.need("runc")
    bundles.fresh()
    bundles.config["hostname"] = "the-same"
    bundles.set("id; hostname; cat /proc/self/uid_map; grep -E 'Cap|NoNew' /proc/self/status; ls /dev; ulimit -n;"
                "mount | sed 's/ (.*//' | grep -v -e ' /sys' -e ' on /proc/' -e masked")  # fmt: skip
    code, ours, err = bundles("run", "--bundle", bundles.path, name)
    assert code == 0, err
    root = f"{bundles.user.run_directory}/runc"
    code, theirs, err = bundles("--root", root, "run", "--bundle", bundles.path, name, program=peers.find("runc"))
    assert code == 0, err
    # Neither bothers about order; runc also makes /dev/core.
    assert {*ours.split("\n")} == {*theirs.split("\n")} - {"core"}


@pytest.fixture(scope="module")
def podman(ordinary: Person, busybox_reference: str) -> Iterator[Callable[..., Any]]:
    """The user's own podman, with our runtime."""
    peers.need("podman")
    base = ["podman", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", PROGRAM]
    assert ordinary.run(*base, "pull", "-q", "--tls-verify=false", busybox_reference).returncode == 0

    def call(*words: str) -> Any:
        return ordinary.run(*base, *words)

    yield call
    call("rm", "-af", "-t", "0")
    ordinary.run("podman", "unshare", "rm", "-rf", f"{ordinary.home}/.local/share/containers")
    shutil.rmtree(f"{ordinary.home}/.local/share/containers", ignore_errors=True)


@pytest.mark.peer
def test_podman_without_root_runs_us(
    podman: Callable[..., Any], ordinary: Person, busybox_reference: str, name: str
) -> None:
    done = podman("run", "--rm", "--network", "none", busybox_reference, "sh", "-c", "cat /proc/self/uid_map; exit 5")
    assert done.returncode == 5, done.stderr
    same = ordinary.good("run", "--rm", "--network", "none", "busybox", "cat", "/proc/self/uid_map")
    assert done.stdout == same
    done = podman("run", "-d", "--name", name, "--network", "none", busybox_reference, "sleep", "600")
    assert done.returncode == 0, done.stderr
    assert podman("exec", "-u", "33", name, "id", "-u").stdout == "33\n"
    assert "/dev/pts/0" in podman("exec", "-t", name, "tty").stdout
    assert "sleep 600" in podman("top", name).stdout
    assert podman("rm", "-f", "-t", "0", name).returncode == 0
