"""What went wrong inside, as the kind of error that the caller can act on."""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, EISDIR, ELOOP, ENODEV, ENOENT, ENOEXEC, ENOSYS, ENOTDIR, EOPNOTSUPP, EPERM, ESRCH

from mamushka.container.operation import CONFINEMENT, DIRECTORY, HOOK, HOOK_ENDED, LANDLOCK, PROGRAM
from mamushka.errors import Denied, Invalid, MamushkaError, NotFound, Unsupported
from mamushka.linux.script import parse
from mamushka.runtime import CannotExecute, CommandNotFound, NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.spec.runtime import Process

_KINDS: dict[int, type[MamushkaError]] = {
    ENOENT: NotFound,
    EPERM: Denied,
    EACCES: Denied,
    ENOSYS: Unsupported,
    ENODEV: Unsupported,
    EOPNOTSUPP: Unsupported,
    EINVAL: Invalid,
}

_RULES: dict[int, tuple[type[MamushkaError], str]] = {
    ENOENT: (NotFound, "a rule is for a path that is there, inside the container"),
    ELOOP: (Invalid, "a symbolic link of the image's: name what it leads to, or add follow to the policy"),
    EPERM: (Denied, "set no_new_privs, or start the container with CAP_SYS_ADMIN"),
}


def explain(packet: bytes, process: Process) -> MamushkaError:
    """The error that a failed operation's packet tells; ``process`` is what was to be executed."""
    number, about, operation, text = parse(packet)
    if about == PROGRAM:
        return _of_program(process.args[0], number, text)
    if about == DIRECTORY:
        return CannotExecute(
            f'chdir to cwd ("{process.cwd}") set in config.json failed: {_lower(text)}',
            hint="the working directory must exist inside the container and be a directory",
        )
    if about == HOOK and text.startswith(HOOK_ENDED):
        code = os.waitstatus_to_exitcode(number)
        how = f"with exit status {code}" if code >= 0 else f"by signal {-code}"
        return MamushkaError(f"cannot {operation}: {HOOK_ENDED} {how}{text[len(HOOK_ENDED) :]}")
    if about == LANDLOCK and number in _RULES:
        kind, hint = _RULES[number]
        return kind(f"cannot {operation}: {_lower(text)}", hint=hint)
    if about == CONFINEMENT and number == ENOENT:  # only the label's can be
        from mamushka.container.privileges import not_loaded

        return not_loaded(process.apparmor_profile)
    if number == ESRCH:  # its namespaces went before its process did
        return NotRunning(f"container not running: cannot {operation}: {_lower(text)}")
    kind = _KINDS.get(number, MamushkaError)
    return kind(f"cannot {operation}: {_lower(text)}")


def _of_program(name: str, number: int, text: str) -> MamushkaError:
    """The wording is what other engines look for to tell 126 from 127."""
    if number == ENOENT and "/" not in name:
        return CommandNotFound(
            f'exec: "{name}": executable file not found in $PATH',
            hint="is the program in the image? a path with a / is not searched for",
        )
    if number in (ENOENT, ENOTDIR):
        return CommandNotFound(
            f'exec: "{name}": stat {name}: no such file or directory',
            hint="the program, its interpreter (#!) or its dynamic loader is missing in the image",
        )
    if number == EISDIR:
        # dockerd looks for the first half, podman for the second.
        return CannotExecute(f'exec: "{name}": is a directory: permission denied')
    if number == ENOEXEC:
        return CannotExecute(
            f'exec: "{name}": exec format error',
            hint="it is no program, or one for another processor; a script needs a first line with #!",
        )
    if number == ELOOP:
        return CannotExecute(f'exec: "{name}": permission denied: it is a link of procfs, or a link without end')
    if number in (EACCES, EPERM):
        return CannotExecute(f'exec: "{name}": permission denied', hint="is it executable for this user?")
    return CannotExecute(f'exec: "{name}": {_lower(text)}')


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
