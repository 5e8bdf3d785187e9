"""Hooks: programs that the bundle wants executed at a moment of the lifecycle. config.md#posix-platform-hooks.

Those of the runtime's own namespaces, which whoever makes, starts or deletes runs himself, for every wall alike.
"""

from __future__ import annotations

import os
import select

from mamushka import document, trace
from mamushka.errors import Invalid
from mamushka.runtime import CREATING, RUNNING, STOPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.record import Kept
    from mamushka.spec.runtime import Hook


def before(kept: Kept, pid: int) -> None:
    """prestart and createRuntime. Invalid when one fails."""
    given = kept.config.hooks
    moment = (*given.prestart, *given.create_runtime)
    if not moment:
        return
    told = state(kept, CREATING, pid)
    for hook in moment:
        try:
            run(hook, told)
        except OSError as error:
            raise Invalid(f"the hook {hook.path} failed: {error.strerror}") from error


def started(kept: Kept, pid: int) -> None:
    """poststart. Invalid when one fails."""
    told = state(kept, RUNNING, pid)
    for hook in kept.config.hooks.poststart:
        try:
            run(hook, told)
        except OSError as error:
            raise Invalid(f"the poststart hook {hook.path} failed: {error.strerror}") from error


def deleted(kept: Kept) -> None:
    """poststop."""
    for hook in kept.config.hooks.poststop:
        try:
            run(hook, state(kept, STOPPED, 0))
        except OSError as error:  # the specification: a warning, and on with the next
            trace.event("hook.failed", moment="poststop", path=hook.path, error=error.strerror)


def state(kept: Kept, status: str, pid: int) -> bytes:
    """The state that a hook reads from its standard input. runtime.md#state."""
    found: dict[str, object] = {"ociVersion": kept.config.oci_version, "id": kept.id, "status": status}
    if pid:
        found["pid"] = pid
    found["bundle"] = kept.bundle
    if kept.config.annotations:
        found["annotations"] = kept.config.annotations
    return document.dump(found)


def run(hook: Hook, given: bytes) -> None:
    """Execute a hook and wait for it. OSError when it cannot be executed, fails, or takes longer than allowed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(hook, reading)
    os.close(reading)
    try:
        os.write(writing, given)
    except BrokenPipeError:
        pass  # it does not care
    os.close(writing)
    status = _wait(pid, hook)
    if status:
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise OSError(0, f"the hook ended with {how}", hook.path)


def _become(hook: Hook, stdin: int) -> None:
    try:
        os.dup2(stdin, 0)
        os.execve(hook.path, hook.args or (hook.path,), dict(e.split("=", 1) for e in hook.env if "=" in e))
    except BaseException as error:
        os.write(2, f"{hook.path}: {error}\n".encode())
    finally:
        os._exit(127)


def _wait(pid: int, hook: Hook) -> int:
    if hook.timeout is not None:
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = poll.poll(hook.timeout * 1000)
        os.close(pidfd)
        if not ended:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise OSError(0, f"the hook did not end within {hook.timeout} s", hook.path)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
