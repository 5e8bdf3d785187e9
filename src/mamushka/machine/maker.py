"""From a bundle to a machine that could run it: a kernel, its first file system, memory, devices, files, wires.

``prepare`` runs in the creator, before the monitor is forked: it finds out what cannot be, imports what all monitors
need, and opens what takes long to make. What it gives runs in the monitor and opens all the rest. After that nothing is
opened any more (cage.py).
"""

from __future__ import annotations

import os

from mamushka import trace
from mamushka.errors import MamushkaError, NotFound, Unsupported
from mamushka.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from mamushka.linux.seccomp import Filter
    from mamushka.machine.board import Board
    from mamushka.machine.boot.kernels import Kernel
    from mamushka.machine.computer import Computer
    from mamushka.machine.inside import Guest
    from mamushka.machine.layers import OpenDisk
    from mamushka.machine.memory import Memory
    from mamushka.machine.shape import Shape
    from mamushka.machine.state import Saved
    from mamushka.machine.vcpu import Entry
    from mamushka.machine.warm import Shelf, Warm
    from mamushka.record import Record
    from mamushka.runtime import Bundle
    from mamushka.spec.runtime import Config

    class Wires(Protocol):
        """Whoever ties a machine's card to the interfaces of a network namespace."""

        def __call__(self, namespace: int) -> tuple[Wire, ...]:
            """One for each interface."""


@value
class Wire:
    """A card's other end: the descriptor of a tap, given away; the card's address and MTU; what the guest is told."""

    tap: int
    mac: bytes
    mtu: int
    link: Callable[[bytes], bytes]  # agent.settings.link, for a guest that knows the card by this address as yet


