"""Hooks that run inside, by the script. config.md#posix-platform-hooks; the others are run by mamushka.hooks."""

from __future__ import annotations

import os
import select
from errno import ETIMEDOUT

from mamushka.container.channel import GO, PID_WIDTH
from mamushka.container.operation import HOOK, HOOK_ENDED, RESULT, Inside
from mamushka.hooks import state
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
