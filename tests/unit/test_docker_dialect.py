import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.interfaces.docker import environment, limits, mounts, ports, units

TEXT = st.text(alphabet=st.sampled_from('0123456789abkmgtiBMG:/,=-."[] _r\0é'), max_size=40) | st.text(max_size=20)
PARSERS = [
    units.size, units.size_or_unlimited, units.number, units.integer, units.natural, units.duration, units.moment,
    ports.published, ports.exposed, mounts.volume, mounts.mount, mounts.tmpfs, mounts.fields,
    limits.ulimit, limits.device, limits.device_rule, limits.bytes_a_second, limits.operations_a_second,
    limits.restart, environment.variable, environment.pair,
]  # fmt: skip


@pytest.mark.parametrize("parser", PARSERS, ids=[parser.__name__ for parser in PARSERS])
@given(text=TEXT)
def test_any_text_is_parsed_or_raises_invalid(parser, text: str) -> None:  # type: ignore[no-untyped-def]
    try:
        parser(text)
    except Invalid:
        pass


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("0", 0), ("64", 64), ("1b", 1), ("2k", 2048), ("1.5g", 3 << 29), ("20MB", 20 << 20), ("1 GiB", 1 << 30),
     ("3T", 3 << 40), ("1p", 1 << 50)],
)  # fmt: skip
def test_sizes(text: str, bytes: int) -> None:
    assert units.size(text) == bytes


@given(st.integers(0, 1 << 62))
def test_a_size_in_bytes_is_itself(number: int) -> None:
    assert units.size(str(number)) == units.size(f"{number}b") == number


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("1s", 1), ("1m30s", 90), ("1.5h", 5400), ("250ms", 0.25), ("3us", 3e-6)]
)
def test_durations(text: str, seconds: float) -> None:
    assert units.duration(text) == pytest.approx(seconds)


def test_moments() -> None:
    assert units.moment("") == 0
    assert units.moment("1700000000.5") == 1700000000.5
    assert units.moment("10m", now=1000.0) == 400.0
    assert units.moment("2023-11-14T22:13:20Z") == 1700000000
    assert units.moment("2023-11-14T22:13:20.25+00:00") == 1700000000.25


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (150, "2 minutes"),
     (3600, "About an hour"), (7200, "2 hours"), (86400 * 3, "3 days"), (86400 * 21, "3 weeks"),
     (86400 * 90, "3 months"), (86400 * 365 * 3, "3 years")],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    assert units.human_duration(seconds) == words


@pytest.mark.parametrize(
    ("amount", "decimal", "binary"),
    [(0, "0B", "0B"), (999, "999B", "999B"), (1000, "1kB", "1000B"), (7_050_000, "7.05MB", "6.723MiB"),
     (123_456_789, "123MB", "117.7MiB"), (2_088_533_118, "2.09GB", "1.945GiB")],
)  # fmt: skip
def test_sizes_for_people(amount: int, decimal: str, binary: str) -> None:
    assert units.human_size(amount) == decimal
    assert units.human_bytes(amount) == binary


def test_times_are_written_as_go_writes_them() -> None:
    assert units.rfc3339(0) == "0001-01-01T00:00:00Z"
    assert units.rfc3339(1700000000) == "2023-11-14T22:13:20Z"
    assert units.rfc3339(1700000000.25) == "2023-11-14T22:13:20.25Z"


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1))
def test_quoted_fields_come_back_whole(words: list[str]) -> None:
    line = ",".join('"' + word.replace('"', '""') + '"' for word in words)
    assert mounts.fields(line) == words
