"""The wall of a computer as the engine opens it: what of a machine's needs only the rooms beside it can give.

Control groups and compiled filters come from the containers' room (decision 0050), wires from the networks'.
"""

from __future__ import annotations

import os

from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.linux.seccomp import Filter
    from mamushka.machine.devices.virtio.block import Disk
    from mamushka.machine.maker import Wire
    from mamushka.machine.runtime import MachineRuntime
    from mamushka.machine.warm import Shelf
    from mamushka.network.tap import Interface, Joined
    from mamushka.spec.runtime import Config

_obstacle: str | None = None


def obstacle(kernel: str = "", *, directories: bool = False) -> str:
    """Why images cannot be run in machines here, and what to do about it; empty where they can. Asked once.

    ``kernel`` is one that was named; with ``directories`` the root is one, as for OCI's callers.
    """
    global _obstacle
    if _obstacle is None:
        _obstacle = next((reason for reason in (_processor(), _program()) if reason), "")
    return _obstacle or _kernel(kernel) or _root(kernel, directories)


def _root(named: str, directories: bool) -> str:
    """Why there is no root, neither that of layers nor that of a directory, which is looked for first, as quicker."""
    lacking = files_obstacle()
    if not lacking or directories:
        return lacking
    from mamushka.engine import kernel_image, machine_configuration
    from mamushka.engine.machine_root import kernel_obstacle
    from mamushka.machine.boot import kernels

    named = named or machine_configuration.read().kernel
    if named.startswith(kernel_image.PREFIX):
        return ""
    why = kernel_obstacle(kernels.choose(named))
    return f"a machine has no root here: {lacking}; and no layers as disks: {why}" if why else ""


def _processor() -> str:
    from mamushka.machine.executors.kvm import probe

    found = probe.probe()
    return "" if found.usable else found.reason


def _program() -> str:
    from mamushka.errors import Unsupported
    from mamushka.machine.agent.program import guest_program

    try:
        guest_program(os.uname().machine)
    except Unsupported as error:
        return f"{error} ({error.hint})"
    return ""


def _kernel(named: str) -> str:
    from mamushka.engine import kernel_image, machine_configuration
    from mamushka.machine.boot import kernels

    named = named or machine_configuration.read().kernel
    # An image is pulled and looked into when a workload is made.
    return "" if named.startswith(kernel_image.PREFIX) else kernels.obstacle(named)


def files_obstacle() -> str:
    """Why no directory of the host's can be shared with machines; empty where one can."""
    from mamushka.errors import Unsupported
    from mamushka.machine.devices.virtio.fs import find

    try:
        find()
    except Unsupported as error:
        return f"{error} ({error.hint})"
    return ""


def open_machines(root: str, *, manager: str = "cgroupfs", cache: str = "", kernel: str = "") -> MachineRuntime:
    """The wall, with its records below ``root``; what it makes for all machines in ``cache``, or beside that."""
    from mamushka.container.cgroups import cgroup
    from mamushka.engine import machine_configuration
    from mamushka.machine.maker import Maker
    from mamushka.machine.runtime import MachineRuntime
    from mamushka.machine.shape import CPUS_DEFAULT, MEMORY_DEFAULT, Shape

    def common() -> tuple[str, Shape]:
        # Only when a machine is made: a file that cannot be understood must keep nobody from ending one.
        found = machine_configuration.read()
        return kernel or found.kernel, Shape(found.cpus or CPUS_DEFAULT, found.memory or MEMORY_DEFAULT)

    maker = Maker(
        cache=cache or f"{root}.cache", common=common, filters=filters, wires=wires, resolver=resolver, disk=disk
    )
    return MachineRuntime(root, cgroups=cgroup, manager=manager, maker=maker)


@value
class Process:
    """A process in a guest; ``cpu`` in seconds."""

    pid: int
    parent: int
    uid: int
    cpu: float
    command: str


# Ticks of /proc/PID/stat in a second: USER_HZ, the same on every machine.
_TICKS = 100
# proc_pid_stat(5), counted from behind the name: ppid, utime, stime.
_PARENT, _USER, _SYSTEM = 1, 11, 12


