"""Every verb in every state, by us and by runc: whether it is done, and in the words that callers look for if not."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import peers
from tests.integration.oci.conftest import Oci

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.slow]

STATES = ("absent", "created", "running", "paused", "stopped")
VERBS = (
    ("state", "x"), ("start", "x"), ("exec", "x", "true"), ("exec", "--ignore-paused", "-d", "x", "true"),
    ("kill", "x", "0"), ("kill", "x", "CONT"), ("kill", "--all", "x", "CONT"), ("pause", "x"), ("resume", "x"),
    ("update", "--pids-limit", "50", "x"), ("ps", "--format", "json", "x"), ("events", "--stats", "x"),
    ("delete", "x"), ("delete", "--force", "x"), ("create", "x"), ("run", "-d", "x"),
)  # fmt: skip
# What containerd, conmon and podman match, and people search for. libcontainer/error.go; containerd/go-runc.
PHRASES = (
    "container does not exist",
    "container with given ID already exists",
    "container not running",
    "container not paused",
    "not stopped",
    "cannot start an already running container",
    "cannot start a container that has stopped",
    "cannot exec in a paused container",
    "cannot exec in a stopped container",
    "is not running",
)
# runc 1.1 freezes, signals and thaws, and so resumes what was paused; with us it stays paused.
RESUMED = ("paused", "kill --all x CONT")
WAITS = "exec --ignore-paused -d x true"  # in a paused container, until it is resumed: a test of its own


class Pair:
    def __init__(self, oci: Oci, base: str) -> None:
        self.both = (oci, Oci(f"{base}/runc", oci.bundle, peers.find("runc")))

    @staticmethod
    def bring(runtime: Oci, state: str) -> None:
        """The container ``x`` into this state."""
        runtime("delete", "--force", "x")
        if state == "absent":
            return
        if state == "created":
            assert runtime.quietly("create", "x") == 0
            return
        assert runtime.quietly("run", "-d", "x") == 0
        if state == "paused":
            assert runtime("pause", "x").returncode == 0
        elif state == "stopped":
            assert runtime("kill", "x", "KILL").returncode == 0
            for _ in range(500):
                if json.loads(runtime("state", "x").stdout)["status"] == "stopped":
                    return
                time.sleep(0.01)
            raise AssertionError("it does not stop")

    @staticmethod
    def told(runtime: Oci, verb: tuple[str, ...]) -> tuple[bool, frozenset[str], str]:
        """(whether it was done, what a caller would recognise, the state afterwards)."""
        quiet = verb[0] in ("create", "run") or "-d" in verb
        log = f"{runtime.bundle}/log"
        open(log, "w").close()
        words = ("--log", log, "--log-format", "json", *verb)
        code = runtime.quietly(*words) if quiet else runtime(*words).returncode
        with open(log) as file:
            text = "".join(json.loads(line)["msg"] for line in file if '"error"' in line)
        after = runtime("state", "x")
        status = json.loads(after.stdout)["status"] if after.returncode == 0 else "absent"
        return code == 0, frozenset(phrase for phrase in PHRASES if phrase in text), status


@pytest.fixture
def pair(oci: Oci, tmp_path: Any) -> Iterator[Pair]:
    peers.need("runc")
    oci.edit("sleep", "60", capabilities={})
    made = Pair(oci, str(tmp_path))
    yield made
    for runtime in made.both:
        runtime("delete", "--force", "x")


@pytest.mark.parametrize("state", STATES)
def test_every_verb_is_answered_as_by_runc(pair: Pair, state: str) -> None:
    found: dict[str, list[tuple[bool, frozenset[str], str]]] = {}
    for runtime in pair.both:
        for verb in VERBS:
            if state == "paused" and " ".join(verb) == WAITS:
                continue
            pair.bring(runtime, state)
            found.setdefault(" ".join(verb), []).append(pair.told(runtime, verb))
    for verb, (ours, theirs) in found.items():
        if (state, verb) == RESUMED:
            assert ours[2] == "paused"
            continue
        assert ours[0] == theirs[0] and ours[2] == theirs[2], f"{verb} of {state}: ours {ours}, runc's {theirs}"
        assert ours[1] >= theirs[1], f"{verb} of {state}: ours {ours}, runc's {theirs}"


def test_exec_that_ignores_the_pause_waits_for_its_end(pair: Pair) -> None:
    ours, _ = pair.both
    pair.bring(ours, "paused")
    command = [ours.program, "--root", ours.state, "exec", "--ignore-paused", "x", "sh", "-c", "exit 6"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as waiting:
        time.sleep(0.5)
        assert waiting.poll() is None
        assert ours("resume", "x").returncode == 0
        assert waiting.wait(60) == 6