class Maker:
    """Makes the machines of one host."""

    def __init__(
        self,
        *,
        cache: str,
        common: Callable[[], tuple[str, Shape]],
        filters: Callable[[Config], Filter | None] = lambda config: None,
        wires: Wires | None = None,
        resolver: Callable[[int, str], tuple[int, ...]] = lambda namespace, text: (),
        disk: OpenDisk | None = None,
    ) -> None:
        """``cache`` is a directory for what is made once. ``common`` tells which kernel a bundle gets that names none,
        and the machine of one without limits; it is asked when a machine is made.

        ``filters`` compiles a bundle's rules on system calls; ``wires`` gives machines a network,
        ``resolver`` sockets for what answers for names inside one, where a resolv.conf says so;
        ``disk`` opens the disks of machines that mount their layers themselves.
        """
        self._cache, self._common, self._filters, self._wires = cache, common, filters, wires
        self._resolver = resolver
        self._disk = disk

    def prepare(self, record: Record, bundle: Bundle, root: int) -> tuple[Callable[[], Guest], tuple[int, ...]]:
        """See ``runtime.Maker``."""
        preload()
        from mamushka.machine.agent.program import guest_program
        from mamushka.machine.boot import kernels
        from mamushka.machine.boot.command_line import command_line
        from mamushka.machine.executors.kvm import open_device
        from mamushka.machine.kit import SHARED, WANTED, initramfs
        from mamushka.machine.shape import asked, shape
        from mamushka.machine.warm import Shelf, place

        config = bundle.config
        named, cold, append = asked(config.annotations)
        named_by_host, usual = self._common()
        kernel = kernels.choose(named, named_by_host)
        os.close(open_device())  # what it refuses is told before anything is made
        hardware = shape(config, usual)
        filter = self._filters(config)
        # Paths may be those of the creator's own descriptors.
        namespace = _network(config) if self._wires is not None else -1
        if namespace >= 0:
            import mamushka.machine.devices.virtio.net  # noqa: F401
        host = _own_network()
        # A root that comes as disks needs their modules; one that is shared as a directory does not.
        wanted = WANTED if bundle.disks.images else SHARED
        first = initramfs(kernel, guest_program(os.uname().machine), self._cache, wanted)
        boot = _Boot(kernel, first, command_line(append.split()))
        shelf = None if cold else Shelf(place(self._cache))

        def make() -> Guest:
            where = namespace
            if namespace < 0 and self._wires is not None and _own_network() != host:
                where = os.open(_NETWORK, os.O_RDONLY | os.O_CLOEXEC)  # with what others have put into it
            return self._make(record, bundle, root, boot, hardware, where, filter, shelf)

        return make, tuple(fd for fd in (first, namespace) if fd >= 0)

    def again(
        self, record: Record, bundle: Bundle, saved: Saved, memory: int
    ) -> tuple[Callable[[], Guest], tuple[int, ...]]:
        """``prepare``, of a machine that goes on from a saved one with its program (past.py); ``memory`` is to be kept.

        The bundle gives what is outside of it: disks, links, names, and the streams of its program.
        """
        preload()
        from mamushka.machine import shares
        from mamushka.machine.executors.kvm import open_device
        from mamushka.machine.past import Past, check_host

        if Past.of(saved.labels) is None or not bundle.disks.images or shares.shared(bundle):
            raise Unsupported(
                "this bundle cannot go on from a saved machine, which has its layers as disks and no files of the "
                "host's",
                hint="--annotation com.mamushka.machine.root=layers, and no volumes and bind mounts",
            )
        check_host(saved.labels)
        os.close(open_device())  # what it refuses is told before anything is made
        filter = self._filters(bundle.config)
        namespace = _network(bundle.config) if self._wires is not None else -1
        if namespace >= 0:
            import mamushka.machine.devices.virtio.net  # noqa: F401
        make = lambda: self._make_again(bundle, saved, memory, namespace, filter)  # noqa: E731
        return make, tuple(fd for fd in (memory, namespace) if fd >= 0)

    def _make_again(self, bundle: Bundle, saved: Saved, memory: int, namespace: int, filter: Filter | None) -> Computer:
        """In the monitor: open everything, and take the state."""
        from mamushka.machine import shares, state
        from mamushka.machine.board import Board
        from mamushka.machine.computer import Computer, Interior
        from mamushka.machine.devices.virtio.rng import Rng
        from mamushka.machine.devices.virtio.vsock import Vsock
        from mamushka.machine.executors.kvm import KvmExecutor
        from mamushka.machine.layers import ROOT, files, plug
        from mamushka.machine.past import Past

        wired, resolver = self._join(namespace, bundle)
        board = Board(KvmExecutor(), state.private_memory(saved, memory), vcpus=len(saved.vcpus))
        os.close(memory)
        vsock = Vsock()
        board.add("vsock", vsock)
        board.add("rng", Rng())
        links = _plug(board, wired, board.machine.memory, saved.labels)
        assert self._disk is not None
        plug(board, bundle.disks, self._disk)  # the same disks in the same order; they are mounted already
        past = Past.of(saved.labels)
        written, sources = files(bundle, past.files if past is not None else {})
        interior = Interior(
            _own(shares.local(bundle.config)), ROOT, tuple(written), sources, links, filter, resolver,
            tuple(wire.mac for wire in wired), _writable(bundle),
        )  # fmt: skip
        computer = Computer(board, vsock, interior, saved=saved)
        computer.enter_again()
        trace.event("machine.restored", memory=board.machine.memory.size)
        return computer

    def _join(self, namespace: int, bundle: Bundle) -> tuple[tuple[Wire, ...], tuple[int, ...]]:
        """(a wire for each interface of the network, sockets for who answers for names in it)."""
        from mamushka.machine import shares

        wired = self._wires(namespace) if self._wires is not None and namespace >= 0 else ()
        return wired, self._resolver(namespace, shares.content(bundle, "/etc/resolv.conf")) if wired else ()

    def forget(self) -> None:
        """See ``runtime.Maker``: all of them, because what made one useless may be of the host."""
        from mamushka.machine.warm import Shelf, place

        Shelf(place(self._cache)).prune()

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
        boot: _Boot,
        shape: Shape,
        namespace: int,
        filter: Filter | None,
        shelf: Shelf | None,
    ) -> Guest:
        """In the monitor: open everything."""
        if bundle.disks.images:
            return self._make_layered(record, bundle, boot, shape, namespace, filter, shelf)
        from mamushka.machine import shares
        from mamushka.machine.board import Board, ram
        from mamushka.machine.computer import Computer, Interior
        from mamushka.machine.devices.virtio.fs import Fs, Share, Virtiofsd
        from mamushka.machine.devices.virtio.rng import Rng
        from mamushka.machine.devices.virtio.vsock import Vsock
        from mamushka.machine.executors.kvm import KvmExecutor

        place = record.path
        # The last look at the host's own paths; what follows happens in a mount namespace of our own.
        wired, asked = self._join(namespace, bundle)
        executor = KvmExecutor()
        bundle = replace(bundle, config=shares.local(bundle.config))
        key = _key(boot, shape, wired) if shelf is not None else ""
        warm = shelf.take(key) if shelf is not None else None
        memory = ram(shape.memory) if warm is None else warm.memory(shared=True)
        board = Board(executor, memory, vcpus=shape.cpus)
        vsock = Vsock()
        board.add("vsock", vsock)
        tree, inside, sources = shares.tree(place, bundle, root)
        board.add("fs", Fs(shares.TAG, Virtiofsd(Share(tree), f"{place}/served"), memory))
        board.add("rng", Rng())
        links = _plug(board, wired, memory, {} if warm is None else warm.saved.labels)
        interior = Interior(_own(bundle.config), inside, (shares.step(),), sources, links, filter, asked)
        computer = Computer(board, vsock, interior, saved=None if warm is None else warm.saved)
        if warm is None or shelf is None:
            _come_up(computer, boot, board, wired, shelf, key, len(board.transports))
        else:
            _go_on(computer, warm, shelf)
        return computer

    def _make_layered(
        self,
        record: Record,
        bundle: Bundle,
        boot: _Boot,
        shape: Shape,
        namespace: int,
        filter: Filter | None,
        shelf: Shelf | None,
    ) -> Guest:
        """``_make`` of a machine that mounts its layers itself: what tells its image from others is plugged in late."""
        from mamushka.machine import layers, shares
        from mamushka.machine.board import Board, ram
        from mamushka.machine.computer import Computer, Interior
        from mamushka.machine.devices.virtio.rng import Rng
        from mamushka.machine.devices.virtio.vsock import Vsock
        from mamushka.machine.executors.kvm import KvmExecutor

        assert self._disk is not None
        wired, asked = self._join(namespace, bundle)
        executor = KvmExecutor()
        bundle = replace(bundle, config=shares.local(bundle.config))
        shared = shares.shared(bundle)
        places, seen = layers.kind(bundle.disks, shared=shared)
        key = _key(boot, shape, wired, ("vsock", "rng", *seen)) if shelf is not None else ""
        warm = shelf.take(key) if shelf is not None else None
        # Its own pages, where nobody else is to be given them: nothing is copied before the guest writes.
        memory = ram(shape.memory) if warm is None else warm.memory(shared=shared)
        board = Board(executor, memory, vcpus=shape.cpus)
        vsock = Vsock()
        board.add("vsock", vsock)
        board.add("rng", Rng())
        links = _plug(board, wired, memory, {} if warm is None else warm.saved.labels)
        cards = tuple(wire.mac for wire in wired)
        found, steps = layers.plug(board, bundle.disks, self._disk)
        written, sources = layers.files(bundle)
        if shared:
            further, sources = _share(board, record.path, bundle, memory, sources)
            steps += further
        steps += written
        interior = Interior(
            _own(bundle.config), layers.ROOT, tuple(steps), sources, links, filter, asked, cards, _writable(bundle),
            tuple(found),
        )  # fmt: skip
        computer = Computer(board, vsock, interior, saved=None if warm is None else warm.saved)
        if warm is None or shelf is None:
            _come_up(computer, boot, board, wired, shelf, key, board.early_transports + places)
        else:
            _go_on(computer, warm, shelf)
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


