"""What a failed test leaves for those who cannot look into the machine it ran in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest
from mamushka import trace

@pytest.mark.parametrize("number", [1, 2])
def test_some(number):
    trace.event("plan.execute", operation=f"do number {number}")
    trace.event("number.done", number=number)
    print("said by", number)
    assert number == 1

@pytest.fixture
def broken():
    trace.event("fixture.broke")
    raise OSError("nothing here")

def test_without_ground(broken):
    pass
"""


def test_each_failure_leaves_its_report_plan_and_trace_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "test_made.py").write_text(TESTS)
    out = tmp_path / "artefacts"
    words = ["-c", "/dev/null", "-p", "no:cacheprovider", "-p", "tests.lab.artefacts", f"--artefacts={out}"]
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(tmp_path / "test_made.py")],
        cwd=here, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["test_some-2.call", "test_without_ground.setup"]
    failed = out / "test_some-2.call"
    assert (failed / "plan.txt").read_text() == "do number 2\n"
    assert "number.done number=2" in (failed / "trace.txt").read_text()
    assert "number=1" not in (failed / "trace.txt").read_text()  # the test before it
    report = (failed / "report.txt").read_text()
    assert "assert 2 == 1" in report
    assert "said by 2" in report
    assert "fixture.broke" in (out / "test_without_ground.setup/trace.txt").read_text()
