"""A criu for one request (``criu swrk``), spoken to by its RPC. criu(8), https://criu.org/RPC.

By RPC and not by options: a restored process becomes the caller's own child, a terminal's other side comes over the
line, and criu stops at the moments where hooks belong and the record is written (docs/decisions/0033-criu.md).
It is started by a script like a container's first process (``spawn``): in mounts of its own, in a cgroup, and with
the descriptors that it is to hand on, at the numbers that they have here.
"""

from __future__ import annotations

import _socket
import os
import select

from mamushka import trace
from mamushka.container import channel
from mamushka.container.criu import rpc
from mamushka.container.criu.failure import Failed
from mamushka.container.operation import Inside, script_of
from mamushka.container.program import ResetSignals
from mamushka.container.spawn import Birth
from mamushka.errors import MamushkaError, Unsupported
from mamushka.linux.fd import CLOSE_RANGE_CLOEXEC
from mamushka.linux.script import CHANNEL, Script, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    # What to do at one of criu's moments: its name, a pid or 0, a descriptor or -1.
    Moment = Callable[[str, int, int], None]

_F_SETFD = 2
_FIRST = 3  # below are the standard streams
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# An answer has a few fields, and the text of one error.
_ANSWER_MAX = 1 << 16
_TALK_MAX = 1 << 14
# Between its last answer and its end criu has nothing to do.
_PATIENCE_MS = 10_000


def program() -> str:
    """Where criu is; Unsupported without it, or where the kernel cannot have it."""
    if not os.path.exists("/proc/sys/kernel/ns_last_pid"):
        raise Unsupported(
            "cannot checkpoint or restore: the kernel is built without CONFIG_CHECKPOINT_RESTORE",
            hint="a distribution's kernel has it",
        )
    for directory in (*os.environ.get("PATH", "").split(":"), *_PATH.split(":")):
        path = f"{directory}/criu"
        if directory.startswith("/") and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise Unsupported("cannot checkpoint or restore: criu is not installed", hint="apt-get install criu")


class BecomeCriu(Inside):
    """The last operation: criu's descriptors and no others, and execve."""

    __slots__ = ("inherited", "line", "null", "program", "talk")

    def __init__(self, program: str, line: int, inherited: Sequence[int], null: int, talk: int) -> None:
        self.program, self.line, self.inherited, self.null, self.talk = program, line, inherited, null, talk

    def describe(self) -> str:
        return f"execute {self.program} swrk {self.line}"

    def write(self, script: Script) -> None:
        # A group of its own: what it has made of a restore that fails is found by it, and no ^C reaches it.
        script.call("setpgid", 0, 0)
        script.call("close_range", _FIRST, -1, CLOSE_RANGE_CLOEXEC)
        for source, target in ((self.null, 0), (self.null, 1), (self.talk, 2)):
            script.call("dup3", script.descriptor(source), target, 0)
        for descriptor in (self.line, *self.inherited):
            script.call("fcntl", script.descriptor(descriptor), _F_SETFD, 0)
        path = os.fsencode(self.program)
        arguments = [script.text(word) for word in (b"criu", b"swrk", b"%d" % self.line)]
        script.call("execve", path, script.vector(arguments), script.vector([script.text(b"PATH=" + _PATH.encode())]))


def start(operations: Sequence[Inside], *, flags: int = 0, cgroup: int = -1) -> tuple[int, int]:
    """A child that performs operations, and has done so or become another program: (pid, pidfd)."""
    ours, end = channel.pair()
    try:
        script = Script()
        script.descriptor(end, CHANNEL)
        script_of(list(operations), script)
        pid, pidfd = Birth(script, end, ours, (), flags=flags, cgroup=cgroup).give(lambda _: None)
        os.close(end)
        end = -1
        packet, _ = channel.receive(ours)
    finally:
        os.close(ours)
        if end >= 0:
            os.close(end)
    if packet[:1] == channel.FAILED:
        os.waitpid(pid, 0)
        os.close(pidfd)
        _, _, operation, text = parse(packet)
        raise MamushkaError(f"cannot {operation}: {text[:1].lower()}{text[1:]}")
    return pid, pidfd