@value
class _Boot:
    """What a machine comes up from."""

    kernel: Kernel
    first: int  # the descriptor of the first file system
    command_line: bytes

    def load(self, board: Board, places: int) -> Entry:
        """Into memory; see ``Board.boot``. There are places for cards to come."""
        import mmap

        from mamushka.machine.board import SPARE

        archive = mmap.mmap(self.first, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        archives = (memoryview(archive),)
        return board.boot(self.kernel.image, command_line=self.command_line, initramfs=archives, places=places + SPARE)


def _share(
    board: Board, place: str, bundle: Bundle, memory: Memory, sources: Mapping[str, str]
) -> tuple[list[bytes], Mapping[str, str]]:
    """Plug in, late, what is bound of the host's: (steps, sources with these)."""
    from mamushka.machine import layers, shares
    from mamushka.machine.devices.virtio.fs import Fs, Share, Virtiofsd

    tree, _, bound = shares.tree(place, bundle, -1)
    board.add("fs", Fs(shares.TAG, Virtiofsd(Share(tree), f"{place}/served"), memory), late=True)
    return [layers.bind(board, "fs"), shares.step()], {**sources, **bound}


def _key(boot: _Boot, shape: Shape, wired: tuple[Wire, ...], fixed: tuple[str, ...] = ("vsock", "fs", "rng")) -> str:
    """Of the machines that are the same until they are told what they are for."""
    from mamushka.machine.board import SPARE
    from mamushka.machine.warm import key_of, stamp

    devices = (*fixed, *(f"net {wire.mtu}" for wire in wired), f"spare {SPARE}")
    line = boot.command_line.decode(errors="replace")
    first = stamp(f"/proc/self/fd/{boot.first}")
    return key_of((stamp(boot.kernel.image), first, line, str(shape.cpus), str(shape.memory), *devices))


def _come_up(
    computer: Computer, boot: _Boot, board: Board, wired: tuple[Wire, ...], shelf: Shelf | None, key: str, places: int
) -> None:  # fmt: skip
    """From its kernel; and where others may go on from it, it is written down on the way. ``places``: Board.boot."""
    trace.event("machine.cold", kernel=boot.kernel.version)
    blank = shelf.begin(key) if shelf is not None else None
    if blank is not None:
        computer.keep(blank, {f"net{number}": wire.mac.hex() for number, wire in enumerate(wired)})
    computer.enter_at(boot.load(board, places))


def _go_on(computer: Computer, warm: Warm, shelf: Shelf) -> None:
    """From where another one stood. One that does not fit this host is forgotten: who waits tries again, cold."""
    from mamushka.machine.control import Stale

    try:
        computer.enter_again()
    except (MamushkaError, OSError) as error:
        shelf.drop(warm.key)
        raise Stale(
            f"the saved machine {warm.key} cannot go on here: {error}", hint="it is forgotten now: try again"
        ) from error
    finally:
        warm.close()
    trace.event("machine.warm", key=warm.key)


def _plug(board: Board, wired: tuple[Wire, ...], memory: Memory, labels: Mapping[str, str]) -> tuple[bytes, ...]:
    """A card for each wire; the guest's settings of them. A guest that goes on knows them by other addresses."""
    if not wired:
        return ()
    from mamushka.machine.devices.virtio.net import Net
    from mamushka.machine.past import card

    for number, wire in enumerate(wired):
        board.add(f"net{number}", Net(wire.tap, wire.mac, wire.mtu, memory=memory))
    return tuple(wire.link(card(labels, number, wire.mac)) for number, wire in enumerate(wired))


def _writable(bundle: Bundle) -> tuple[int, ...]:
    """What the machine writes to, for whoever copies it when the machine is saved."""
    return (os.open(bundle.disks.top, os.O_RDONLY | os.O_CLOEXEC),) if bundle.disks.images else ()


def _own(config: Config) -> Config:
    """The bundle as the guest is to make it: a privileged one's devices are the guest's own."""
    from mamushka.machine.agent.settings import EVERY

    return replace(config, linux=replace(config.linux, devices=EVERY if config.linux.devices else ()))


def preload() -> None:
    """Import all that a monitor needs, before it is forked: afterwards each would pay for it, in time and memory."""
    import mamushka.machine.agent
    import mamushka.machine.agent.program
    import mamushka.machine.board
    import mamushka.machine.boot.command_line
    import mamushka.machine.boot.kernels
    import mamushka.machine.cage
    import mamushka.machine.cards
    import mamushka.machine.computer
    import mamushka.machine.creation
    import mamushka.machine.devices.virtio.block
    import mamushka.machine.devices.virtio.fs
    import mamushka.machine.devices.virtio.pmem
    import mamushka.machine.devices.virtio.rng
    import mamushka.machine.devices.virtio.vsock
    import mamushka.machine.executors.kvm
    import mamushka.machine.kit
    import mamushka.machine.layers
    import mamushka.machine.monitor
    import mamushka.machine.shape
    import mamushka.machine.shares
    import mamushka.machine.warm  # noqa: F401
