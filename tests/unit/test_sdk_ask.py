"""Plain Python becomes the engine's settings, and what means nothing is refused by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mamushka.engine.settings import Attachment, Mount, Port, Restart, Settings
from mamushka.errors import Invalid
from mamushka.interfaces.sdk.ask import Asked, settings, size


def asked(**what: object) -> Settings:
    return settings("busybox", ("true",), what)


def test_nothing_asked_is_the_engines_default() -> None:
    assert asked() == Settings(image="busybox", command=("true",))


@pytest.mark.parametrize(
    ("text", "count"),
    [(7, 7), ("7", 7), ("512m", 512 << 20), ("1g", 1 << 30), ("1.5GiB", 3 << 29), ("2KB", 2048), ("1t", 1 << 40)],
)
def test_sizes(text: int | str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "m", "1x", "1 2", "--1", "1mm", "nan", "infg"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(Invalid, match="is not a size"):
        size(text)


def test_mounts_of_paths_volumes_and_values() -> None:
    assert asked(mounts={"/srv": "/srv:ro", "cache": "/var/cache"}, tmpfs=["/scratch"]).mounts == (
        Mount("bind", "/srv", "/srv", read_only=True),
        Mount("volume", "/var/cache", "cache"),
        Mount("tmpfs", "/scratch"),
    )
    own = Mount("tmpfs", "/t", size=4096)
    assert asked(mounts=[own]).mounts == (own,)


def test_ports_are_host_to_box_and_a_list_takes_any() -> None:
    assert asked(ports={8080: 80, "127.0.0.1:5353": "53/udp"}).ports == (
        Port(80, "tcp", "", 8080),
        Port(53, "udp", "127.0.0.1", 5353),
    )
    assert asked(ports=[80]).ports == (Port(80),)


def test_limits_security_and_the_rest() -> None:
    found = asked(memory="1g", cpus=1.5, pids=9, capabilities_drop=["ALL"], restart="on-failure:3", user=1000)
    assert (found.limits.memory, found.limits.cpus, found.limits.pids) == (1 << 30, 1.5, 9)
    assert found.security.capabilities_drop == ("ALL",)
    assert found.restart == Restart("on-failure", 3)
    assert found.user == "1000"
    assert asked(runtime="vm, container").runtime == ("vm", "container")
    assert asked(environment={"A": "1"}).environment == ("A=1",)
    assert asked(network=["front", "back"]).networks == (Attachment("front"), Attachment("back"))
    assert asked(user_namespace=True).namespaces.user == "private"
    assert asked(annotations={"a": "b"}, runtime="vm", cold=True).annotations == {
        "a": "b", "com.mamushka.machine.cold": "true",
    }  # fmt: skip
    assert asked(runtime="vm", kernel="/k", cold=True).annotations == {
        "com.mamushka.machine.kernel": "/k", "com.mamushka.machine.cold": "true",
    }  # fmt: skip
    with pytest.raises(Invalid, match="for machines"):
        asked(kernel="/k")


@pytest.mark.parametrize(
    "what",
    [{"ports": {80: "eighty"}}, {"ports": [0]}, {"ports": {70000: 80}}, {"mounts": {"/a": "b"}}, {"restart": "maybe"}],
)
def test_what_means_nothing_is_refused(what: dict[str, object]) -> None:
    with pytest.raises(Invalid) as refused:
        asked(**what)
    assert refused.value.hint


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(Invalid, match="no setting 'memmory'"):
        asked(memmory="1g")


def test_every_setting_is_translated() -> None:
    from mamushka.interfaces.sdk import ask

    elsewhere = {"mounts", "tmpfs", "network", "aliases", "user_namespace", "kernel", "cold", "annotations"}
    assert set(Asked.__annotations__) == set(ask._PLAIN) | set(ask._PARTS) | elsewhere


def test_importing_the_package_imports_nothing_else() -> None:
    script = "import sys; before = set(sys.modules); import mamushka; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"mamushka", "__future__"}


def test_every_name_that_is_offered_is_there() -> None:
    import mamushka

    for name in mamushka.__all__:
        assert getattr(mamushka, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mamushka.nothing  # noqa: B018
