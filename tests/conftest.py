"""What every test may ask for, and the check that the suite leaves the host as it found it.

Nothing of mamushka is imported here: unit tests stay fast and choose for themselves. Integration tests run in
a network and mount namespace of the session's own, so that several suites, and the host's own containers, do
not meet; ``--host-namespaces`` runs them in the host's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import host, images, peers
from tests import registry as registries

if TYPE_CHECKING:
    from mamushka.engine.engine import Engine
    from tests.images import Layout

# What is tested is never how long an example takes: others may use the machine too.
hypothesis.settings.register_profile("mamushka", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("mamushka")

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
LAST = "test_nothing_is_left_behind"

_before = pytest.StashKey[host.Host]()
_network = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--host-namespaces", action="store_true", help="run integration tests in the host's namespaces")
    parser.addoption("--shared-host", action="store_true", help="others work here too: leftovers only warn")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The leak check is the suite's last test, whatever else runs."""
    items.sort(key=lambda item: item.name == LAST)


def pytest_collection_finish(session: pytest.Session) -> None:
    integration = any("tests/integration/" in item.nodeid for item in session.items)
    if not integration or session.config.option.collectonly:
        return
    session.config.stash[_network] = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if os.geteuid() == 0 and not session.config.getoption("--host-namespaces"):
        _enter_own_namespaces()
    session.config.stash[_before] = host.look()


def _enter_own_namespaces() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run([peers.find("ip") or "ip", "link", "set", "lo", "up"], check=False)


@pytest.fixture(scope="session")
def host_before(request: pytest.FixtureRequest) -> host.Host:
    """The host as it was before the first test."""
    return request.config.stash[_before]


@pytest.fixture
def on_the_hosts_network(request: pytest.FixtureRequest) -> list[str]:
    """Words to put before a command that must reach the world, such as pip's."""
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{request.config.stash[_network]}"]


@pytest.fixture
def untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """The host, afterwards, is as it was before. What others may do meanwhile is left out with --shared-host."""
    before = host.rested()
    yield
    others = host.SHARED if request.config.getoption("--shared-host") else ()
    left = host.settled(before, ignore=others)
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a real registry on loopback, shared by the session; use names of your own."""
    with registries.registry(str(tmp_path_factory.mktemp("registry"))) as address:
        yield address


@pytest.fixture(scope="session")
def busybox_image(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A one-layer busybox image in an OCI layout, made by umoci."""
    return images.busybox(str(tmp_path_factory.mktemp("busybox")))


@pytest.fixture(scope="session")
def layered_image(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A five-layer image with whiteouts, opaque directories, hard links, xattrs and odd names, made by umoci."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the image holds foreign owners and security.capability")
    return images.layered(str(tmp_path_factory.mktemp("layered")))


@pytest.fixture(scope="session")
def busybox_reference(registry: str, busybox_image: Layout) -> str:
    """The busybox image's name in the session's registry."""
    return registries.push(busybox_image, f"{registry}/busybox:latest")


@pytest.fixture(scope="session")
def layered_reference(registry: str, layered_image: Layout) -> str:
    """The five-layer image's name in the session's registry."""
    return registries.push(layered_image, f"{registry}/layered:latest")


@pytest.fixture
def unique() -> str:
    """A name that nobody else uses."""
    return f"mamushka-test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A data root and a run root of the test's own; the paths stay short enough for unix sockets."""
    base = tmp_path_factory.mktemp("m")
    return str(base / "data"), str(base / "run")


@pytest.fixture
def engine(roots: tuple[str, str]) -> Iterator[Engine]:
    """An engine with roots of its own; at the end every workload is removed."""
    peers.need_root()
    from mamushka.engine.engine import Engine

    with Engine(*roots) as engine:
        yield engine
        for workload in engine.workloads(all=True):
            engine.remove(workload.id, force=True, volumes=True)


Command = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def mamushka(roots: tuple[str, str]) -> Iterator[Command]:
    """The command line as a user starts it, with roots of its own: ``mamushka("run", "--rm", …)``."""
    peers.need_root()
    program = os.path.join(os.path.dirname(sys.executable), "mamushka")

    def call(*arguments: str, input: bytes = b"", timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
        command = [program, "--data-root", roots[0], "--run-root", roots[1], *arguments]
        return subprocess.run(command, input=input, capture_output=True, timeout=timeout, check=False)

    yield call
    left = call("ps", "-aq").stdout.decode().split()
    if left:
        call("rm", "-fv", *left)
