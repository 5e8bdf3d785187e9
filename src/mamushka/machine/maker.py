"""From a bundle to a machine that could run it: a kernel, its first file system, memory, devices, files, wires.

``prepare`` runs in the creator, before the monitor is forked: it finds out what cannot be, imports what all monitors
need, and opens what takes long to make. What it gives runs in the monitor and opens all the rest. After that nothing is
opened any more (cage.py).
"""

from __future__ import annotations

import os

from mamushka.errors import NotFound, Unsupported
from mamushka.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from mamushka.linux.seccomp import Filter
    from mamushka.machine.board import Board
    from mamushka.machine.boot.kernels import Kernel
    from mamushka.machine.inside import Guest
    from mamushka.machine.memory import Memory
    from mamushka.machine.shape import Shape
    from mamushka.record import Record
    from mamushka.runtime import Bundle
    from mamushka.spec.runtime import Config

    class Wires(Protocol):
        """Whoever ties a machine's card to the interfaces of a network namespace."""

        def __call__(self, namespace: int) -> tuple[Wire, ...]:
            """One for each interface."""


# What a distribution's kernel is told beyond command_line's own.
_WORDS = ("init_on_alloc=0",)


@value
class Wire:
    """A card's other end: the descriptor of a tap, given away; the card's address and MTU; what the guest is told."""

    tap: int
    mac: bytes
    mtu: int
    link: bytes  # agent.settings.link


