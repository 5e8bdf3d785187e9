import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mamushka.interfaces.cli import verbs
from mamushka.interfaces.cli.completion import candidates
from mamushka.interfaces.cli.foreground import DetachKeys
from mamushka.interfaces.cli.options import Option, flag, many, nearest, one, parse
from mamushka.interfaces.cli.program import command
from mamushka.interfaces.cli.reference import markdown
from mamushka.interfaces.cli.session import Session
from mamushka.interfaces.cli.table import show

VERBS = list(verbs.verbs())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_module_and_its_help(verb: str, capsys: Any) -> None:
    assert command([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: mamushka {verb}")
    assert "--help" in text


@pytest.mark.parametrize("alias", list(verbs.ALIASES))
def test_every_alias_leads_to_a_verb(alias: str) -> None:
    assert verbs.find(verbs.ALIASES[alias]) is not None
    assert verbs.find(alias) is None


@pytest.mark.parametrize("verb", VERBS)
def test_no_option_of_a_verb_is_there_twice(verb: str) -> None:
    found = verbs.load(verb, verbs.verbs()[verb][0])
    spellings = [spelling for option in found.options for spelling in option.spellings]
    assert len(spellings) == len(set(spellings))
    attributes = [option.attribute for option in found.options]
    assert len(attributes) == len(set(attributes))


def test_the_overview_names_every_verb(capsys: Any) -> None:
    assert command([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS if " " not in verb)


@pytest.mark.parametrize("family", list(verbs.FAMILIES))
def test_a_family_lists_its_verbs(family: str, capsys: Any) -> None:
    assert command([family]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS if verb.startswith(family + " "))


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("rnu", "'rnu' is not a verb", "did you mean run?"),
        ("frobnicate", "'frobnicate' is not a verb", "mamushka --help"),
        ("volume mkae", "'volume mkae' is not a verb", "mamushka volume --help"),
        ("--foo ps", "unknown option --foo", "mamushka --help"),
        ("ps --foo", "unknown option --foo", "mamushka ps --help"),
        ("ps extra", "too many arguments", "mamushka ps --help"),
        ("run", "too few arguments: it takes IMAGE", "mamushka run --help"),
        ("run -p", "needs a value", "mamushka run --help"),
    ],
)
def test_what_cannot_be_understood_is_125_with_a_hint(line: str, message: str, hint: str, capsys: Any) -> None:
    assert command(line.split()) == 125
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert f"\n\nhint: {hint}" in captured.err or f"\n\nhint: did you mean {hint}" in captured.err


OPTIONS = (
    flag("-a, --all", ""),
    flag("--proxy", "", default=True),
    one("-n, --name", ""),
    many("-e, --env", ""),
    Option("--time, --timeout", ""),
)


def test_the_grammar_is_pflags() -> None:
    found = parse(
        OPTIONS, ["-an", "x", "-e1", "--env=2", "-e=3", "--proxy=false", "--time", "-1", "rest", "-a", "--", "-n"]
    )
    assert (found.all, found.name, found.env, found.proxy, found.timeout) == (True, "x", ("1", "2", "3"), False, "-1")
    assert found.operands == ("rest", "-n")
    assert found.given == {"all", "name", "env", "proxy", "timeout"}
    stopped = parse(OPTIONS, ["img", "-a", "--nonsense"], interspersed=False)
    assert stopped.operands == ("img", "-a", "--nonsense") and not stopped.all


def test_the_nearest_word_is_one_that_was_meant() -> None:
    words = ["--memory", "--memory-swap", "--mount", "--rm"]
    assert nearest("--memroy", words) == "--memory"
    assert nearest("--quux", words) == ""


@pytest.mark.parametrize("split", range(1, 8))
def test_detach_keys_are_found_across_pieces(split: int) -> None:
    keys, typed, passed = DetachKeys("ctrl-p,ctrl-q"), b"a\x10b\x10\x10\x11z", b""
    for piece in (typed[:split], typed[split:]):
        data, detached = keys.feed(piece)
        passed += data
        if detached:
            break
    assert detached and passed == b"a\x10b\x10"


def test_no_detach_keys_pass_everything() -> None:
    assert DetachKeys("").feed(b"\x10\x11") == (b"\x10\x11", False)


def test_tables_look_like_dockers(capsys: Any) -> None:
    rows = [{"ID": "1", "Name": "a"}, {"ID": "2", "Name": "a rather long name"}]
    columns = {"ID": "ID", "Name": "NAME"}
    show(rows, columns, "")
    assert capsys.readouterr().out == "ID        NAME\n1         a\n2         a rather long name\n"
    show(rows, columns, "table {{.Name}}\\t{{.ID}}")
    assert capsys.readouterr().out == "NAME                 ID\na                    1\na rather long name   2\n"
    show(rows, columns, "json")
    assert capsys.readouterr().out == '{"ID":"1","Name":"a"}\n{"ID":"2","Name":"a rather long name"}\n'
    show(rows, columns, "{{.Name}}!")
    assert capsys.readouterr().out == "a!\na rather long name!\n"


def test_completion_offers_verbs_options_and_words(tmp_path: Path) -> None:
    with Session(str(tmp_path / "none"), str(tmp_path / "run")) as session:
        assert candidates(["ru"], session) == ["run"]
        assert "--memory" in candidates(["run", "--mem"], session)
        assert candidates(["volume", "cr"], session) == ["create"]
        assert candidates(["run", "--pull", "a"], session) == ["always"]
        assert candidates(["run", "--pull=a"], session) == ["--pull=always"]
        assert candidates(["run", "--env-file", ""], session) == [":files"]
        assert candidates(["--debug", "run", "--publish-"], session) == ["--publish-all"]
        assert candidates(["container", "l"], session) == ["list", "logs", "ls"]
        assert candidates(["nonsense", "x"], session) == []
    assert not (tmp_path / "none").exists()


def test_the_reference_is_current() -> None:
    path = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
    assert path.read_text() == markdown(), f"python -m mamushka.interfaces.cli.reference > {path}"


# What is not needed to start a container, measured in milliseconds each.
HEAVY = (
    "argparse", "ast", "asyncio", "contextlib", "ctypes.util", "dataclasses", "datetime", "email", "enum", "hashlib",
    "http.client", "importlib.metadata", "inspect", "json", "logging", "pathlib", "random", "re", "shutil", "signal",
    "socket", "ssl", "subprocess", "tempfile", "textwrap", "threading", "typing", "urllib",
)  # fmt: skip


def test_reading_a_run_command_imports_nothing_heavy() -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        "import mamushka.interfaces.cli\n"
        "from mamushka.interfaces.cli import foreground, run, settings\n"
        "from mamushka.interfaces.cli.options import parse\n"
        "from mamushka.interfaces.cli.workload_options import RUN\n"
        "settings.settings(parse(RUN, ['-it', '--rm', '-p', '1:1', '-v', '/a:/b', 'i', 'sh'], interspersed=False))\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not set(loaded) & set(HEAVY)
    assert len([name for name in loaded if not name.startswith("mamushka")]) <= 6, loaded
