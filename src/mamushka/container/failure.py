"""What went wrong inside, as the kind of error that the caller can act on."""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, ELOOP, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EPERM, ESRCH

from mamushka.container.operation import CONFINEMENT, DIRECTORY, HOOK, HOOK_ENDED, LANDLOCK, PROGRAM
from mamushka.errors import Denied, Invalid, MamushkaError, NotFound, Unsupported
from mamushka.execution import lower, not_entered, not_executed
from mamushka.linux.script import parse
from mamushka.runtime import NotRunning

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
        return not_executed(process.args[0], number, text)
    if about == DIRECTORY:
        return not_entered(process.cwd, text)
    if about == HOOK and text.startswith(HOOK_ENDED):
        code = os.waitstatus_to_exitcode(number)
        how = f"with exit status {code}" if code >= 0 else f"by signal {-code}"
        return MamushkaError(f"cannot {operation}: {HOOK_ENDED} {how}{text[len(HOOK_ENDED) :]}")
    if about == LANDLOCK and number in _RULES:
        kind, hint = _RULES[number]
        return kind(f"cannot {operation}: {lower(text)}", hint=hint)
    if about == CONFINEMENT and number == ENOENT:  # only the label's can be
        from mamushka.container.privileges import not_loaded

        return not_loaded(process.apparmor_profile)
    if number == ESRCH:  # its namespaces went before its process did
        return NotRunning(f"container not running: cannot {operation}: {lower(text)}")
    kind = _KINDS.get(number, MamushkaError)
    return kind(f"cannot {operation}: {lower(text)}")
