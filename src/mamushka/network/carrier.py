"""A program that carries packets between a network namespace and the host's sockets, for who may make no link.

pasta(1) and slirp4netns(1) give the namespace a link of their own and turn what comes out of it into connections of an
ordinary process; so the workload sends with the host's address, and reaches what its user reaches, but for what we
refuse: the host's loopback (by their options) and link-local addresses, where clouds hand out credentials (by routes).

The program is a child of the workload's shim and is killed with it, whatever kills that one (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os

from mamushka.errors import Conflict, Denied, Unavailable, Unsupported
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from mamushka.errors import MamushkaError

ADDRESS, GATEWAY, RESOLVER, PREFIX = "10.0.2.100", "10.0.2.2", "10.0.2.3", 24
LINK = "eth0"
# IPv4's link-local range and the one address that AWS has for IPv6. As for root's networks.
REFUSED = ((bytes((169, 254, 0, 0)), 16), (bytes.fromhex("fd000ec2000000000000000000000254"), 128))


@value
class Carrier:
    """What is to be run. ``ports`` are (protocol, address, host's port, workload's port)."""

    program: str
    words: tuple[str, ...]
    ports: tuple[tuple[str, str, int, int], ...]
    directory: str  # where it tells that it is ready; a short path
    place: str  # a directory on which it sees the namespace

    @property
    def is_pasta(self) -> bool:
        """Else it is slirp4netns."""
        return self.program.endswith("pasta")


_PATH = ("/usr/bin", "/usr/local/bin", "/bin")
# A start takes 20 ms. Who waits longer shall hear why nothing happens.
_PATIENCE = 15.0
# What it says when it fails is a few lines.
_SAID_MAX = 4096


def find(name: str) -> str:
    """A program's path; empty where it is not installed."""
    return next((f"{place}/{name}" for place in _PATH if os.access(f"{place}/{name}", os.X_OK)), "")


def choose(*, slirp: bool = False) -> str:
    """The program to use: pasta, else slirp4netns. Unsupported where there is neither.

    ``slirp`` prefers the second: it asks a name server on the host's loopback without opening the rest of it, and it
    works on a machine that has no way out itself.
    """
    names = ("slirp4netns", "pasta") if slirp else ("pasta", "slirp4netns")
    found = find(names[0]) or find(names[1])
    if not found:
        raise Unsupported(
            "an ordinary user's workload reaches the network through pasta, which is not installed",
            hint="apt-get install passt (or slirp4netns); or give it --network none, or --network host",
        )
    return found


def pasta(ports: Sequence[tuple[str, str, int, int]], *, ipv4: bool) -> tuple[str, ...]:
    """pasta's arguments but for those of the namespace. ``ports`` are (protocol, address, host's port, workload's)."""
    words = ["--foreground", "--quiet", "--config-net", "--no-map-gw", "--ns-ifname", LINK, "--dns", "none"]
    words += ["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"] if ipv4 else ["--no-dhcp", "--no-dhcpv6"]
    if ipv4:
        words += ["--ipv4-only", "--address", ADDRESS, "--netmask", str(PREFIX), "--gateway", GATEWAY]
    for option, protocol in (("--tcp-ports", "tcp"), ("--udp-ports", "udp")):
        asked = [item for item in ports if item[0] == protocol]
        for _, address, outer, inner in asked:
            words += [option, f"{address}/{outer}:{inner}" if address else f"{outer}:{inner}"]
        words += [] if asked else [option, "none"]
    return (*words, "--tcp-ns", "none", "--udp-ns", "none", "--no-netns-quit")


def slirp() -> tuple[str, ...]:
    """slirp4netns' arguments but for those of the namespace; its ports are asked for when it runs."""
    return ("--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--netns-type=path")


def start(carrier: Carrier, namespace: int) -> int:
    """Run it for a namespace until it is ready; its pid, a child of the caller."""
    run = f"{carrier.directory}/carrier-{os.getpid()}"
    fifo = f"{run}.ready"
    os.mkfifo(fifo, 0o600)
    ready = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    reader, said = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(carrier, namespace, run, said, parent)
        finally:
            os._exit(126)
    os.close(said)
    try:
        _await(pid, ready, reader, carrier)
        if carrier.ports and not carrier.is_pasta:
            _publish(f"{run}.api", carrier.ports)
    except BaseException:
        stop(pid)
        raise
    finally:
        os.close(ready)
        os.close(reader)
        for name in (fifo, f"{run}.api"):
            try:
                os.unlink(name)
            except FileNotFoundError:
                continue
    return pid


