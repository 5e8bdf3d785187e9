"""Hooks: programs that the bundle wants executed at a moment of the lifecycle. config.md#posix-platform-hooks.

The builder runs some of them itself (``run``); others run inside, by the script (``RunHooks``).
"""

from __future__ import annotations

import os
import select
from errno import ETIMEDOUT

from mamushka import document
from mamushka.container.channel import GO, PID_WIDTH
from mamushka.container.operation import HOOK, HOOK_ENDED, RESULT, Inside
from mamushka.linux.executable import words
from mamushka.linux.script import ANY, NEXT, PACKET, Label, Variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.script import Script
    from mamushka.record import Kept
    from mamushka.spec.runtime import Hook


_SIGPIPE, _SIGCHLD = 13, 17
# Stands for the pid in a state that is written before there is one: as wide as the packet's, and no pid itself.
_UNKNOWN = 10**PID_WIDTH - 1


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


class RunHooks(Inside):
    """Hooks that run in the container's namespaces, as children of the process that becomes it."""

    __slots__ = ("hooks", "kept", "moment", "status")
    about = HOOK

    def __init__(self, moment: str, hooks: tuple[Hook, ...], kept: Kept, status: str) -> None:
        self.moment, self.hooks, self.kept, self.status = moment, hooks, kept, status

    def describe(self) -> str:
        return f"run the {self.moment} hooks: " + " ".join(hook.path for hook in self.hooks)

    def write(self, script: Script) -> None:
        # The pid is known when the packet that lets the process go on has come; the document has room for it.
        before, _, after = state(self.kept, self.status, _UNKNOWN).partition(b"%d" % _UNKNOWN)
        parts = [script.place(before), len(before), PACKET + len(GO), PID_WIDTH, script.place(after), len(after)]
        given = script.place(words(parts, 8))
        ignore, default = script.place(words([1, 0, 0, 0], 8)), script.place(bytes(32))  # SIG_IGN, SIG_DFL
        script.call("rt_sigaction", _SIGPIPE, ignore, 0, 8)
        for hook in self.hooks:
            self._run(script, hook, given, default)
        script.call("rt_sigaction", _SIGPIPE, default, 0, 8)

    def _run(self, script: Script, hook: Hook, given: int, default: int) -> None:
        path, parent, ended, failed, done = os.fsencode(hook.path), Label(), Label(), Label(), Label()
        pipe = script.room(8)
        reading, writing = Variable(pipe), Variable(pipe + 4)
        child, poll, status = script.variable(), script.room(8), script.room(4)
        script.call("pipe2", pipe, os.O_CLOEXEC)
        script.call("clone", _SIGCHLD, 0, 0, 0, 0, into=child)
        script.compare(child, -1, 0, parent)
        script.call("rt_sigaction", _SIGPIPE, default, 0, 8)
        script.call("dup3", reading, 0, 0, on={ANY: NEXT})
        # The process still holds what it was given to build the container from, and its line to who makes it.
        script.call("close_range", 3, -1, 0)
        script.call(
            "execve",
            path,
            script.vector([script.text(os.fsencode(word)) for word in hook.args or (hook.path,)]),
            script.vector([script.text(os.fsencode(entry)) for entry in hook.env if "=" in entry]),
            on={ANY: NEXT},
        )
        text = path + b": cannot be executed\n"
        script.call("write", 2, text, len(text), on={ANY: NEXT})
        script.call("exit_group", 127)
        script.mark(parent)
        script.call("close", reading)
        script.call("writev", writing, given, 3, on={ANY: NEXT})  # perhaps it does not care
        script.call("close", writing)
        if hook.timeout is not None:
            script.call("pidfd_open", child, 0, into=Variable(poll))
            script.store(select.POLLIN, Variable(poll + 4))
            limit = script.place(words([hook.timeout, 0], 8))
            script.call("ppoll", poll, 1, limit, 0, 8, into=RESULT)
            script.call("close", Variable(poll))
            script.compare(RESULT, -1, 0, ended)
            script.call("kill", child, 9)
            script.call("wait4", child, status, 0, 0)
            script.fail(ETIMEDOUT, f"=the hook did not end within {hook.timeout} s: {hook.path!r}")
        script.mark(ended)
        script.call("wait4", child, status, 0, 0)
        script.compare(status, -1, 0, failed)
        script.jump(done)
        script.mark(failed)
        script.fail(Variable(status), f"={HOOK_ENDED}: {hook.path!r}")
        script.mark(done)
