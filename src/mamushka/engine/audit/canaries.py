"""What the auditor plants on the host, for the probe to find: each holds a secret that nobody else knows.

    a file, by name                             the warden removes it
    a process, with secrets in its arguments    the warden itself
      and in its environment
    a segment of System V shared memory         the warden's, which removes it
    a key, readable by the user                 in the warden's own keyring
    listening sockets: TCP on the loopback,     the auditor's, gone with it
      TCP on all addresses, UDP on the
      loopback, an abstract unix socket

The warden is a process of the auditor's that sleeps in a read from a pipe: whatever ends the auditor ends the pipe, so
that nothing stays, also after SIGKILL. It is a script of system calls (linux/script.py), executed for its argument list
and its environment's sake, in a session of its own, where no terminal's signal reaches it.
"""

from __future__ import annotations

import os
import socket

from mamushka.errors import Unavailable
from mamushka.linux import executable, keyring, numbers  # noqa: F401  # their calls are declared
from mamushka.linux.executable import words
from mamushka.linux.script import ANY, NEXT, Script, Variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess

SECRET_SIZE = 32
SHARED = 0x20000000  # where a segment is attached
_PAGE = 4096

_AT_FDCWD, _AT_REMOVEDIR = -100, 0x200
_IPC_CREAT, _IPC_EXCL, _IPC_RMID = 0o1000, 0o2000, 0
_KEY_SPEC_PROCESS_KEYRING, _KEYCTL_SETPERM = -2, 5
_KEY_POSSESSOR_AND_USER_ALL = 0x3F3F0000


def _secret(name: str) -> bytes:
    """Letters and digits, as long as every other."""
    return f"{name}-{os.urandom(SECRET_SIZE).hex()}"[:SECRET_SIZE].encode()


class Canaries:
    """A context manager; ``directory`` is made, and is gone afterwards."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.file = f"{directory}/secret"
        self.probe = f"{directory}/probe"  # where the probe's executable is put: it is removed as well
        self.content, self.argument, self.variable = _secret("file"), _secret("argument"), _secret("variable")
        self.memory = _secret("memory")  # the segment's and the key's
        self.abstract = b"\0" + _secret("abstract")
        self.segment = self.key = self.pid = 0
        self._warden: subprocess.Popen[bytes] | None = None
        self._sockets: list[socket.socket] = []
        self.loopback_port = self.loopback6_port = self.datagram_port = self.open_port = 0

    def __enter__(self) -> Canaries:
        try:
            self._plant()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._sockets:
            held.close()
        if self._warden is not None:
            assert self._warden.stdin is not None
            self._warden.stdin.close()
            self._warden.wait()

    def heard(self) -> bool:
        """Whether the probe's datagram has come."""
        held = next(item for item in self._sockets if item.type == socket.SOCK_DGRAM)
        try:
            return held.recv(SECRET_SIZE) == self.memory
        except BlockingIOError:
            return False

    def _plant(self) -> None:
        self._start()
        for path, content, mode in ((self.file, self.content, 0o644), (self.probe, b"", 0o755)):
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, mode)
        self.loopback_port = self._listen(socket.AF_INET, ("127.0.0.1", 0))
        self.open_port = self._listen(socket.AF_INET, ("0.0.0.0", 0))
        self.datagram_port = self._listen(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM)
        self._listen(socket.AF_UNIX, self.abstract)
        try:
            self.loopback6_port = self._listen(socket.AF_INET6, ("::1", 0))
        except OSError:
            pass  # a host without IPv6

    def _listen(self, family: int, address: object, kind: int = socket.SOCK_STREAM) -> int:
        """Its port. Connections are made by the kernel; nobody accepts them."""
        held = socket.socket(family, kind)
        self._sockets.append(held)
        held.setblocking(False)
        held.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            held.listen(16)
        return 0 if family == socket.AF_UNIX else int(held.getsockname()[1])

    def _start(self) -> None:
        import subprocess

        fd = executable.create("mamushka-audit")
        try:
            self._script().write(fd)
            executable.seal(fd)
            self._warden = subprocess.Popen(
                ["mamushka-audit", self.argument.decode()],
                executable=f"/proc/self/fd/{fd}",
                env={"MAMUSHKA_AUDIT": self.variable.decode()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(fd,),
                start_new_session=True,
            )
        finally:
            os.close(fd)
        assert self._warden.stdin is not None and self._warden.stdout is not None
        self._warden.stdin.write(self.memory)
        self._warden.stdin.flush()
        with self._warden.stdout as told:
            answer = told.read(8)
        if len(answer) != 8:
            raise Unavailable("the auditor's canary did not come to life", hint="mamushka doctor says what is missing")
        self.pid = self._warden.pid
        self.segment = int.from_bytes(answer[:4], "little", signed=True)
        self.key = int.from_bytes(answer[4:], "little", signed=True)

    def _script(self) -> Script:
        script = Script()
        secret = script.room(SECRET_SIZE)
        answer = script.copy(words([0xFFFFFFFF, 0], 4))  # no segment, no key
        segment, key = Variable(answer), Variable(answer + 4)
        script.call("read", 0, secret, SECRET_SIZE)
        script.call("mkdirat", _AT_FDCWD, self.directory.encode(), 0o755)
        script.call("add_key", b"user", b"mamushka-audit", secret, SECRET_SIZE, _KEY_SPEC_PROCESS_KEYRING,
                    into=key, on={ANY: NEXT})  # fmt: skip
        script.call("keyctl", _KEYCTL_SETPERM, key, _KEY_POSSESSOR_AND_USER_ALL, on={ANY: NEXT})
        script.call("shmget", 0, _PAGE, _IPC_CREAT | _IPC_EXCL | 0o666, into=segment, on={ANY: NEXT})
        script.call("shmat", segment, SHARED, 0, on={ANY: NEXT})
        self._fill(script, secret)
        script.call("write", 1, answer, 8)
        script.call("close", 1)
        script.call("read", 0, script.room(8), 1, on={ANY: NEXT})
        for path in (self.file, self.probe):
            script.call("unlinkat", _AT_FDCWD, path.encode(), 0, on={ANY: NEXT})
        script.call("unlinkat", _AT_FDCWD, self.directory.encode(), _AT_REMOVEDIR, on={ANY: NEXT})
        script.call("shmctl", segment, _IPC_RMID, 0, on={ANY: NEXT})
        script.call("exit_group", 0)
        return script

    def _fill(self, script: Script, secret: int) -> None:
        """Copy the secret to the segment: a pipe copies what a script cannot."""
        ends = script.room(8)
        script.call("pipe2", ends, 0)
        script.call("write", Variable(ends + 4), secret, SECRET_SIZE)
        script.call("read", Variable(ends), SHARED, SECRET_SIZE, on={ANY: NEXT})
        for end in (0, 4):
            script.call("close", Variable(ends + end))
