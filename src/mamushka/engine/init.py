"""``--init``: a small first process that reaps orphans and passes signals on.

It must be a static program, since it runs in any image, and none of the host's, which would be within reach inside as
/proc/1/exe. So it is a script of system calls like the one that builds the container (linux/script.py): an executable
of a few pages, written for the one command that it starts, and mounted read-only. What it does is what tini does:

    block every signal; start the command in a process group of its own, in front of the terminal if there is one;
    wait for signals: pass on any but SIGCHLD; after that reap all that has ended, and end as the command has ended.
"""

from __future__ import annotations

import os
from errno import EACCES, ECHILD, EINTR, ENOENT, ENOTDIR

from mamushka.container.defaults import PATH
from mamushka.linux.process import PR_SET_CHILD_SUBREAPER
from mamushka.linux.script import ANY, NEXT, SELF, Label, Script, Variable
from mamushka.spec.runtime import Config, Mount
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.spec.runtime import Process

# /dev is the workload's own memory, so the place can be made however read-only or small the image is.
INSIDE = "/dev/init"

_SIG_SETMASK, _SIGSET_SIZE = 2, 8
_SIGCHLD, _SIGNALS = 17, 64
_TIOCSPGRP = 0x5410
# waitid(2); where a siginfo_t has its fields, and what its code is for a process that exited.
_P_ALL, _WNOHANG, _WEXITED, _CLD_EXITED = 0, 1, 4, 1
_SI_CODE, _SI_PID, _SI_STATUS, _SIGINFO_SIZE = 8, 16, 24, 128


def below(config: Config, directory: str) -> Config:
    """The bundle with the init as its first process; its executable is written to the workload's own directory."""
    process = config.process
    assert process is not None
    path = f"{directory}/init"
    staged = f"{path}.new"
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o755)
    try:
        _script(process).write(fd)
    finally:
        os.close(fd)
    os.rename(staged, path)  # the last start's may still be executed
    config = _executable(config)
    mount = Mount(INSIDE, "bind", path, ("bind", "rprivate", "ro"))
    return replace(config, mounts=(*config.mounts, mount), process=replace(process, args=(INSIDE, "--", *process.args)))


def _executable(config: Config) -> Config:
    """With a Landlock policy, if there is one, that lets the init be executed."""
    from mamushka.container.defaults import LANDLOCK

    policy = config.annotations.get(LANDLOCK)
    if policy is None:
        return config
    from mamushka.container.landlock import permit

    return replace(config, annotations={**config.annotations, LANDLOCK: permit(policy, INSIDE)})


def _script(process: Process) -> Script:
    script = Script()
    child, everything = script.variable(), script.place(b"\xff" * _SIGSET_SIZE)
    parent = Label()
    script.call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, on={ANY: NEXT})  # where it is not pid 1
    script.call("rt_sigprocmask", _SIG_SETMASK, everything, 0, _SIGSET_SIZE)
    script.call("clone", _SIGCHLD, 0, 0, 0, 0, into=child)
    script.compare(child, -1, 0, parent)
    _become(script, process)
    script.mark(parent)
    _watch(script, child, everything)
    return script


def _become(script: Script, process: Process) -> None:
    """In the child: the command, found as a shell finds it."""
    own, denied = script.variable(), script.variable()
    script.call("setpgid", 0, 0, on={ANY: NEXT})
    script.call("getpid", into=own)
    script.call("ioctl", 0, _TIOCSPGRP, own.address, on={ANY: NEXT})
    script.call("rt_sigprocmask", _SIG_SETMASK, script.place(bytes(_SIGSET_SIZE)), 0, _SIGSET_SIZE)
    environment = [os.fsencode(entry) for entry in process.env]
    arguments = script.vector([script.text(os.fsencode(word)) for word in process.args])
    variables = script.vector([script.text(entry) for entry in environment])
    for candidate in _candidates(os.fsencode(process.args[0]), environment):
        further, no = Label(), Label()
        script.call("execve", candidate, arguments, variables, on={ENOENT: further, ENOTDIR: further, ANY: no})
        script.mark(no)
        script.store(EACCES, denied)
        script.mark(further)
    name = process.args[0][:4096]  # a path; the kernel takes no longer one
    absent = Label()
    script.compare(denied, -1, EACCES, absent)
    _give_up(script, f"{name}: cannot be executed", 126)
    script.mark(absent)
    _give_up(script, f"{name}: not found", 127)


def _candidates(name: bytes, environment: Sequence[bytes]) -> list[bytes]:
    if b"/" in name:
        return [name]
    path = next((entry[5:] for entry in reversed(environment) if entry.startswith(b"PATH=")), PATH.encode())
    return [(directory or b".") + b"/" + name for directory in path.split(b":")]


def _give_up(script: Script, text: str, code: int) -> None:
    told = f"init: {text}\n".encode(errors="surrogateescape")
    script.call("write", 2, told, len(told), on={ANY: NEXT})
    script.call("exit_group", code)


def _watch(script: Script, child: Variable, everything: int) -> None:
    """In the first process, until the command has ended."""
    wait, reap, forward, ended, killed, other = Label(), Label(), Label(), Label(), Label(), Label()
    info, signal = script.room(_SIGINFO_SIZE), script.variable()
    status = Variable(info + _SI_STATUS)
    script.mark(wait)
    script.call("rt_sigtimedwait", everything, info, 0, _SIGSET_SIZE, into=signal, on={EINTR: SELF})
    script.compare(signal, -1, _SIGCHLD, forward)
    script.mark(reap)
    script.store(0, Variable(info + _SI_PID))
    script.call("waitid", _P_ALL, 0, info, _WEXITED | _WNOHANG, 0, on={ECHILD: wait})
    script.compare(info + _SI_PID, -1, child, other)
    script.jump(ended)
    script.mark(other)
    script.compare(info + _SI_PID, -1, 0, reap)
    script.jump(wait)
    script.mark(forward)
    script.call("kill", child, signal, on={ANY: NEXT})
    script.jump(wait)
    script.mark(ended)
    script.compare(info + _SI_CODE, -1, _CLD_EXITED, killed)
    script.call("exit_group", status)
    script.mark(killed)
    for number in range(1, _SIGNALS + 1):
        further = Label()
        script.compare(status, -1, number, further)
        script.call("exit_group", 128 + number)
        script.mark(further)
    script.call("exit_group", 255)
