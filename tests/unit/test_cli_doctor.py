import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mamushka.errors import Unsupported
from mamushka.interfaces.cli import doctor
from mamushka.interfaces.cli.probes import PROBES, Probe


def broken(_root: str) -> str:
    raise Unsupported("the thing is not there", hint="bring it")


def refused(_root: str) -> str:
    raise PermissionError(1, "thing: Operation not permitted")


def dead(_root: str) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def hanging(_root: str) -> str:
    signal.pause()
    return ""


def fine(root: str) -> str:
    return f"all is well in {root}"


@pytest.mark.parametrize(
    ("attempt", "status", "reason", "mend"),
    [
        (fine, "ok", "all is well in /r", ""),
        (broken, "failed", "the thing is not there", "bring it"),
        (refused, "failed", "Operation not permitted", "turn it off and on"),
        (dead, "failed", "killed by signal 9", "turn it off and on"),
        (hanging, "failed", "no answer within", "turn it off and on"),
    ],
)
def test_a_probe_is_reported_however_it_ends(
    monkeypatch: Any, attempt: Any, status: str, reason: str, mend: str
) -> None:
    monkeypatch.setattr(doctor, "_PATIENCE", 0.3)
    finding = doctor.examine(Probe("x", "the x", attempt, "turn it off and on"), "/r")
    assert (finding.status, finding.mend) == (status, mend)
    assert reason in finding.reason


def test_what_is_not_essential_is_a_warning() -> None:
    assert doctor.examine(Probe("x", "the x", broken, "", essential=False), "/r").status == "warning"


def test_the_data_root_is_tried_where_it_would_be_and_nothing_stays(tmp_path: Path) -> None:
    storage = next(probe for probe in PROBES if probe.name == "storage")
    finding = doctor.examine(storage, str(tmp_path / "not" / "yet"))
    assert finding.status == "ok" and "can be written" in finding.reason
    assert list(tmp_path.iterdir()) == []
