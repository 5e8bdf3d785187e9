"""A real registry on loopback: Debian's docker-registry with its own configuration and storage."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests import peers
from tests.images import Layout

CONFIGURATION = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"{extra}}}
{more}"""


@contextmanager
def registry(directory: str, *, extra: str = "", more: str = "") -> Iterator[str]:
    """Run one until the block ends; yields ``host:port``. ``extra`` goes into http, ``more`` to the end."""
    peers.need("docker-registry")
    port = free_port()
    path = os.path.join(directory, "registry.yml")
    with open(path, "w") as file:
        file.write(CONFIGURATION.format(root=os.path.join(directory, "registry"), port=port, extra=extra, more=more))
    with open(os.path.join(directory, "registry.log"), "wb") as log:
        server = subprocess.Popen([peers.find("docker-registry"), "serve", path], stdout=log, stderr=log)
    try:
        _await_answer(port, server)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def push(image: Layout, target: str, *options: str) -> str:
    """Copy an image there with skopeo; ``target`` is host:port/name:tag and comes back."""
    peers.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options, image.skopeo, f"docker://{target}")
    return target


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_answer(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert server.poll() is None, f"docker-registry ended with {server.returncode}"
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/v2/")
            connection.getresponse()
        except OSError:
            time.sleep(0.05)
        else:
            return
        finally:
            connection.close()
    raise AssertionError(f"docker-registry does not answer on port {port}")
