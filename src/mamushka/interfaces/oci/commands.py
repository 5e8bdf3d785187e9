"""Every command: its flags, how many words it takes, and where it is done."""

from __future__ import annotations

from mamushka.interfaces.oci import arguments
from mamushka.interfaces.oci.arguments import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.interfaces.oci.arguments import Arguments

DEFAULT_ROOT = "/run/mamushka-oci"


class Command:
    """One command. ``words`` names its positional arguments; ``stop`` says that the last takes the rest."""

    __slots__ = ("flags", "function", "least", "module", "most", "stop", "words")

    def __init__(self, where: str, flags: Mapping[str, str], words: str, least: int, most: int, *, stop: bool = False):
        self.module, _, self.function = where.partition(".")
        self.flags, self.words, self.least, self.most, self.stop = flags, words, least, most, stop

    def check(self, name: str, positional: list[str]) -> None:
        """Refuse too few or too many words."""
        if not self.least <= len(positional) <= self.most:
            raise UsageError(f'"{name}" takes: {self.words or "no argument"}', hint=f"mamushka-oci {name} --help")

    def usage(self, name: str) -> str:
        """What --help prints."""
        by_name: dict[str, list[str]] = {}
        for flag, kept in self.flags.items():
            by_name.setdefault(kept, []).append(flag)
        lines = [f"  {', '.join(names)}{' VALUE' if kept.endswith('=') else ''}" for kept, names in by_name.items()]
        return "\n".join([f"usage: mamushka-oci {name} [flags] {self.words}".rstrip(), "", *lines, ""])

    def execute(self, options: Arguments, given: Arguments, positional: list[str]) -> int:
        """Do it; the exit status."""
        # importlib's own import_module is a module more to load.
        module = __import__(f"mamushka.interfaces.oci.{self.module}", fromlist=(self.function,))
        function = getattr(module, self.function)
        return int(function(options, given, *positional) or 0)


_MANY = 1 << 20

_COMMANDS = {
    "create": Command("lifecycle.create", arguments.CREATE, "ID", 1, 1),
    "run": Command("lifecycle.run", arguments.RUN, "ID", 1, 1),
    "start": Command("lifecycle.start", {}, "ID", 1, 1),
    "kill": Command("lifecycle.kill", arguments.KILL, "ID [SIGNAL]", 1, 2),
    "delete": Command("lifecycle.delete", arguments.DELETE, "ID", 1, 1),
    "pause": Command("lifecycle.pause", {}, "ID", 1, 1),
    "resume": Command("lifecycle.resume", {}, "ID", 1, 1),
    "exec": Command("process.exec", arguments.EXEC, "ID [COMMAND …]", 1, _MANY, stop=True),
    "update": Command("limits.update", arguments.UPDATE, "ID", 1, 1),
    "mounts": Command("mounts.change", {}, "add|remove ID FILE", 3, 3),
    "state": Command("reports.state", {}, "ID", 1, 1),
    "list": Command("reports.list_", arguments.LIST, "", 0, 0),
    "ps": Command("reports.ps", arguments.FORMAT, "ID [PS-OPTION …]", 1, _MANY, stop=True),
    "events": Command("events.events", arguments.EVENTS, "ID", 1, 1),
    "spec": Command("reports.spec_", arguments.SPEC, "", 0, 0),
    "checkpoint": Command("checkpoint.checkpoint", arguments.CHECKPOINT, "ID", 1, 1),
    "restore": Command("checkpoint.restore", arguments.RESTORE, "ID", 1, 1),
    "features": Command("reports.features", {}, "", 0, 0),
}


def find(name: str) -> Command:
    """The command, or UsageError."""
    try:
        return _COMMANDS[name]
    except KeyError:
        raise UsageError(f"no such command: {name!r}", hint=f"the commands are {' '.join(_COMMANDS)}") from None