def stop(pid: int) -> None:
    """End it, and with it its ports."""
    try:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _become(carrier: Carrier, namespace: int, run: str, said: int, parent: int) -> NoReturn:
    """In the child: show it the namespace under a name that its AppArmor profile allows, and that nobody else sees."""
    from _signal import SIG_DFL, SIGPIPE, signal  # type: ignore[import-not-found]

    from mamushka.linux.mount import MS_BIND, mount
    from mamushka.linux.process import CLONE_NEWNS, end_with, unshare

    if not end_with(parent):
        os._exit(126)
    signal(SIGPIPE, SIG_DFL)  # pasta takes an ignored one for a failure
    os.dup2(said, 2)
    unshare(CLONE_NEWNS)
    os.makedirs(carrier.place, 0o700, exist_ok=True)
    mount(b"none", os.fsencode(carrier.place), b"tmpfs", 0, b"mode=755")
    shown = f"{carrier.place}/mamushka"
    os.close(os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    mount(b"/proc/self/fd/%d" % namespace, os.fsencode(shown), b"", MS_BIND, None)
    arguments = [carrier.program, *carrier.words]
    if carrier.is_pasta:
        arguments += ["--pid", f"{run}.ready", "--netns", shown]
    else:
        telling = os.open(f"{run}.ready", os.O_WRONLY)
        os.set_inheritable(telling, True)
        arguments += [f"--ready-fd={telling}", f"--api-socket={run}.api", shown, LINK]
    os.execve(carrier.program, arguments, {"PATH": ":".join(_PATH)})


def _await(pid: int, ready: int, said: int, carrier: Carrier) -> None:
    """Until it says that it is ready. Its own words become the error."""
    import select

    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        happened = dict(poll.poll(_PATIENCE * 1000))
    finally:
        os.close(pidfd)
    if happened.get(ready, 0) & select.POLLIN:
        return
    if not happened:
        raise Unavailable(f"{carrier.program} was not ready within {_PATIENCE:.0f} s", hint="try --network none")
    text = os.read(said, _SAID_MAX).decode("utf-8", "replace")
    raise refusal(os.path.basename(carrier.program), text, carrier.ports)


def refusal(name: str, text: str, ports: Sequence[tuple[str, str, int, int]]) -> MamushkaError:
    """The error for what it said when it failed."""
    lines = [line.partition(": ")[2] if line[:1].isdigit() else line for line in text.splitlines()]
    reason = "; ".join(line.strip() for line in lines if line.strip() and "to syslog" not in line) or "no reason given"
    if "port" in reason and any(port < _privileged() for _, _, port, _ in ports):
        lowest = min(port for _, _, port, _ in ports)
        return Denied(
            f"port {lowest} of the host cannot be published: ports below {_privileged()} are root's",
            hint=f"publish another one, or: sudo sysctl -w net.ipv4.ip_unprivileged_port_start={lowest}",
        )
    if "port" in reason:
        return Conflict(f"cannot publish ports: {name}: {reason}", hint="another program may have one of them")
    hint = "--network none, or --network host, need no such program"
    if "/dev/net/tun" in reason or "tun" in reason:
        hint = "/dev/net/tun must be there, and open to everybody: sudo modprobe tun; sudo chmod 666 /dev/net/tun"
    elif "routable" in reason or "interface" in reason:
        hint = f"this machine has no way out: use --network none, or install slirp4netns instead of {name}"
    return Unavailable(f"the network of an ordinary user's workload cannot be made: {name}: {reason}", hint=hint)


def _privileged() -> int:
    """The first port that needs no right to be bound."""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
        return int(file.read())


def _publish(path: str, ports: Sequence[tuple[str, str, int, int]]) -> None:
    """Ask slirp4netns for its ports. slirp4netns(1), "API SOCKET"."""
    import _socket

    from mamushka import document

    for protocol, address, outer, inner in ports:
        given = {"proto": protocol, "host_addr": address or "0.0.0.0", "host_port": outer, "guest_port": inner}
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            socket.connect(path)
            socket.send(document.dump({"execute": "add_hostfwd", "arguments": given}))
            socket.shutdown(_socket.SHUT_WR)
            answer = document.parse(socket.recv(_SAID_MAX), "the answer of slirp4netns")
        finally:
            socket.close()
        if "error" in answer:
            raise refusal("slirp4netns", f"cannot publish port {outer}: {answer['error'].get('desc', '')}", ports)
