"""No probe is broken: behind an open door each finds what it finds nowhere else.

``test_audit.py`` holds that the default box closes these doors; a probe that never finds anything would pass there.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mamushka.engine.audit import PROBES, Audit
from tests import images, peers
from tests.integration.audit.scores import ALONE, reached

if TYPE_CHECKING:
    from tests.conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.network]

WITH_A_DIRECTORY = """
import os, sys
fd = os.open("/", os.O_RDONLY)
if fd != 3:
    os.dup2(fd, 3)
os.set_inheritable(3, True)
os.execv(sys.argv[1], sys.argv[1:])
"""
UNMASKED = ("--security-opt", "unmask=ALL")

# probe: options that open its door
DOORS: dict[str, tuple[str, ...]] = {
    "world": (),
    "private-ranges": (),
    "host-address": (),
    "packet-sockets": (),
    "host-loopback": ("--network", "host"),
    "host-loopback-udp": ("--network", "host"),
    "abstract-socket": ("--network", "host"),
    "shared-memory": (*ALONE, "--ipc", "host"),
    "keyring": (*ALONE, "--security-opt", "seccomp=unconfined"),
    "process-arguments": (*ALONE, "--pid", "host"),
    "process-environment": (*ALONE, "--pid", "host", "--privileged"),
    "kernel-addresses": (*ALONE, "--cap-add", "SYSLOG"),
    "kernel-log": (*ALONE, "--cap-add", "SYSLOG"),
    "kernel-internals": (*ALONE, *UNMASKED),
    "programs": ALONE,
    "devices": (*ALONE, "--device-cgroup-rule", "c 1:11 rwm", "--cap-add", "SYSLOG"),
    "handles": (*ALONE, "--cap-add", "DAC_READ_SEARCH"),
    "binaries": (*ALONE, "--pid", "host", "--privileged"),
    "root": ALONE,
    "capabilities": ALONE,
    "further-capabilities": (*ALONE, "--cap-add", "SYS_NICE"),
    "new-privileges": (*ALONE, "--security-opt", "no-new-privileges=false"),
    "filter": (*ALONE, "--security-opt", "seccomp=unconfined"),
    "user-namespaces": (*ALONE, "--security-opt", "seccomp=unconfined"),
    "mount": (*ALONE, "--cap-add", "SYS_ADMIN"),
    "setns": (*ALONE, "--cap-add", "SYS_ADMIN"),
    "kernel": (*ALONE, "--cap-add", "SYS_TIME"),
    "surface": (*ALONE, "--security-opt", "seccomp=unconfined"),
    "switches": (*ALONE, "--privileged"),
    "sysfs": (*ALONE, "--privileged"),
    "cgroups": (*ALONE, "--privileged"),
    "visible": (*ALONE, "--pid", "host"),
    "signal": (*ALONE, "--pid", "host"),
    "trace": (*ALONE, "--pid", "host", "--privileged"),
    "process-limit": ALONE,
    "memory-limit": ALONE,
    "time-limit": ALONE,
}
# Those whose door takes more than options, or something of the machine: a test of their own each.
APART = {
    "debugging", "descriptors", "engines", "environment", "firmware", "host-file", "host-file-write", "kernel-memory",
    "metadata", "mounts", "mounts-write", "other-networks", "release-agent", "serials",
    "shared",
}  # fmt: skip


def test_every_probe_has_its_door() -> None:
    assert DOORS.keys() | APART == {probe.name for probe in PROBES}
    assert not DOORS.keys() & APART


@pytest.mark.parametrize("options", sorted(set(DOORS.values())), ids=" ".join)
def test_what_an_open_door_lets_be_reached(mamushka: Command, options: tuple[str, ...]) -> None:
    wanted = {name for name, door in DOORS.items() if door == options}
    found = reached(mamushka, *options)
    assert wanted <= found.keys(), f"not found: {wanted - found.keys()}"


@pytest.mark.parametrize(
    ("probe", "path", "options"),
    [
        ("kernel-memory", "/proc/kcore", ("--privileged",)),
        ("firmware", "/sys/firmware", UNMASKED),
    ],
)
@pytest.mark.lab
def test_what_some_machines_have(mamushka: Command, probe: str, path: str, options: tuple[str, ...]) -> None:
    if not os.path.exists(path):
        pytest.skip(f"this machine has no {path}")
    assert probe in reached(mamushka, *ALONE, *options)


@pytest.mark.lab
def test_serial_numbers(mamushka: Command, tmp_path: Path) -> None:
    """One of our own stands in for the firmware's, which many machines leave empty."""
    path = "/sys/devices/virtual/dmi/id/product_serial"
    if not os.path.exists(path):
        pytest.skip(f"this machine has no {path}")
    (tmp_path / "serial").write_text("MAMUSHKA-1\n")
    assert "product_serial" in reached(mamushka, *ALONE, *UNMASKED, "-v", f"{tmp_path}/serial:{path}")["serials"]


