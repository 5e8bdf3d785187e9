"""What the default box lets be reached, exactly; that options close what they should; what is told, and how it ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mamushka as api
from mamushka.engine.audit import AXES, PROBES, runtimes
from tests import images
from tests import registry as registries
from tests.integration.audit import scores
from tests.integration.audit.scores import ALONE, reached, report

if TYPE_CHECKING:
    from mamushka.engine.engine import Engine
    from tests.conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.network]

HARDENED = (
    "--network", "none", "--user", "65534:65534", "--cap-drop", "ALL", "--read-only", "--memory", "256m",
    "--pids-limit", "64", "--cpus", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def empty_image(registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image without any program."""
    layout = images.build(str(tmp_path_factory.mktemp("empty")), "empty", [lambda root: Path(root, "nothing").touch()])
    return registries.push(layout, f"{registry}/empty:latest")


@pytest.mark.lab
def test_the_default_box(mamushka: Command) -> None:
    """The promise, to the point: SECURITY.md says why each of these is not zero."""
    found = report(mamushka)
    assert found["runtime"] == "container"
    assert {item["probe"] for item in found["findings"] if item["reached"]} == scores.DEFAULT
    assert found["axes"] == scores.DEFAULT_AXES


def test_the_default_box_in_an_image_without_programs(mamushka: Command, empty_image: str) -> None:
    found = report(mamushka, empty_image)
    assert found["axes"] == scores.DEFAULT_AXES | {"files": 0}


def test_a_hardened_box_reaches_nothing(mamushka: Command, empty_image: str) -> None:
    """Also in an image that has no program: the probe needs none."""
    found = report(mamushka, *HARDENED, empty_image)
    assert [item["probe"] for item in found["findings"] if item["reached"]] == []
    assert found["score"] == 0 and set(found["axes"].values()) == {0}


@pytest.mark.parametrize(
    ("options", "closed"),
    [
        (ALONE, scores.NETWORK),
        (("--cap-drop", "NET_RAW"), {"packet-sockets"}),
        (("--cap-drop", "ALL"), {"packet-sockets", "capabilities"}),
        (("--user", "65534"), {"packet-sockets", "capabilities", "root"}),
        (("--userns", "private"), {"root"}),
        (("--memory", "256m"), {"memory-limit"}),
        (("--pids-limit", "64"), {"process-limit"}),
        (("--cpus", "1"), {"time-limit"}),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, tuple) else "",
)
def test_an_option_closes_what_it_says(mamushka: Command, options: tuple[str, ...], closed: set[str]) -> None:
    assert set(reached(mamushka, *options)) == scores.DEFAULT - closed


def test_an_internal_network_is_no_way_out_and_a_way_to_the_host(mamushka: Command) -> None:
    assert mamushka("network", "create", "--internal", "inner").returncode == 0
    closed = {"world", "private-ranges", "packet-sockets"}
    assert set(reached(mamushka, "--network", "inner")) == scores.DEFAULT - closed
    assert mamushka("network", "rm", "inner").returncode == 0


def test_what_is_told_has_a_stable_shape(mamushka: Command) -> None:
    """docs/guides/audit.md documents it: a field that goes or changes breaks somebody's script."""
    done = mamushka("audit", "--json", *ALONE)
    answer = json.loads(done.stdout)
    assert answer.keys() == {"reports", "others"}
    here = runtimes()
    refused = {name: why for name, why in here.items() if why}
    assert {item["runtime"]: item["reason"] for item in answer["others"]} == refused
    assert all("not part of this version" in here[name] for name in ("emulated", "confidential"))
    assert [item["runtime"] for item in answer["reports"]] == [name for name, why in here.items() if not why]
    found = answer["reports"][0]
    assert found.keys() == {"version", "runtime", "image", "score", "axes", "findings"}
    assert (found["version"], found["runtime"], found["image"]) == (1, "container", "host")
    assert tuple(found["axes"]) == AXES
    assert [item["probe"] for item in found["findings"]] == [probe.name for probe in PROBES]
    kinds = {
        "probe": str, "axis": str, "weight": int, "title": str, "reached": bool, "seen": str, "why": str, "close": str,
    }  # fmt: skip
    for item in found["findings"]:
        assert {key: type(member) for key, member in item.items()} == kinds
        assert item["reached"] == bool(item["seen"]) and item["axis"] in AXES and 0 < item["weight"] <= 100
    for axis, score in found["axes"].items():
        weights = [item["weight"] for item in found["findings"] if item["axis"] == axis and item["reached"]]
        assert score == min(100, sum(weights))


@pytest.mark.parametrize(
    ("limits", "code", "said"),
    [
        (("--max", "40"), 0, b""),
        (("--max", "39"), 1, b"network has 40, and --max allows 39"),
        (("--max", "processes=24"), 1, b"processes has 25, and --max allows 24"),
        (("--max", "0", "--max", "network=40", "--max", "files=5", "--max", "privileges=15", "--max", "processes=25",
          "--max", "secrets=5"), 0, b""),
        (("--max", "101"), 125, b"AXIS=SCORE"),
        (("--max", "luck=3"), 125, b"the axes are network, secrets, files, privileges, processes"),
        (("--runtime", "emulated"), 125, b"emulated machines are not part of this version"),
        (("--privileged=maybe",), 125, b"not true or false"),
        (("no/such/image:at-all", "--pull", "never"), 125, b"no/such/image"),
        (("-it",), 125, b"unknown option"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, tuple) else "",
)  # fmt: skip
def test_how_it_ends(mamushka: Command, limits: tuple[str, ...], code: int, said: bytes) -> None:
    done = mamushka("audit", *limits)
    assert done.returncode == code, done.stderr.decode()
    assert said in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    assert mamushka("ps", "-aq").stdout == b""


def test_machines_that_cannot_be_had_here_are_refused_with_the_reason(mamushka: Command) -> None:
    reason = runtimes()["vm"]
    if not reason:
        pytest.skip("machines can be had here")
    done = mamushka("audit", "--runtime", "vm")
    assert done.returncode == 125 and f"vm: {reason}".encode() in done.stderr, done.stderr.decode()


def test_people_read_what_why_and_how_to_close_it(mamushka: Command) -> None:
    text = mamushka("audit", *ALONE).stdout.decode()
    assert text.startswith("container, image host: 9 of 100")
    assert "processes     25" in text and "no limit of memory: all memory of the host" in text
    assert "closed by: -m SIZE" in text and "emulated: not audited: emulated machines" in text
    reason = runtimes()["vm"]
    assert not reason or f"vm: not audited: {reason}" in text
    assert "network        0" in text and "the world" not in text


def test_from_python(engine: Engine) -> None:
    settings = {"network": "none", "user": "65534", "capabilities_drop": ["ALL"], "memory": "1g", "pids": 64, "cpus": 1}
    found = api.audit(engine=engine, **settings)
    assert found.axes == {"network": 0, "secrets": 0, "files": 5, "privileges": 0, "processes": 0}
    assert [item.probe for item in found.reached] == ["programs"] and found.score == 1
    twin = asyncio.run(api.aio.audit(engine=engine, network="none"))
    assert twin.axis("processes") == 25 and {item.probe for item in twin.reached} == scores.DEFAULT - scores.NETWORK
