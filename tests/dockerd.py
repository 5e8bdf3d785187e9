"""A dockerd of one's own: its data, its sockets and its containerd end with the block."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests import peers

# A daemon that leaves links, packet filter and forwarding of its network namespace as they are.
NO_NETWORK = ("--bridge=none", "--iptables=false", "--ip-forward=false")


# Where its containers' cgroups go; other runtimes than ours leave the directory.
CGROUPS = "mamushka-docker"


def _remove_cgroups() -> None:
    for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
        if f"/{CGROUPS}" in directory:
            with suppress(OSError):
                os.rmdir(directory)


@contextmanager
def dockerd(base: str, *options: str, run: str = "", configuration: str = "{}") -> Iterator[list[str]]:
    """The words of a docker command that speaks to it; ``run`` is a place in memory, where there is one."""
    peers.need("docker", "dockerd", "containerd")
    run = run or f"{base}/run"
    os.makedirs(run, exist_ok=True)
    with open(f"{base}/daemon.json", "w") as file:  # instead of the machine's own configuration
        file.write(configuration)
    socket = f"unix://{run}/docker.sock"
    command = [
        peers.find("dockerd"), "--config-file", f"{base}/daemon.json", "--data-root", f"{base}/data",
        "--exec-root", run, "--pidfile", f"{base}/pid", "--host", socket, *options,
    ]  # fmt: skip
    with open(f"{base}/log", "wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PATH": peers.PATH})
    client = [peers.find("docker"), "--host", socket]
    try:
        _await_answer(client, daemon, f"{base}/log")
        yield client
    finally:
        daemon.terminate()
        daemon.wait(30)
        _remove_cgroups()


def _await_answer(client: list[str], daemon: subprocess.Popen[bytes], log: str) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run([*client, "version"], capture_output=True, check=False).returncode:
        if daemon.poll() is not None or time.monotonic() > deadline:
            with open(log) as file:
                raise RuntimeError(f"dockerd does not run here: {file.read()[-800:]}")
        time.sleep(0.2)
