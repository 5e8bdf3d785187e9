"""runc's and crun's own help, held against our tables: what they take, we take, or it stands here why not."""

import re
import subprocess

import pytest

from mamushka.interfaces.oci import arguments, commands
from tests import peers

pytestmark = [pytest.mark.peer]

BOTH = ("create", "run", "start", "exec", "kill", "delete", "list", "ps", "pause", "resume", "update", "spec", "state")
COMMANDS = {"runc": (*BOTH, "events", "features"), "crun": BOTH}
# Flags of later versions than Debian's, from their manual pages.
LATER = {
    "": {"--log-level"},  # crun 1.15
    "create": {"--pidfd-socket"},  # runc 1.2
    "run": {"--pidfd-socket", "--keep"},  # runc 1.2, crun 1.9
    "exec": {"--pidfd-socket", "--no-subreaper", "--additional-gids"},
    "update": {"--cpu-burst", "--cpu-idle"},
}
DECLINED = {
    "--criu": "checkpoint and restore find criu by PATH",
}


def theirs(program: str, command: str) -> set[str]:
    peers.need(program)
    words = [peers.find(program), *([command] if command else []), "--help"]
    text = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    assert "usage" in text.lower(), f"{program} has no {command}"
    found: set[str] = set()
    for line in text.splitlines():
        head = re.match(r"^\s+((?:-{1,2}[\w?-]+(?:[=\[ ][A-Za-z=\]]+)?,? ?)+)(?:\s{2,}|$)", line)
        found |= set(re.findall(r"(?<![\w-])(--?[\w?][\w-]*)", head[1])) if head else set()
    return found


@pytest.mark.parametrize(
    ("program", "command"), [(program, name) for program, names in COMMANDS.items() for name in ("", *names)]
)
def test_every_flag_is_taken_or_declined(program: str, command: str) -> None:
    wanted = theirs(program, command) | LATER.get(command, set())
    if command not in ("start", "pause", "resume", "features", "state", ""):
        assert len(wanted) >= 2, "their help is not understood"
    known = commands.find(command).flags if command else arguments.GLOBAL
    for flag in sorted(wanted - DECLINED.keys()):
        name = known.get(flag, "help" if flag in ("--help", "-h", "-?", "--usage") else "")
        assert name, f"{program} {command} {flag} is neither taken nor declined"
        value = ["7"] if name.endswith("=") else []
        given, rest = arguments.parse(known, [flag, *value], stop=False)
        assert name.rstrip("=") in given and not rest


@pytest.mark.parametrize("program", ["runc", "crun"])
def test_every_command_is_there(program: str) -> None:
    peers.need(program)
    text = subprocess.run([peers.find(program), "--help"], capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^\s+([a-z]{2,})(?:, [a-z])?\s+- |^   ([a-z]{2,})(?:, h)?\s{2,}\w", text, re.MULTILINE)
    names = {first or second for first, second in listed} - {"help", "runc", "checkpoint", "restore"}
    assert names >= {"create", "update"}
    for name in sorted(names):
        assert commands.find(name)


def test_letters_may_stand_together() -> None:
    given, rest = arguments.parse(arguments.EXEC, ["-td", "-u7:8", "-eA=b", "-e", "C=d", "x", "-d"], stop=True)
    assert (
        given.all("env") == ("A=b", "C=d")
        and given.get("user") == "7:8"
        and {"tty", "detach"} <= {name for name in ("tty", "detach") if name in given}
    )
    assert rest == ["x", "-d"]
    with pytest.raises(arguments.UsageError, match="not defined: -tq"):
        arguments.parse(arguments.RUN, ["-tq"], stop=True)
