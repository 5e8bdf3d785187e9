"""System calls that somebody else answers: a filter's notify descriptor on its way to the bundle's agent.

config-linux.md#seccomp, listenerPath, and #containerprocessstate; seccomp_unotify(2).

A process behind such a filter can make no further call before the agent holds the descriptor: it might be one that the
agent is to answer. So it makes none. It looks at a word of its memory, again and again, until whoever started it has
read the descriptor's number there, taken a copy of the descriptor (pidfd_getfd(2)), sent that to the agent and changed
the word. With ``create`` this is ``start``, in another process; nothing but the two words is needed between them.
"""

from __future__ import annotations

import _socket
import os
import select
import time
from errno import EACCES, EPERM

from mamushka import document
from mamushka.container.operation import LISTENER, RELEASED
from mamushka.errors import Denied, NotFound, Unavailable
from mamushka.linux.process import pidfd_getfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.linux.script import Variable
    from mamushka.spec.runtime import Seccomp

# How long an agent may leave what was sent to it unread.
_PATIENCE = 10.0
_WORD = 4


class Agent:
    """The connection to the process that will answer; for one descriptor, and closed after it."""

    __slots__ = ("_metadata", "_path", "_socket")

    def __init__(self, seccomp: Seccomp) -> None:
        """NotFound, Denied or Unavailable where nobody listens; nothing has been changed then."""
        self._path, self._metadata = seccomp.listener_path, seccomp.listener_metadata
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._socket.settimeout(_PATIENCE)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self.close()
            kind = {2: NotFound, EACCES: Denied, EPERM: Denied}.get(error.errno or 0, Unavailable)
            raise kind(
                f"cannot reach the seccomp agent at {self._path}: {error.strerror or error}",
                hint="linux.seccomp.listenerPath is a unix stream socket that somebody listens on",
            ) from error

    def close(self) -> None:
        """End the connection; harmless when it is closed."""
        self._socket.close()

    def hand_over(self, pid: int, pidfd: int, version: str, state: bytes) -> None:
        """Wait until the process has its filter, give the agent the descriptor, and let the process go on.

        Nothing happens if the process ends before it has one: what it told as it failed is the caller's to read.
        """
        try:
            with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
                number = _number(memory.fileno(), pidfd)
                if number < 0:
                    return
                descriptor = pidfd_getfd(pidfd, number, 0)
                try:
                    self._send(descriptor, process_state(version, pid, self._metadata, state))
                finally:
                    os.close(descriptor)
                os.pwrite(memory.fileno(), (1).to_bytes(_WORD, "little"), RELEASED.address)
        except (PermissionError, FileNotFoundError) as error:
            raise Denied(
                f"cannot take over the seccomp listener of process {pid}: {error.strerror}",
                hint="CAP_SYS_PTRACE and a /proc of this pid namespace are needed",
            ) from error
        finally:
            self.close()

    def _send(self, descriptor: int, content: bytes) -> None:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, "little"))
        try:
            sent = self._socket.sendmsg([content], [rights])
            self._socket.sendall(content[sent:])
        except OSError as error:
            raise Unavailable(f"the seccomp agent at {self._path} takes nothing: {error.strerror or error}") from error


def _number(memory: int, pidfd: int) -> int:
    """What seccomp(2) has answered the process, as soon as it has; -1 when the process has ended instead."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    pause = 0.0001
    while (number := _word(memory, LISTENER)) < 0:
        if poll.poll(0):
            return -1
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)
    return number


def _word(memory: int, place: Variable) -> int:
    """A word of the process; -1 when its memory has gone."""
    try:
        content = os.pread(memory, _WORD, place.address)
    except OSError:
        return -1
    return int.from_bytes(content, "little", signed=True) if len(content) == _WORD else -1


def expect(seccomp: Seccomp) -> None:
    """NotFound where there is no socket at all; whether somebody listens on it is known when it is needed."""
    try:
        there = os.stat(seccomp.listener_path).st_mode & 0o170000 == 0o140000
    except OSError:
        there = False
    if not there:
        raise NotFound(
            f"there is no socket at {seccomp.listener_path}, where the seccomp agent is to listen",
            hint="start the agent first",
        )


def process_state(version: str, pid: int, metadata: str, state: bytes) -> bytes:
    """The container process state, as JSON; ``state`` is the container's own."""
    head: dict[str, object] = {"ociVersion": version, "fds": ["seccompFd"], "pid": pid}
    if metadata:
        head["metadata"] = metadata
    return document.dump(head)[:-1] + b',"state":' + state + b"}"
