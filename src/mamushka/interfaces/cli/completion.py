"""``completion``: the scripts of bash, zsh and fish, which ask this program for candidates.

The scripts know nothing; what there is to complete comes from the tables of verbs and options and, for names,
from the engine, so that a completion is never older than the program.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid, MamushkaError
from mamushka.interfaces.cli import verbs
from mamushka.interfaces.cli.options import FLAG, HELP, Command
from mamushka.interfaces.cli.output import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mamushka.interfaces.cli.options import Arguments, Option
    from mamushka.interfaces.cli.session import Session

_FILES = ":files"  # tells the script to let the shell complete paths

_BASH = """\
_mamushka() {
    local line="${COMP_LINE:0:COMP_POINT}" words word
    read -ra words <<<"$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    word="${words[-1]}"
    local IFS=$'\\n'
    COMPREPLY=($(mamushka __complete "${words[@]:1}" 2>/dev/null))
    if [[ "${COMPREPLY[0]}" == ":files" ]]; then
        COMPREPLY=($(compgen -f -- "${word##*[=:]}"))
        compopt -o filenames 2>/dev/null
    else
        # bash breaks words at = and : and wants what comes after them
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[=:]}"}"}")
    fi
}
complete -F _mamushka mamushka
"""
_ZSH = """\
#compdef mamushka
_mamushka() {
    local -a found
    found=("${(@f)$(mamushka __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ "${found[1]}" == ":files" ]]; then
        _files
    else
        compadd -- "${(@)found:#}"
    fi
}
compdef _mamushka mamushka
"""
_FISH = """\
function __mamushka
    set -l found (mamushka __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)
    if test "$found[1]" = ":files"
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c mamushka -f -a '(__mamushka)'
"""
_SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(arguments: Arguments, session: Session) -> int:
    """Print a script: eval "$(mamushka completion bash)"."""
    shell = arguments.operands[0]
    if shell not in _SHELLS:
        raise Invalid(f"there is no completion for {shell!r}", hint=", ".join(_SHELLS))
    out(_SHELLS[shell], end="")
    return 0


def candidates(words: Sequence[str], session: Session) -> list[str]:
    """What the last word could become. Whatever fails on the way, a shell's prompt is not the place to say so."""
    *before, word = words or [""]
    try:
        return [item for item in _candidates(before, word, session) if item == _FILES or item.startswith(word)]
    except (MamushkaError, OSError):
        return []


def _candidates(before: Sequence[str], word: str, session: Session) -> Iterable[str]:
    from mamushka.interfaces.cli.program import GLOBAL

    index = 0
    while index < len(before) and before[index].startswith("-"):
        option = _option(GLOBAL, before[index])
        index += 2 if option and option.kind != FLAG and "=" not in before[index] else 1
    rest = before[index:]
    if index > len(before):
        return [_FILES]
    if not rest:
        return _names(GLOBAL) if word.startswith("-") else [*_top()]
    verb, operands = (" ".join(rest[:2]), rest[2:]) if rest[0] in verbs.FAMILIES else (rest[0], rest[1:])
    if rest[0] in verbs.FAMILIES and len(rest) == 1:
        prefix = rest[0] + " "
        return sorted(name.removeprefix(prefix) for name in (*verbs.verbs(), *verbs.ALIASES) if name.startswith(prefix))
    verb = verbs.ALIASES.get(verb, verb)
    entry = verbs.find(verb)
    return _within(verbs.load(verb, entry[0]), operands, word, session) if entry else []


def _top() -> Iterable[str]:
    return sorted({name for name in verbs.verbs() if " " not in name} | set(verbs.FAMILIES))


def _within(command: Command, operands: Sequence[str], word: str, session: Session) -> Iterable[str]:
    """An option's value, an option, or an operand."""
    last = _option(command.options, operands[-1]) if operands and operands[-1].startswith("-") else None
    if last and last.kind != FLAG and "=" not in operands[-1]:
        return named(last.complete, session)
    if word.startswith("-"):
        option = _option(command.options, word)
        if option and "=" in word:
            return [f"{word.partition('=')[0]}={name}" for name in named(option.complete, session)]
        return _names(command.options)
    if _count(command, operands) and not command.interspersed:
        return [_FILES]
    return named(command.complete, session)


def _count(command: Command, operands: Sequence[str]) -> int:
    """How many operands stand before the word."""
    count, skip = 0, False
    for word in operands:
        option = _option(command.options, word) if word.startswith("-") else None
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = bool(option and option.kind != FLAG and "=" not in word)
        else:
            count += 1
    return count


def _option(options: Iterable[Option], word: str) -> Option | None:
    name = word.partition("=")[0]
    for option in options:
        if name in option.spellings:
            return option
        if not name.startswith("--") and len(name) > 1 and "-" + name[-1] in option.spellings:
            return option
    return None


def _names(options: Iterable[Option]) -> list[str]:
    return sorted(name for option in (*options, HELP) for name in option.spellings if name.startswith("--"))


def named(kind: str, session: Session) -> Iterable[str]:
    """Candidates of one kind: names from the engine, words, or the shell's own files."""
    if kind == "file":
        return [_FILES]
    if "|" in kind:
        return kind.split("|")
    if kind not in ("container", "running", "image", "volume", "network") or not os.path.isdir(session.data_root):
        return []  # nothing was ever kept here, and pressing a key is no reason to begin
    engine = session.engine
    if kind == "image":
        return ["host", *(name for image in engine.images.images() for name in image.names)]
    if kind == "volume":
        return [volume.name for volume in engine.volumes.volumes()]
    if kind == "network":
        return [network.name for network in engine.networks.networks()]
    return [workload.name for workload in engine.workloads(all=kind == "container")]


COMMANDS = {
    "completion": Command(
        completion,
        "bash|zsh|fish",
        minimum=1,
        maximum=1,
        complete="|".join(_SHELLS),
        notes='For this shell: eval "$(mamushka completion bash)"; for fish: mamushka completion fish | source',
    )
}
