"""Hooks of the host's around a machine, and links that callers put into its network; the guest is a double."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mamushka.errors import Invalid, Unsupported
from mamushka.runtime import Bundle, Stdio
from mamushka.spec.runtime import Hook, Hooks, Namespace
from mamushka.values import replace
from tests import peers
from tests.integration.machine.test_runtime import Ground, content, ground, status

pytestmark = [pytest.mark.root]
__all__ = ["ground"]


def _hook(text: str) -> Hook:
    return Hook("/bin/sh", ("sh", "-c", text), ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",))


def _bundle(ground: Ground, command: str, **hooks: tuple[Hook, ...]) -> Bundle:
    bundle = ground.bundle(command)
    linux = bundle.config.linux
    others = (item for item in linux.namespaces if item.type != "network")
    linux = replace(linux, namespaces=(*others, Namespace("network")))
    return Bundle(bundle.path, replace(bundle.config, hooks=Hooks(**hooks), linux=linux))


def _start(ground: Ground, bundle: Bundle, how: str = "create") -> tuple[Any, int]:
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        started = getattr(ground.runtime, how)("box", bundle, Stdio(null, writer, writer))
        ground.made.append(started)
    finally:
        os.close(writer)
        os.close(null)
    return started, reader


@pytest.mark.parametrize("how", ["create", "run"])
def test_each_moment_is_told_the_state(ground: Ground, tmp_path: Path, how: str) -> None:
    moments = ("prestart", "create_runtime", "poststart", "poststop")
    hooks = {name: (_hook(f"echo {name} $(cat) >> {tmp_path}/told"),) for name in moments}
    started, _ = _start(ground, _bundle(ground, "sleep 60", **hooks), how)
    if how == "create":
        assert [line.split()[0] for line in _told(tmp_path)] == ["prestart", "create_runtime"]
        ground.runtime.start("box")
    ground.runtime.kill("box", 9)
    assert status(started) == -9
    ground.runtime.delete("box")
    told = _told(tmp_path)
    assert [line.partition(" ")[0] for line in told] == list(moments)
    states = [json.loads(line.partition(" ")[2]) for line in told]
    assert [state["status"] for state in states] == ["creating", "creating", "running", "stopped"]
    assert [state.get("pid") for state in states] == [started.pid] * 3 + [None]
    assert {state["id"] for state in states} == {"box"}


def _told(place: Path) -> list[str]:
    return (place / "told").read_text().splitlines()


def test_a_hook_that_fails_leaves_nothing(ground: Ground) -> None:
    with pytest.raises(Invalid, match="exit status 3"):
        _start(ground, _bundle(ground, "true", create_runtime=(_hook("exit 3"),)))
    assert not os.path.exists(f"{ground.state}/box")
    started, _ = _start(ground, _bundle(ground, "sleep 60", poststart=(_hook("exit 4"),)))
    with pytest.raises(Invalid, match="exit status 4"):
        ground.runtime.start("box")
    assert status(started) == -9
    assert not os.path.exists(f"{ground.state}/box")


@pytest.mark.parametrize("moment", ["create_container", "start_container"])
def test_hooks_of_the_inside_are_refused(ground: Ground, moment: str) -> None:
    with pytest.raises(Unsupported, match="expect the host's kernel"):
        _start(ground, _bundle(ground, "true", **{moment: (_hook("true"),)}))


def test_a_hook_puts_links_into_the_network(ground: Ground) -> None:
    """As Docker's prestart hook does, by the pid of the state."""
    peers.need("ip")
    put = _hook(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); nsenter --net=/proc/$pid/ns/net ip link add mine type bridge"
    )
    _, reader = _start(ground, _bundle(ground, "cat /proc/net/dev", prestart=(put,)), "run")
    assert "mine:" in content(reader)
    with open("/proc/net/dev") as file:
        assert "mine:" not in file.read()


def test_a_caller_puts_links_into_the_network_before_start(ground: Ground) -> None:
    """As Docker does from version 27 on."""
    peers.need("ip")
    started, reader = _start(ground, _bundle(ground, "cat /proc/net/dev"))
    assert ground.runtime.state("box").status == "created"
    subprocess.run(
        ["nsenter", f"--net=/proc/{started.pid}/ns/net", peers.find("ip"), "link", "add", "mine", "type", "bridge"],
        check=True,
    )
    ground.runtime.start("box")
    assert "mine:" in content(reader)


def test_a_machine_that_cannot_be_made_at_start_says_why(ground: Ground) -> None:
    class Broken:
        def prepare(self, *_: object) -> Any:
            def make() -> Any:
                raise Unsupported("there is no such card", hint="buy one")

            return make, ()

    ground.runtime._maker = Broken()  # type: ignore[assignment]
    started, _ = _start(ground, _bundle(ground, "true"))
    with pytest.raises(Unsupported, match="no such card"):
        ground.runtime.start("box")
    assert status(started) == 255