def processes(engine: Engine, workload: Workload) -> tuple[Process, ...]:
    """What a machine's agent says of its container's processes. The guest might lie, about itself alone."""
    found = open_machines(engine.paths.machines).ask(workload.id, "processes")
    inner = {int(item["pid"]): int(item["inner"]) for item in found}
    return tuple(_process(item, inner) for item in found)


def _process(item: dict[str, Any], inner: Mapping[int, int]) -> Process:
    name, _, rest = str(item["stat"]).rpartition(")")
    fields = rest.split()
    numbers = [int(word) if word.lstrip("-").isdigit() else 0 for word in fields] + [0] * (_SYSTEM + 1)
    # A process that has changed its command line away, or a thread of the kernel's, has its name alone.
    command = " ".join(item["command"].split("\0")).strip() or f"[{name.partition('(')[2]}]"
    parent = inner.get(numbers[_PARENT], 0)
    return Process(int(item["inner"]), parent, int(item["uid"]), (numbers[_USER] + numbers[_SYSTEM]) / _TICKS, command)


def network_use(engine: Engine, workload: Workload) -> str:
    """A guest's own count of its packets, as /proc/net/dev; nothing where it does not answer."""
    from mamushka.errors import MamushkaError

    try:
        return str(open_machines(engine.paths.machines).ask(workload.id, "traffic"))
    except MamushkaError:  # it is paused, or has just ended
        return ""


def shelf(made: str) -> Shelf:
    """The machines that others begin from, in what is made for all of them."""
    from mamushka.machine.warm import Shelf, place

    return Shelf(place(made))


def disk(path: str, writable: bool) -> Disk:
    """A machine's disk in a raw file."""
    from mamushka.storage.block import RAW, open_disk

    return open_disk(path, RAW, writable=writable)


def filters(config: Config) -> Filter | None:
    """A bundle's rules on system calls, compiled: the same as for a container, for the guest's kernel to hold."""
    from mamushka.container.parts import filter_of

    return filter_of(config)[0]


def resolver(namespace: int, resolv_conf: str) -> tuple[int, ...]:
    """Sockets for the resolver on a namespace's loopback, where resolv.conf names that: see ``machine.names``."""
    from mamushka.machine.names import SESSIONS_MAX
    from mamushka.network import names, responder

    return responder.ask(namespace, SESSIONS_MAX) if names.RESPONDER in names.nameservers(resolv_conf) else ()


def wires(namespace: int) -> tuple[Wire, ...]:
    """A wire for each interface with an address in a network namespace, and what the guest is told of it.

    What is changed in the namespace is not changed back: it ends with the namespace, or serves the next machine in it.
    An ordinary user's monitor stays in the namespace.
    """
    from mamushka.linux.process import initial
    from mamushka.network import tap
    from mamushka.network.namespace import move

    if not initial():
        move(namespace)
    return tuple(wire(tap.join(namespace, interface.name)) for interface in tap.interfaces(namespace))


def wire(joined: Joined) -> Wire:
    """A wire to an interface, as a machine is given it; the tap is the wire's."""
    from mamushka.machine.maker import Wire
    from mamushka.network.address import hardware

    mac = hardware(joined.interface.mac)
    return Wire(joined.tap, mac, joined.interface.mtu, _link(mac, joined.interface))


def _link(mac: bytes, interface: Interface) -> Callable[[bytes], bytes]:
    """What the guest is told of an interface, by the address that it knows the card by as yet."""
    return lambda known: _told(known, mac, interface)


def _told(known: bytes, mac: bytes, interface: Interface) -> bytes:
    from mamushka.machine.agent.settings import link
    from mamushka.network.address import hardware

    routes = [(_packed(path.destination), path.prefix, _packed(path.gateway)) for path in interface.paths]
    return link(
        known,
        new_mac=b"" if known == mac else mac,
        new_name=interface.name,
        mtu=interface.mtu,
        addresses=[(_packed(item.address), item.prefix) for item in interface.addresses],
        routes=routes,
        neighbours=[(_packed(item.address), hardware(item.mac)) for item in interface.neighbours],
    )


def _packed(address: str) -> bytes:
    import _socket

    if not address:
        return b""
    return _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)
