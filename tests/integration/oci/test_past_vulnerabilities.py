"""Past vulnerabilities as the command line meets them: users, ids and paths of cgroups that are none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from .conftest import Oci

pytestmark = pytest.mark.root


@pytest.fixture
def running(oci: Oci) -> Iterator[str]:
    oci.edit("sleep", "100")
    assert oci.quietly("run", "-d", "x") == 0
    yield "x"
    oci.quietly("delete", "--force", "x")


@pytest.mark.parametrize(
    "user",
    [
        "", ":", ":0", "0:", "-1", "+0", "0x0", "0o0", "1e3", "1_000", " 0", "0 ", "0\n", "\u0660", "\uff10", "\u00b2",
        "root", "0:root", "0:-1", "0:0:0", "0::0", "4294967295", "4294967296", "18446744073709551616", "9" * 5000,
        "0:4294967295",
    ],
)  # fmt: skip
def test_exec_as_a_user_that_is_none_runs_nothing(oci: Oci, running: str, user: str) -> None:
    """CVE-2026-30892: misread, the process ran as somebody else."""
    for flags in (("--user", user), (f"--user={user}",)):
        done = oci("exec", *flags, running, "sh", "-c", "echo ran > /ran")
        assert done.returncode != 0 and "Traceback" not in done.stderr, done.stdout
    assert not os.path.exists(f"{oci.bundle}/rootfs/ran")


@pytest.mark.parametrize(
    ("user", "ids"),
    [("0", "0 0"), ("00", "0 0"), ("7", "7 0"), ("7:8", "7 8"), ("4294967294:4294967294", "4294967294 4294967294")],
)
def test_exec_as_a_user(oci: Oci, running: str, user: str, ids: str) -> None:
    script = "while read name one rest; do case $name in [UG]id:) echo $one;; esac; done < /proc/self/status"
    done = oci("exec", "--user", user, running, "sh", "-c", script)
    assert " ".join(done.stdout.split()) == ids


@pytest.mark.parametrize("id", ["", ".", "..", "../x", "a/b", "/abs", "a b", "a\n", "é", "a:b", "x" * 256])
def test_ids_are_names_and_no_paths(oci: Oci, id: str) -> None:
    os.makedirs(f"{oci.state}/../x", exist_ok=True)
    for verb in ("run", "create", "start", "state", "kill", "delete"):
        assert oci(verb, id).returncode != 0, verb
    assert oci("delete", "--force", id).returncode != 0
    assert oci("exec", id, "true").returncode != 0
    assert os.path.isdir(f"{oci.state}/../x")
    assert oci("list", "-q").stdout == ""


@pytest.mark.parametrize("cgroup", ["..", "../..", "/..", "a/../..", "/mamushka"])
def test_exec_leaves_the_containers_cgroup_by_no_path(oci: Oci, running: str, cgroup: str) -> None:
    """crun 1.29: exec --cgroup."""
    done = oci("exec", "--cgroup", cgroup, running, "sh", "-c", "cat /proc/self/cgroup; echo ran > /ran")
    assert done.returncode != 0 and not os.path.exists(f"{oci.bundle}/rootfs/ran")


@pytest.mark.parametrize("path", ["..", "/../x", "a/../../b", "/"])
def test_a_bundle_leaves_its_place_among_cgroups_by_no_path(oci: Oci, path: str) -> None:
    with open(f"{oci.bundle}/config.json") as file:
        config = json.load(file)
    config["linux"]["cgroupsPath"] = path
    with open(f"{oci.bundle}/config.json", "w") as file:
        json.dump(config, file)
    assert oci("run", "box").returncode != 0
    assert oci("list", "-q").stdout == ""
