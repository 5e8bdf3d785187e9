"""The json-file log: what is written is read back, whole, in pieces and across rotation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamushka.engine.logs import LINE_MAX, LogFile, LogOptions, Reader, choose, options, timestamp
from mamushka.errors import Invalid

NOW = 1_700_000_000_123_456_789


def _write(path: Path, pieces: list[bytes], bounds: LogOptions = LogOptions()) -> None:  # noqa: B008
    log = LogFile(str(path), bounds)
    for number, piece in enumerate(pieces):
        log.write("stdout", piece, NOW + number)
    log.flush(NOW)
    log.close()


def _read(path: Path) -> bytes:
    reader = Reader(str(path))
    lines = list(reader.history())
    reader.close()
    return b"".join(line.data for line in lines)


def test_a_line_is_docker_s(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _write(path, [b"hel", b"lo\nworld"])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"log": "hello\n", "stream": "stdout", "time": "2023-11-14T22:13:20.123456790Z"}
    assert second["log"] == "world"
    assert timestamp(first["time"]) == pytest.approx(1_700_000_000.123456790)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.binary(max_size=200) | st.just(b"x" * (LINE_MAX + 1)), max_size=12))
def test_bytes_survive(tmp_path: Path, pieces: list[bytes]) -> None:
    """Whatever a workload writes, in whatever pieces, is what the log gives back."""
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    _write(path, pieces)
    assert _read(path) == b"".join(pieces)


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [b"line %03d\n" % number for number in range(100)]
    _write(path, lines, LogOptions(size_max=1000, files=3))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert all(item.stat().st_size <= 1000 for item in tmp_path.iterdir())
    kept = _read(path)
    assert kept and b"".join(lines).endswith(kept)


def test_one_file_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _write(path, [b"%03d\n" % number for number in range(50)], LogOptions(size_max=500, files=1))
    assert path.stat().st_size <= 500 and _read(path).endswith(b"049\n")


def test_a_reader_follows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log, reader = LogFile(str(path), LogOptions(size_max=300, files=2)), Reader(str(path))
    seen = []
    for number in range(20):
        log.write("stderr", b"%d\n" % number, NOW)
        seen += [int(line.data) for line in reader.lines()]
    log.close()
    reader.close()
    assert seen == list(range(20))


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _write(path, [b"a\n"])
    with path.open("ab") as file:
        file.write(b'{"log": tor\n\xff\n[]\n')
    _write(path, [b"b\n"])
    assert _read(path) == b"a\nb\n"


def test_the_last_lines_that_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _write(path, [b"%d\n" % number for number in range(10)])
    reader = Reader(str(path))
    chosen = choose(reader.history(), lambda line: int(line.data) % 2 == 0, 2)
    assert [line.data for line in chosen] == [b"6\n", b"8\n"]
    reader.close()


def test_options() -> None:
    assert options("none", {}) is None
    assert options("json-file", {"max-size": "10m", "max-file": "3"}) == LogOptions(10 << 20, 3)


@pytest.mark.parametrize(
    ("driver", "given_options"),
    [("syslog", {}), ("json-file", {"max-size": "ten"}), ("json-file", {"max-file": "0"}), ("", {"labels": "x"})],
)
def test_bad_options(driver: str, given_options: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        options(driver, given_options)
