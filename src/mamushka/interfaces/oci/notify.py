"""sd_notify(3) through the wall: what a service in a container tells its manager.

The caller's socket stays outside. Inside there is one of ours, in a directory of the container's record that is mounted
at /run/notify, as runc has it; whoever made the container, or started it, stands behind it. A container is not trusted
with its manager: words that describe a service pass, those that would give the manager other processes or descriptors
(MAINPID, FDSTORE, BARRIER) do not, and MAINPID is said by us.
"""

from __future__ import annotations

import _socket
import _thread
import os
import select

from mamushka import trace
from mamushka.runtime import CREATED, Bundle, Stdio
from mamushka.spec.runtime import Mount
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.runtime import ContainerRuntime
    from mamushka.interfaces.oci.arguments import Arguments
    from mamushka.runtime import Started

DIRECTORY = "notify"  # of the container's record
_INSIDE = "/run/notify"
_NAME = "notify.sock"
_READY = b"READY=1"
_PASSED = (b"READY", b"STATUS", b"STOPPING", b"RELOADING", b"ERRNO", b"WATCHDOG", b"EXTEND_TIMEOUT_USEC")
_DATAGRAM_MAX = 4096  # as systemd's own


def wanted() -> str:
    """The caller's socket: a path, or @ and an abstract name; empty when it is told of none that can be reached."""
    host = os.environ.get("NOTIFY_SOCKET", "")
    return host if host[:1] in ("/", "@") else ""


def visible(bundle: Bundle, root: str, id: str) -> Bundle:
    """The bundle with our socket's directory in it, and the variable that names the socket."""
    config = bundle.config
    assert config.process
    mount = Mount(_INSIDE, "bind", f"{root}/{id}/{DIRECTORY}", ("bind", "nosuid", "noexec", "nodev", "ro"))
    told = replace(config.process, env=(*config.process.env, f"NOTIFY_SOCKET={_INSIDE}/{_NAME}"))
    return Bundle(bundle.path, replace(config, process=told, mounts=(*config.mounts, mount)))


class Proxy:
    """Our socket, and the way to the caller's."""

    def __init__(self, host: str, directory: str) -> None:
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
        self._inside = _socket.socket(_socket.AF_UNIX, kind)
        self._outside = _socket.socket(_socket.AF_UNIX, kind)
        where = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Through the descriptor: an address has room for 107 bytes, an id alone may have 255.
            path = f"/proc/self/fd/{where}/{_NAME}"
            if os.path.exists(path):  # a starter's that was killed before it had opened the gate
                os.unlink(path)
            self._inside.bind(path)
            os.chmod(path, 0o666)  # whoever the program runs as
            self._outside.connect("\0" + host[1:] if host[:1] == "@" else host)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(where)

    def close(self) -> None:
        """Stop listening; what the container says from now on is lost."""
        self._inside.close()
        self._outside.close()

    def until_ready(self, pid: int, pidfd: int) -> None:
        """Pass on what the container says until it is ready, or its first process has ended."""
        poll = select.poll()
        poll.register(self._inside, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = [number for number, _ in poll.poll()]
            if self._inside.fileno() in ready:
                if self.pass_on(pid):
                    return
            elif pidfd in ready:
                return

    def forever(self, pid: int) -> None:
        """Pass on whatever it says; for a thread of its own, which ends with the process."""
        while True:
            self.pass_on(pid)

    def pass_on(self, pid: int) -> bool:
        """One datagram; whether it said that the container is ready."""
        lines = self._inside.recv(_DATAGRAM_MAX).split(b"\n")
        passed = [line for line in lines if line.partition(b"=")[0] in _PASSED]
        ready = _READY in passed
        if ready:
            passed.append(b"MAINPID=%d" % pid)
        trace.event("notify", passed=len(passed), of=len(lines))
        try:
            if passed:
                self._outside.send(b"\n".join(passed))
        except OSError as error:  # the manager has gone; the container need not
            trace.event("notify.lost", reason=error.strerror)
        return ready


def make(
    wall: ContainerRuntime,
    id: str,
    bundle: Bundle,
    given: Arguments,
    preserve: tuple[int, ...],
    how: dict[str, bool],
    *,
    gated: bool,
) -> Started:
    """create, or run, of a container that can tell how it is; run listens before its program begins.

    A detached run ends when the container is ready, as runc's does: whoever waits for it relies on that.
    """
    from mamushka.interfaces.oci.lifecycle import hand_over

    notifying = bool(wanted())
    if notifying:
        bundle = visible(bundle, wall.root, id)
    started = wall.create(id, bundle, Stdio(), preserve=preserve, notify=notifying, **how)
    try:
        detached = gated or "detach" in given
        proxy = None
        if not gated:
            proxy = _prepared(wall, id)
            wall.start(id)
        hand_over(started, given, detached=detached)
        if proxy and detached:
            proxy.until_ready(started.pid, started.pidfd)
        elif proxy:
            _thread.start_new_thread(proxy.forever, (started.pid,))
        return started
    except BaseException:
        wall.delete(id, force=True)
        raise


def start(wall: ContainerRuntime, id: str) -> None:
    """start; ends when the container is ready, if it was made to tell."""
    found = wall.state(id)
    proxy = _prepared(wall, id) if found.status == CREATED else None
    if not proxy:
        wall.start(id)
        return
    pidfd = os.pidfd_open(found.pid)
    wall.start(id)
    proxy.until_ready(found.pid, pidfd)


def _prepared(wall: ContainerRuntime, id: str) -> Proxy | None:
    """The proxy of a container that was made for one; None for others, or without a caller's socket."""
    host, where = wanted(), f"{wall.root}/{id}/{DIRECTORY}"
    return Proxy(host, where) if host and os.path.isdir(where) else None