class Maker:
    """Makes the machines of one host."""

    def __init__(
        self,
        *,
        cache: str,
        kernel: str = "",
        otherwise: Shape | None = None,
        filters: Callable[[Config], Filter | None] = lambda config: None,
        wires: Wires | None = None,
    ) -> None:
        """``cache`` is a directory for what is made once, ``kernel`` the one that a bundle gets that names none.

        ``otherwise`` is the machine that a bundle without limits gets;
        ``filters`` compiles a bundle's rules on system calls; ``wires`` gives machines a network.
        """
        self._cache, self._kernel, self._filters, self._wires = cache, kernel, filters, wires
        self._otherwise = otherwise

    def prepare(self, record: Record, bundle: Bundle, root: int) -> tuple[Callable[[], Guest], tuple[int, ...]]:
        """See ``runtime.Maker``."""
        preload()
        from mamushka.machine.agent.program import guest_program
        from mamushka.machine.boot import kernels
        from mamushka.machine.kit import initramfs
        from mamushka.machine.shape import Shape, asked, shape

        config = bundle.config
        named, _, append = asked(config.annotations)
        kernel = kernels.choose(named, self._kernel)
        _check_device()
        hardware = shape(config, self._otherwise or Shape())
        filter = self._filters(config)
        # Paths may be those of the creator's own descriptors.
        namespace = _network(config) if self._wires is not None else -1
        if namespace >= 0:
            import mamushka.machine.devices.virtio.net  # noqa: F401
        host = _own_network()
        first = initramfs(kernel, guest_program(os.uname().machine), self._cache)

        def make() -> Guest:
            where = namespace
            if namespace < 0 and self._wires is not None and _own_network() != host:
                where = os.open(_NETWORK, os.O_RDONLY | os.O_CLOEXEC)  # with what others have put into it
            return self._make(record, bundle, root, kernel, hardware, first, where, filter, append)

        return make, tuple(fd for fd in (first, namespace) if fd >= 0)

    def features(self) -> Mapping[str, object]:
        """What machines can do here. runtime-spec, features.md."""
        from mamushka.spec.runtime import VERSION

        return {
            "ociVersionMin": "1.0.0",
            "ociVersionMax": VERSION,
            "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
            "mountOptions": ["bind", "noatime", "nodev", "noexec", "nosuid", "rbind", "relatime", "ro", "rw"],
            "linux": {"namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"], "seccomp": {"enabled": True}},
        }

    def _make(
        self,
        record: Record,
        bundle: Bundle,
        root: int,
        kernel: Kernel,
        shape: Shape,
        first: int,
        namespace: int,
        filter: Filter | None,
        append: str,
    ) -> Guest:
        """In the monitor: open everything."""
        import mmap

        from mamushka.machine import shares
        from mamushka.machine.board import Board, ram
        from mamushka.machine.boot.command_line import command_line
        from mamushka.machine.computer import Computer, Interior
        from mamushka.machine.devices.virtio.fs import Fs, Share, Virtiofsd
        from mamushka.machine.devices.virtio.rng import Rng
        from mamushka.machine.devices.virtio.vsock import Vsock
        from mamushka.machine.executors.kvm import KvmExecutor

        place = record.path
        # The last look at the host's own paths; what follows happens in a mount namespace of our own.
        wired = self._wires(namespace) if self._wires is not None and namespace >= 0 else ()
        executor = KvmExecutor()
        bundle = replace(bundle, config=shares.local(bundle.config))
        tree, inside, sources = shares.tree(place, bundle, root)
        server = Virtiofsd(Share(tree), f"{place}/served")
        memory = ram(shape.memory)
        board = Board(executor, memory, vcpus=shape.cpus)
        vsock = Vsock()
        board.add("vsock", vsock)
        board.add("fs", Fs(shares.TAG, server, memory))
        board.add("rng", Rng())
        links = _plug(board, wired, memory)
        interior = Interior(_own(bundle.config), inside, sources, links, filter)
        computer = Computer(board, vsock, interior)
        archive = mmap.mmap(first, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        entry = board.boot(
            kernel.image, command_line=command_line((*_WORDS, *append.split())), initramfs=(memoryview(archive),)
        )
        computer.enter_at(entry)
        return computer


_NETWORK = "/proc/self/ns/net"


def _network(config: Config) -> int:
    """The network namespace that is handed over; -1 where a new one is asked for, in which there is nothing."""
    path = next((item.path for item in config.linux.namespaces if item.type == "network"), "")
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else -1
    except FileNotFoundError as error:
        raise NotFound(f"there is no network namespace {path}") from error


def _own_network() -> int:
    """This process's network namespace, as a number."""
    return os.stat(_NETWORK).st_ino


def _plug(board: Board, wired: tuple[Wire, ...], memory: Memory) -> tuple[bytes, ...]:
    """A card for each wire; the guest's settings of them."""
    if not wired:
        return ()
    from mamushka.machine.devices.virtio.net import Net

    for number, wire in enumerate(wired):
        board.add(f"net{number}", Net(wire.tap, wire.mac, wire.mtu, memory=memory))
    return tuple(wire.link for wire in wired)


def _own(config: Config) -> Config:
    """The bundle as the guest is to make it: a privileged one's devices are the guest's own."""
    return replace(config, linux=replace(config.linux, devices=()))


def _check_device() -> None:
    from mamushka.machine.executors.kvm import DEVICE

    if not os.access(DEVICE, os.R_OK | os.W_OK):
        there = os.path.exists(DEVICE)
        raise Unsupported(
            f"{DEVICE} {'may not be opened by this user' if there else 'is not there'}",
            hint="usermod -aG kvm $USER, or choose --runtime container"
            if there
            else "modprobe kvm_intel || modprobe "
            "kvm_amd; a virtual machine needs nested virtualization switched on; or choose --runtime container",
        )


def preload() -> None:
    """Import all that a monitor needs, before it is forked: afterwards each would pay for it, in time and memory."""
    import mamushka.machine.agent
    import mamushka.machine.agent.program
    import mamushka.machine.board
    import mamushka.machine.boot.command_line
    import mamushka.machine.boot.kernels
    import mamushka.machine.cage
    import mamushka.machine.computer
    import mamushka.machine.creation
    import mamushka.machine.devices.virtio.fs
    import mamushka.machine.devices.virtio.rng
    import mamushka.machine.devices.virtio.vsock
    import mamushka.machine.executors.kvm
    import mamushka.machine.kit
    import mamushka.machine.monitor
    import mamushka.machine.shape
    import mamushka.machine.shares  # noqa: F401
