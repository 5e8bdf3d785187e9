"""What went wrong in criu, from its log: the sentences that it calls errors, and what one can do about some of them."""

from __future__ import annotations

import os

from mamushka.errors import Conflict, MamushkaError, Unsupported

_LOG_MAX = 8 << 20
_SENTENCES_MAX = 3
# Probes of what this host has not, which criu calls errors and goes on.
_HARMLESS = ("criu/tun.c",)

# criu tells its reasons in these words only. Nothing but the kind of the error and its hint follows from them.
_REASONS: tuple[tuple[str, type[MamushkaError], str], ...] = (
    ("rt vDSO area bounds", Unsupported, "kernels from 6.13 on need criu 4.1 or later"),
    ("initialize kernel features detection", Unsupported, "criu check says what of the kernel this criu cannot use"),
    ("--tcp-established", Conflict, "give --tcp-established to take its connections along"),
    ("--ext-unix-sk", Conflict, "give --ext-unix-sk to leave sockets of the outside to their own fate"),
    ("file locks are hold", Conflict, "give --file-locks to take its locks along"),
    ("shell job", Conflict, "give --shell-job when it lives in a terminal of the outside"),
    ("session leader", Conflict, "give --shell-job when it lives in a terminal of the outside"),
    ("link-remap", Conflict, "give --link-remap: it has files open that are deleted"),
    ("Can't lookup mount", Conflict, "it has a file open that lies outside of its root"),
    ("No such file or directory", Conflict, "is the root filesystem the one that it was checkpointed with?"),
)


class Failed(Exception):
    """criu has refused: its own message, and what it said on its standard error."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.message, self.said = message, said


def explained(error: Failed, what: str, log: str) -> MamushkaError:
    """The error that the caller gets; ``what`` could not be done, ``log`` is criu's."""
    sentences = errors(_content(log)) or errors(error.said) or [error.message or "no reason given"]
    told = "; ".join(sentences[:_SENTENCES_MAX])
    kind, hint = MamushkaError, ""
    for words, sort, advice in _REASONS:
        if any(words in sentence for sentence in sentences):
            kind, hint = sort, advice
            break
    where = f" (log file: {log})" if os.path.exists(log) else ""
    return kind(f"{what}: criu failed: {told}{where}", hint=hint)


def errors(log: str) -> list[str]:
    """What the lines "(seconds) Error (place): sentence" say, each once."""
    found: dict[str, None] = {}
    for line in log.splitlines():
        _, marked, rest = line.partition("Error (")
        place, _, sentence = rest.partition("): ")
        if marked and sentence and not place.startswith(_HARMLESS):
            found[sentence.strip()] = None
    return list(found)


def _content(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(_LOG_MAX)
    except OSError:
        return ""
