import io
from typing import Any

import pytest

from mamushka.engine.images import Progress
from mamushka.errors import Invalid
from mamushka.interfaces.cli import login, progress
from mamushka.interfaces.cli.options import parse
from mamushka.interfaces.cli.output import complain, paint, printable

STEPS = [
    Progress("latest: Pulling from library/busybox"),
    Progress("Pulling fs layer", "aaaa"),
    Progress("Downloading", "aaaa", 10, 100),
    Progress("Downloading", "aaaa", 60, 100),
    Progress("Pull complete", "aaaa"),
    Progress("Digest: sha256:\x1b[31mred"),
]


class Screen(io.StringIO):
    """A terminal that remembers what was drawn on it."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What a person sees: cursor movements carried out, and nothing else understood."""
        shown: list[str] = []
        row = 0
        for part in self.getvalue().split("\n"):
            while part.startswith("\x1b["):
                code = part[2 : len(part) - len(part[2:].lstrip("0123456789"))]
                letter = part[2 + len(code)]
                row -= int(code) if letter == "A" else 0
                part = part[3 + len(code) :]
            shown[row : row + 1] = [part]
            row += 1
        return shown[:-1]


def test_off_a_terminal_every_change_is_a_line() -> None:
    stream = io.StringIO()
    progress.show(STEPS, stream=stream)
    assert stream.getvalue().splitlines() == [
        "latest: Pulling from library/busybox",
        "aaaa: Pulling fs layer",
        "aaaa: Pull complete",
        "Digest: sha256:�[31mred",
    ]


def test_on_a_terminal_a_layer_has_one_line_that_moves(monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    screen = Screen()
    progress.show(STEPS[:4], stream=screen)
    assert screen.lines() == [
        "latest: Pulling from library/busybox",
        "aaaa: Downloading [=============>          ] 60B/100B",
    ]


def test_quiet_shows_nothing() -> None:
    stream = io.StringIO()
    progress.show(STEPS, quiet=True, stream=stream)
    assert stream.getvalue() == ""


def test_an_error_has_its_hint_after_an_empty_line(capsys: Any) -> None:
    complain("cannot do it", "do something else")
    assert capsys.readouterr().err == "mamushka: cannot do it\n\nhint: do something else\n"


def test_colour_is_for_people_who_want_it(monkeypatch: Any) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("x", "31", Screen()) == "\x1b[31mx\x1b[0m"
    assert paint("x", "31", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "31", Screen()) == "x"


def test_names_from_strangers_cannot_repaint_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\nc é") == "a�[2Jb��c é"


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ([], "docker.io"),
        (["https://index.docker.io/v1/"], "docker.io"),
        (["localhost:5000"], "localhost:5000"),
        (["https://registry.example/v2/"], "registry.example"),
    ],
)
def test_a_registry_is_a_host(given: list[str], host: str) -> None:
    assert login._registry(parse((), given)) == host


def test_login_does_not_ask_what_cannot_answer(monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    options = login.COMMANDS["login"].options
    given = parse(options, ["-u", "me", "--password-stdin"])
    assert login._name_and_password(given) == ("me", "secret")
    for line in (["-u", "me"], ["--password-stdin"], ["-u", "me", "-p", "x", "--password-stdin"]):
        with pytest.raises(Invalid):
            login._name_and_password(parse(options, line))