class Criu:
    """One running criu. What it is given by number in a request is open here under that number."""

    def __init__(
        self,
        before: Sequence[Inside] = (),
        inherited: Sequence[int] = (),
        *,
        flags: int = 0,
        cgroup: int = -1,
    ) -> None:
        """Start it behind the operations ``before``, in new namespaces (``flags``) and a cgroup v2 directory."""
        found = program()
        assert all(descriptor >= _FIRST for descriptor in inherited)
        self._line, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._talk = os.memfd_create("criu", os.MFD_CLOEXEC)
        try:
            last = BecomeCriu(found, theirs.fileno(), inherited, null, self._talk)
            self.pid, self._pidfd = start([*before, ResetSignals(), last], flags=flags, cgroup=cgroup)
        except BaseException:
            self._line.close()
            os.close(self._talk)
            raise
        finally:
            theirs.close()
            os.close(null)

    def perform(self, kind: int, options: Mapping[str, Any] | None = None, at: Moment | None = None) -> dict[str, Any]:
        """Send a request and answer criu's questions until it is done; its answer.

        Failed where it fails. Whatever ``at`` raises makes it fail, and is what is raised then.
        """
        request: dict[str, Any] = {"type": kind}
        request["features" if kind == rpc.FEATURE_CHECK else "opts"] = options
        self._line.send(rpc.encode(request, rpc.REQUEST))
        refused: BaseException | None = None
        while True:
            answer, descriptor = self._receive()
            if answer.get("type") != rpc.NOTIFY:
                break
            told = answer.get("notify", {})
            trace.event("criu.moment", name=told.get("script", ""), pid=told.get("pid", 0))
            try:
                if at is not None and refused is None:
                    at(told.get("script", ""), told.get("pid", 0), descriptor)
            except BaseException as error:
                refused = error
            self._line.send(rpc.encode({"type": rpc.NOTIFY, "notify_success": refused is None}, rpc.REQUEST))
        if refused is not None:
            raise refused
        if not answer.get("success"):
            raise Failed(answer.get("cr_errmsg", ""), self._said())
        return answer

    def _receive(self) -> tuple[dict[str, Any], int]:
        try:
            packet, control, _, _ = self._line.recvmsg(_ANSWER_MAX, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            packet, control = b"", []
        if not packet:
            raise Failed("criu ended without an answer", self._said())
        descriptor = -1
        for level, sort, content in control:
            if level == _socket.SOL_SOCKET and sort == _socket.SCM_RIGHTS:
                descriptor = int.from_bytes(content[:4], "little")
        return rpc.decode(packet, rpc.RESPONSE), descriptor

    def _said(self) -> str:
        """What it has said before it had a log."""
        return os.pread(self._talk, _TALK_MAX, 0).decode(errors="replace")

    def __enter__(self) -> Criu:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Hang up, which ends it: half of what it was asked for it takes back."""
        self._line.close()
        os.close(self._talk)
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(_PATIENCE_MS):
            os.kill(self.pid, 9)
            poll.poll()
        if kind is None:
            os.waitpid(self.pid, 0)
        else:
            self._end_group()
        os.close(self._pidfd)

    def _end_group(self) -> None:
        """Kill and reap what it has left: a container's first process is this one's child, and not criu's."""
        os.killpg(self.pid, 9)  # criu itself is there still, as a zombie: the number is its
        try:
            while True:
                os.waitid(os.P_PGID, self.pid, os.WEXITED)
        except ChildProcessError:
            pass


def version() -> tuple[int, int]:
    """Major and minor."""
    with Criu() as criu:
        told = criu.perform(rpc.VERSION).get("version", {})
    return told.get("major_number", 0), told.get("minor_number", 0)


def check_feature(name: str, what: str) -> None:
    """Unsupported where criu or the kernel lacks it, or they do not know each other at all."""
    with Criu() as criu:
        try:
            has = criu.perform(rpc.FEATURE_CHECK, {name: 1}).get("features", {}).get(name, 0)
        except Failed as error:
            own = "{}.{}".format(*version())
            raise Unsupported(
                f"cannot {what}: criu {own} does not work on Linux {os.uname().release}",
                hint="criu check says why; kernels from 6.13 on need criu 4.1 or later",
            ) from error
    if not has:
        raise Unsupported(f"cannot {what}: criu or the kernel has no {name}", hint="criu check --feature " + name)