def test_the_callers_environment(mamushka: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_TEST_TOKEN", "of great worth")
    assert "environment" not in reached(mamushka, *ALONE, "-e", "AUDIT_TEST_TOKEN=another")
    assert reached(mamushka, *ALONE, "-e", "AUDIT_TEST_TOKEN")["environment"].endswith("AUDIT_TEST_TOKEN")


def test_files_through_a_mount(mamushka: Command, roots: tuple[str, str], tmp_path: Path) -> None:
    """The canary lies in the run root; another directory does not show it."""
    os.makedirs(roots[1], exist_ok=True)
    both = {"host-file", "host-file-write", "mounts", "mounts-write"}
    assert both <= reached(mamushka, *ALONE, "-v", f"{roots[1]}:/handed").keys()
    read_only = reached(mamushka, *ALONE, "-v", f"{roots[1]}:/handed:ro")
    assert both & read_only.keys() == {"host-file", "mounts"}
    assert "as /handed/audit-" in read_only["host-file"] and read_only["mounts"] == f"{roots[1]} at /handed"
    assert both & reached(mamushka, *ALONE, "-v", f"{tmp_path}:/handed").keys() == {"mounts", "mounts-write"}


def test_the_shims_socket_through_a_mount(mamushka: Command, roots: tuple[str, str]) -> None:
    os.makedirs(roots[1], exist_ok=True)
    assert "/h/shims/" in reached(mamushka, *ALONE, "-v", f"{roots[1]}:/h")["engines"]


def test_an_engines_socket(mamushka: Command, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert reached(mamushka, *ALONE, "-v", f"{path}:/run/docker.sock")["engines"].startswith("/run/docker.sock")
        assert reached(mamushka, *ALONE, "-v", f"{path}:/anywhere")["engines"] == "/anywhere"
    assert "engines" not in reached(mamushka, *ALONE, "-v", f"{path}:/run/docker.sock")  # nobody listens


def test_a_release_agent(mamushka: Command) -> None:
    if not os.path.exists("/sys/fs/cgroup/memory/release_agent"):
        pytest.skip("this machine has no cgroup v1")
    assert "release_agent" in reached(mamushka, *ALONE, "-v", "/sys/fs/cgroup:/sys/fs/cgroup")["release-agent"]


@pytest.fixture
def tracefs() -> Iterator[str]:
    """In the session's mount namespace."""
    path = "/sys/kernel/tracing"
    if subprocess.run(["mount", "-t", "tracefs", "tracefs", path], capture_output=True, check=False).returncode:
        pytest.skip("tracefs cannot be mounted")
    yield path
    subprocess.run(["umount", path], check=True)


def test_debugging_file_systems(mamushka: Command, tracefs: str) -> None:
    assert tracefs in reached(mamushka, *ALONE, "-v", f"{tracefs}:{tracefs}")["debugging"]


@pytest.fixture
def metadata() -> Iterator[str]:
    """A metadata service, on the loopback of the session's network namespace."""
    address = "169.254.169.254"
    peers.run("ip", "address", "add", f"{address}/32", "dev", "lo")
    try:
        with socket.create_server((address, 80)):
            yield address
    finally:
        peers.run("ip", "address", "del", f"{address}/32", "dev", "lo")


def test_the_metadata_service(mamushka: Command, metadata: str) -> None:
    """It is there, so that its absence says something of the wall."""
    assert metadata in reached(mamushka, "--network", "host")["metadata"]
    assert "metadata" not in reached(mamushka)


def test_the_processes_of_another_workload(mamushka: Command) -> None:
    assert mamushka("run", "-d", "--name", "other", *ALONE, "host", "sleep", "600").returncode == 0
    try:
        assert reached(mamushka, *ALONE, "--pid", "container:other")["shared"].startswith("1 of")
        assert "shared" not in reached(mamushka, *ALONE)
        assert "shared" in reached(mamushka, *ALONE, "--pid", "host")
    finally:
        mamushka("rm", "-f", "other")


def test_workloads_of_other_networks(mamushka: Command) -> None:
    """One runs in a network of its own; the host, which is in all of them, does reach it."""
    assert mamushka("network", "create", "elsewhere").returncode == 0
    assert (
        mamushka("run", "-d", "--name", "neighbour", "--network", "elsewhere", "host", "sleep", "600").returncode == 0
    )
    try:
        assert "other-networks" not in reached(mamushka)
        assert "other-networks" not in reached(mamushka, "--network", "elsewhere")  # it is its own there
        assert "answered at" in reached(mamushka, "--network", "host")["other-networks"]
    finally:
        mamushka("rm", "-f", "neighbour")
        mamushka("network", "rm", "elsewhere")


def test_an_inherited_descriptor(tmp_path: Path) -> None:
    """By the OCI command's --preserve-fds, which no option of run's leads to."""
    import json

    images.add_busybox(str(tmp_path / "rootfs"))
    program = os.path.join(os.path.dirname(sys.executable), "mamushka-oci")
    subprocess.run([program, "spec"], cwd=tmp_path, check=True)
    found = {}
    with Audit(str(tmp_path / "audit")) as audit:
        audit.write()
        config = json.loads((tmp_path / "config.json").read_text())
        config["process"].update(terminal=False, args=["/probe"])
        config["mounts"].append({"destination": "/probe", "source": audit.probe, "type": "bind", "options": ["bind"]})
        (tmp_path / "config.json").write_text(json.dumps(config))
        for count in (0, 1):
            command = [program, "--root", str(tmp_path / "state"), "run", "--preserve-fds", str(count), "audited"]
            words = [sys.executable, "-c", WITH_A_DIRECTORY, *command]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
            found[count] = {item.probe for item in audit.judge(done.stdout) if item.reached}
    assert found[1] - found[0] == {"descriptors"}
