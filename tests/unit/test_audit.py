"""The auditor's own half: what a probe tells is believed to be a record or refused, and weights make scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.engine.audit import AXES, PROBES
from mamushka.engine.audit.attempts import ROOM, Attempts, Outcome, parse
from mamushka.engine.audit.canaries import Canaries
from mamushka.engine.audit.probe import Ground, Seen, entries
from mamushka.engine.audit.report import Finding, Report
from mamushka.errors import Invalid, Unavailable


def attempts() -> Attempts:
    made = Attempts()
    made.step("first", "getpid")
    made.step("second", "read", 0, made.room, 8, keep=True)
    made.step("end", "getpid")
    return made


def record(number: int, error: int, result: int, content: bytes = b"") -> bytes:
    words = (number, error, 0, 0, 0, 0, 0, 0, result, 0)
    return b"".join(word.to_bytes(4, "little") for word in words) + content


TOLD = record(0, 1, 99) + record(1, 0, 3, b"abc") + record(2, 0, 7)


def test_records_are_read_as_they_were_written() -> None:
    assert parse(TOLD, attempts()) == {"first": Outcome(1), "second": Outcome(0, 3, b"abc"), "end": Outcome(0, 7)}


@pytest.mark.parametrize(
    ("told", "error"),
    [
        (b"", "ended early, after 'its start'"),
        (record(0, 0, 1), "ended early, after 'first'"),
        (TOLD[:-1], "is no record, at byte 83"),
        (record(3, 0, 0), "is no record, at byte 0"),
        (record(1, 0, 3, b"ab"), "shorter than it says"),
        (record(1, 0, ROOM + 1, bytes(ROOM + 1)), "shorter than it says"),
    ],
)
def test_what_is_no_whole_account(told: bytes, error: str) -> None:
    with pytest.raises((Invalid, Unavailable), match=error):
        parse(told, attempts())


@given(st.binary(max_size=400))
def test_any_bytes_are_records_or_refused(told: bytes) -> None:
    try:
        parse(told, attempts())
    except (Invalid, Unavailable):
        pass


@given(st.binary(max_size=200))
def test_any_bytes_are_a_listing(listing: bytes) -> None:
    assert all(isinstance(name, str) for name in entries(listing))


def test_permission_and_absence_are_told_from_wrong_arguments() -> None:
    """EPERM, EACCES, ENOSYS, EROFS are closed, ENOENT and ENODEV absent; EFAULT, EINVAL, ETXTBSY come after."""
    closed = {1, 13, 38, 30, 2, 19}
    seen = Seen({str(error): Outcome(error) for error in (0, 14, 22, 26, *closed)}, heard=False)
    assert {error for error in (0, 14, 22, 26, *closed) if seen.allowed(str(error))} == {0, 14, 22, 26}
    assert not seen.allowed("not made") and not seen.done("not made")


def test_what_cannot_be_told_counts_as_reached() -> None:
    """Without /proc and without a cgroup file nothing says that rights and resources are bounded."""
    blind = Seen({}, heard=False)
    ground = Ground(Canaries("/nowhere"))
    assert {probe.name for probe in PROBES if probe.judge(blind, ground)} == {
        "root", "capabilities", "further-capabilities", "new-privileges", "filter", "process-limit", "memory-limit",
        "time-limit",
    }  # fmt: skip


def test_a_machine_takes_nothing_of_the_hosts_but_what_it_was_made_with() -> None:
    blind = Seen({}, heard=False)
    reached = [
        {probe.name for probe in PROBES if probe.judge(blind, Ground(Canaries("/nowhere"), machine=machine))}
        for machine in (False, True)
    ]
    assert reached[0] - reached[1] == {"process-limit", "memory-limit", "time-limit"}


def test_probes_have_names_and_weights() -> None:
    names = [probe.name for probe in PROBES]
    assert len(names) == len(set(names))
    for probe in PROBES:
        assert probe.axis in AXES and 0 < probe.weight <= 100
        assert probe.title and probe.why and probe.close
    for axis in AXES:  # whoever reaches everything has the full score
        assert sum(probe.weight for probe in PROBES if probe.axis == axis) >= 100


def test_an_axis_has_the_weights_of_what_was_reached_and_a_hundred_at_most() -> None:
    def finding(axis: str, weight: int, seen: str) -> Finding:
        return Finding("p", axis, weight, "title", seen, "why", "close")

    found = Report(
        "container", "host", (finding("files", 60, "x"), finding("files", 60, "y"), finding("network", 9, ""))
    )
    assert found.axes == {"network": 0, "secrets": 0, "files": 100, "privileges": 0, "processes": 0}
    assert found.score == 20
    assert Report("container", "host", (finding("files", 1, "x"),)).score == 1  # never rounded down to nothing


def test_what_makes_the_wall_is_offered_as_run_has_it() -> None:
    from mamushka.interfaces.cli import audit
    from mamushka.interfaces.cli.workload_options import CREATE

    known = {option.attribute for option in CREATE}
    assert known >= audit._OTHERS
    offered = {spelling for option in audit._OFFERED for spelling in option.spellings}
    assert offered >= {
        "--privileged", "--cap-add", "--cap-drop", "--security-opt", "--network", "--user", "--userns", "--volume",
        "--mount", "--read-only", "--memory", "--pids-limit", "--cpus", "--device", "--device-cgroup-rule", "--pid",
        "--ipc", "--uts", "--cgroupns", "--sysctl", "--ulimit", "--env", "--tmpfs", "--runtime", "--pull",
    }  # fmt: skip
