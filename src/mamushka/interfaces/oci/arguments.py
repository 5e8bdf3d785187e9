"""Flags: tables of names, and the small parser that reads them. argparse would cost more than a container's start."""

from __future__ import annotations

from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    # A flag's letters and names to the name it is kept by; a trailing "=" means that it takes a value.
    Flags: TypeAlias = Mapping[str, str]

# What crun's argp and Go's flag package both have, for every command.
_HELP = ("-h", "--help", "-?", "--usage")
_TRUE = ("true", "1", "t", "yes")
_FALSE = ("false", "0", "f", "no")

GLOBAL = {
    "--root": "root=", "--log": "log=", "--log-format": "log-format=", "--log-level": "log-level=",
    "--debug": "debug", "--systemd-cgroup": "systemd-cgroup", "--cgroup-manager": "cgroup-manager=",
    "--rootless": "rootless=", "--runtime": "runtime=", "--kernel": "kernel=", "--version": "version",
    "-v": "version", "-V": "version", "--help": "help", "-h": "help",
}  # fmt: skip
_PROCESS_FILES = {"--console-socket": "console-socket=", "--pid-file": "pid-file=", "--pidfd-socket": "pidfd-socket=",
                  "--preserve-fds": "preserve-fds="}  # fmt: skip
CREATE = {
    "-b": "bundle=", "--bundle": "bundle=", "-f": "config=", "--config": "config=", **_PROCESS_FILES,
    "--no-pivot": "no-pivot", "--no-new-keyring": "no-new-keyring", "--no-subreaper": "no-subreaper",
}  # fmt: skip
RUN = {**CREATE, "-d": "detach", "--detach": "detach", "--keep": "keep"}
EXEC = {
    **_PROCESS_FILES, "-p": "process=", "--process": "process=", "--cwd": "cwd=", "-e": "env=", "--env": "env=",
    "-t": "tty", "--tty": "tty", "-u": "user=", "--user": "user=", "-g": "additional-gids=",
    "--additional-gids": "additional-gids=", "-d": "detach", "--detach": "detach",
    "--process-label": "process-label=", "--apparmor": "apparmor=", "--no-new-privs": "no-new-privs", "-c": "cap=",
    "--cap": "cap=", "--cgroup": "cgroup=", "--ignore-paused": "ignore-paused", "--no-subreaper": "no-subreaper",
}  # fmt: skip
KILL = {"-a": "all", "--all": "all", "-r": "regex", "--regex": "regex"}
DELETE = {"-f": "force", "--force": "force", "-r": "regex", "--regex": "regex"}
FORMAT = {"-f": "format=", "--format": "format="}
LIST = {**FORMAT, "-q": "quiet", "--quiet": "quiet"}
EVENTS = {"--stats": "stats", "--interval": "interval="}
SPEC = {"-b": "bundle=", "--bundle": "bundle=", "-f": "file=", "--file": "file=", "--rootless": "rootless"}
UPDATE = {
    "-r": "resources=", "--resources": "resources=",
    **{f"--{name}": f"{name}=" for name in (
        "blkio-weight", "cpu-period", "cpu-quota", "cpu-burst", "cpu-share", "cpu-idle", "cpu-rt-period",
        "cpu-rt-runtime", "cpuset-cpus", "cpuset-mems", "memory", "memory-reservation", "memory-swap",
        "kernel-memory", "kernel-memory-tcp", "pids-limit", "l3-cache-schema", "mem-bw-schema",
    )},
}  # fmt: skip
_CRIU = {
    "--image-path": "image-path=", "--work-path": "work-path=", "--manage-cgroups-mode": "manage-cgroups-mode=",
    "--empty-ns": "empty-ns=", "--network-lock": "network-lock=",
    **{f"--{name}": name for name in (
        "tcp-established", "ext-unix-sk", "shell-job", "file-locks", "link-remap", "lazy-pages", "auto-dedup",
    )},
}  # fmt: skip
CHECKPOINT = {
    **_CRIU, "--parent-path": "parent-path=", "--pre-dump": "pre-dump", "--leave-running": "leave-running",
    "--tcp-skip-in-flight": "tcp-skip-in-flight", "--page-server": "page-server=", "--status-fd": "status-fd=",
}  # fmt: skip
RESTORE = {
    **_CRIU, **RUN, "--tcp-close": "tcp-close", "--lsm-profile": "lsm-profile=",
    "--lsm-mount-context": "lsm-mount-context=",
}  # fmt: skip

USAGE = """usage: mamushka-oci [--root DIR] [--log FILE] [--log-format text|json] COMMAND …

  create run start exec       make containers and processes
  kill pause resume update    act on them
  state list ps events        ask about them
  checkpoint restore          write a container down, and go on from there
  mounts add|remove           mount into a running container
  delete                      remove them
  spec features               a sample config.json; what this runtime can do

mamushka-oci COMMAND --help tells a command's flags.
"""


class UsageError(Invalid):
    """The command line itself is wrong."""


class Arguments:
    """The flags that were given. A repeated one keeps every value; the last counts."""

    __slots__ = ("_given",)

    def __init__(self) -> None:
        self._given: dict[str, list[str]] = {}

    def put(self, name: str, text: str) -> None:
        """Note a flag."""
        self._given.setdefault(name, []).append(text)

    def drop(self, name: str) -> None:
        """Forget a flag: ``--detach=false``."""
        self._given.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def get(self, name: str, default: str = "") -> str:
        """The last value."""
        return self._given[name][-1] if name in self._given else default

    def all(self, name: str) -> tuple[str, ...]:
        """Every value, in order."""
        return tuple(self._given.get(name, ()))

    def number(self, name: str, default: int = 0) -> int:
        """The last value as an integer."""
        text = self.get(name)
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"--{name} takes a number, not {text!r}") from None


def parse(flags: Flags, given: Sequence[str], *, stop: bool) -> tuple[Arguments, list[str]]:
    """(flags, the rest). ``stop`` ends the flags at the first other word: what follows is a command's own."""
    found = Arguments()
    rest: list[str] = []
    left = [*given][::-1]
    while left:
        word = left.pop()
        if word == "--":
            break
        if word[:1] != "-" or word == "-":
            rest.append(word)
            if stop:
                break
            continue
        name, equals, text = word.partition("=")
        kept = flags.get(name) or flags.get("-" + name)  # Go's programs also take one dash
        if name in _HELP and not kept:
            kept = "help"
        if kept is None:
            left += _apart(flags, word)[::-1]
        elif kept.endswith("="):
            _put_value(found, kept[:-1], text if equals else left.pop() if left else None, name)
        else:
            _put_switch(found, kept, text if equals else "true", name)
    return found, [*rest, *left[::-1]]


def _apart(flags: Flags, word: str) -> list[str]:
    """Letters that stand together, as argp takes them: -td is -t -d, and -eA=b is -e A=b."""
    letter, further = word[:2], word[2:]
    kept = flags.get(letter)
    if kept is None or not further or further[0] == "=":
        raise UsageError(f"flag provided but not defined: {word.partition('=')[0]}", hint="--help lists the flags")
    return [letter, further] if kept.endswith("=") else [letter, f"-{further}"]


def _put_value(found: Arguments, kept: str, text: str | None, name: str) -> None:
    if text is None:
        raise UsageError(f"flag needs an argument: {name}")
    found.put(kept, text)


def _put_switch(found: Arguments, kept: str, text: str, name: str) -> None:
    if text.lower() in _TRUE:
        found.put(kept, "true")
    elif text.lower() in _FALSE:
        found.drop(kept)
    else:
        raise UsageError(f"{name} is true or false, not {text!r}")
