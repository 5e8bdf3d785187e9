"""What it is called when a program cannot be run, whatever the wall: other engines tell 126 from 127 by the wording."""

from __future__ import annotations

from errno import EACCES, EISDIR, ELOOP, ENOENT, ENOEXEC, ENOTDIR, EPERM

from mamushka.runtime import CannotExecute, CommandNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.errors import MamushkaError


def not_entered(cwd: str, text: str) -> MamushkaError:
    """The error for a working directory that cannot be; ``text`` is the kernel's reason."""
    return CannotExecute(
        f'chdir to cwd ("{cwd}") set in config.json failed: {lower(text)}',
        hint="the working directory must exist inside the container and be a directory",
    )


def not_executed(name: str, number: int, text: str) -> MamushkaError:
    """The error for a program by its name, an errno, and the kernel's text for that."""
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
    return CannotExecute(f'exec: "{name}": {lower(text)}')


def lower(text: str) -> str:
    """A reason as the end of a sentence."""
    return text[:1].lower() + text[1:]
