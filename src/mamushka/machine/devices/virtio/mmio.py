"""The transport of virtio devices without a bus of their own: a page of registers, version 2. VIRTIO 1.2, section 4.2.

What can be read lies in a page of memory and changes only by writes and by the device; so a read costs no thought,
and an executor shows the guest this very page as read-only memory (``attach``): then reads are no exits at all, and
writes are as before.

An interrupt costs Linux two accesses: it reads InterruptStatus, and writes what it read to InterruptACK. A back end in
the kernel fires the line without our knowledge, so nobody could set the bit "a queue was used" in time. While a device
runs it is therefore always set: a driver looks at its rings and finds what there is, which may be nothing. The bit
"configuration changed" is exact. An acknowledgement of the first bit alone then means nothing and may end in an
eventfd that nobody hears (``doorbells``): with both, neither bell nor interrupt comes to this process but for the work.

    thread              owns
    loop                the device, its queues; starting, stopping, configuration. Waited for by the writer
    virtual CPUs        selectors, features, addresses of queues: under the lock, which is never held while waiting

A status that the driver sets in order, as a table. A bit that has no place in the current state is not taken, which
the driver sees when it reads the status; zero is a reset from everywhere.
"""

from __future__ import annotations

import os
import threading
from struct import Struct

from mamushka import trace
from mamushka.errors import GuestFault, Invalid
from mamushka.linux.memory import MAP_SHARED, PROT_READ, PROT_WRITE, memfd, mmap, munmap, view_of
from mamushka.machine.devices.virtio.queue import EVENT_IDX, INDIRECT_DESC, Queue, Unused
from mamushka.machine.memory import DEVICE, PAGE, Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mamushka.machine.bus import Bus
    from mamushka.machine.devices.virtio.device import Device
    from mamushka.machine.loop import Loop
    from mamushka.machine.memory import Memory
    from mamushka.machine.vcpu import Executor, Line

# 4.2.2, table 4.1. All registers are 32 bits wide.
MAGIC, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x010, 0x014, 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x080, 0x090, 0x0A0  # low; high at + 4
SHM_LEN, SHM_BASE, CONFIG_GENERATION, CONFIG = 0x0B0, 0x0B8, 0x0FC, 0x100

USED_BUFFER, CONFIG_CHANGED = 1, 2  # InterruptStatus
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED = 1, 2, 4, 8, 128  # Status, 2.1
VERSION_1 = 32  # the feature without which there is nothing in common
VENDOR = 0x554D4D4D  # "MMMU"

# 3.1.1: {state: {bit: state}}. Bits that come at once are taken in this order.
ORDER = (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, FAILED)
LIFE: dict[str, dict[int, str]] = {
    "reset": {ACKNOWLEDGE: "acknowledged", FAILED: "failed"},
    "acknowledged": {DRIVER: "driven", FAILED: "failed"},
    "driven": {FEATURES_OK: "agreed", FAILED: "failed"},
    "agreed": {DRIVER_OK: "running", FAILED: "failed"},
    "running": {FAILED: "failed"},
    "failed": {},
}

_U32 = Struct("<I")
_SAVED = Struct("<HHIQIIIII")  # version, queues, status, features, three selectors, interrupt, generation
_SAVED_QUEUE = Struct("<IIQQQHH")  # depth, ready, three addresses, two counters
SAVED_VERSION = 1


class _Setup:
    """What the driver has written about one queue."""

    __slots__ = ("addresses", "depth", "ready")

    def __init__(self) -> None:
        self.depth, self.ready = 0, 0
        self.addresses = {QUEUE_DESC: 0, QUEUE_DRIVER: 0, QUEUE_DEVICE: 0}


class Transport:
    """A device's registers on the memory bus, one page. Owns the device, its bells and the page."""

    length = PAGE

    def __init__(self, device: Device, memory: Memory, line: Line, loop: Loop) -> None:
        self.device, self._memory, self._line, self._loop = device, memory, line, loop
        self._fd = memfd("mamushka-registers", PAGE)
        self._hva = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, self._fd, 0)
        self._page = view_of(self._hva, PAGE)
        self._registers = self._page.cast("I")  # one store each: ``struct`` would clear it before it fills it
        self.bells = tuple(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in device.queues)
        self._unheard = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._queues: tuple[Queue, ...] = ()  # of the loop's thread, as is all of the device
        self._window: Region | None = None
        self._lock = threading.Lock()  # guards the registers, below and in _clear
        self._generation = 0
        self._clear()
        for offset, value in (
            (MAGIC, 0x74726976),
            (VERSION, 2),
            (VENDOR_ID, VENDOR),
            (SHM_LEN, 0xFFFFFFFF),  # 4.2.2: no shared memory has the length -1
            (SHM_LEN + 4, 0xFFFFFFFF),
            (SHM_BASE, 0xFFFFFFFF),
            (SHM_BASE + 4, 0xFFFFFFFF),
        ):
            self._show(offset, value)
        self._present()

    def _present(self) -> None:
        """Show the device that stands here."""
        self.offered = self.device.features | 1 << VERSION_1 | 1 << EVENT_IDX | 1 << INDIRECT_DESC
        self._show_config()
        with self._lock:
            self._show_selected()
        self.device.changed = self._changed
        self.reveal()

    def _clear(self) -> None:
        """What a reset makes of the registers."""
        self.state, self._status, self._features = "reset", 0, 0
        self._features_sel = self._driver_sel = self._queue_sel = self._interrupt = 0
        self._setups = tuple(_Setup() for _ in self.device.queues)

    # The page

    def _show(self, offset: int, value: int) -> None:
        self._registers[offset // 4] = value

    def _show_selected(self) -> None:
        """What depends on the selectors and the status."""
        low = self.offered >> 32 * self._features_sel & 0xFFFFFFFF if self._features_sel < 2 else 0
        setup = self._setup()
        self._show(DEVICE_FEATURES, low)
        self._show(QUEUE_NUM_MAX, self.device.depth if setup else 0)
        self._show(QUEUE_READY, setup.ready if setup else 0)
        self._show(STATUS, self._status)
        self._show(INTERRUPT_STATUS, self._interrupt | (USED_BUFFER if self.state == "running" else 0))

    def _show_config(self) -> None:
        # A generation before and one after: who reads between sees one of them change, and an interrupt follows.
        config = self.device.config()
        assert len(config) <= PAGE - CONFIG, len(config)
        for step in (1, 2):
            self._generation = self._generation + 1 & 0xFFFFFFFF
            self._show(CONFIG_GENERATION, self._generation)
            if step == 1:
                self._page[CONFIG : CONFIG + len(config)] = config

    def hide(self) -> None:
        """Look like a place with nothing in it, which a driver passes by. 4.2.2: DeviceID zero."""
        self._show(DEVICE_ID, 0)

    def reveal(self) -> None:
        """Be there for whoever looks from now on."""
        self._show(DEVICE_ID, self.device.device_id)

    def read(self, offset: int, size: int) -> int:
        """What the page says."""
        return int.from_bytes(self._page[offset : offset + size], "little")

    # Writes

    def write(self, offset: int, size: int, value: int) -> None:
        """A register is changed. Returns when the change is done: a device has started when its Status was written."""
        if offset >= CONFIG:
            data = value.to_bytes(size, "little")
            self._loop.call(lambda: self._configure(offset - CONFIG, data))
        elif size != 4 or offset % 4:
            trace.event("virtio.unaligned", device=self.device.device_id, offset=offset, size=size)  # 4.2.2.2
        elif offset == QUEUE_NOTIFY:
            if value < len(self.bells):
                os.eventfd_write(self.bells[value], 1)
        elif offset == STATUS:
            self._loop.call(lambda: self._set_status(value))
        else:
            with self._lock:
                self._set(offset, value)
                self._show_selected()

    def _setup(self) -> _Setup | None:
        return self._setups[self._queue_sel] if self._queue_sel < len(self._setups) else None

    def _set(self, offset: int, value: int) -> None:
        if offset == DEVICE_FEATURES_SEL:
            self._features_sel = value
        elif offset == DRIVER_FEATURES_SEL:
            self._driver_sel = value
        elif offset == DRIVER_FEATURES:
            self._set_features(value)
        elif offset == QUEUE_SEL:
            self._queue_sel = value
        elif offset == INTERRUPT_ACK:
            self._interrupt &= ~value
        else:
            self._set_queue(offset, value)

    def _set_features(self, value: int) -> None:
        """3.1.1: settled once FEATURES_OK was taken."""
        if self._driver_sel < 2 and not self._status & FEATURES_OK:
            shift = 32 * self._driver_sel
            self._features = self._features & ~(0xFFFFFFFF << shift) | value << shift

    def _set_queue(self, offset: int, value: int) -> None:
        """4.2.2.2: where a queue lies is not changed while it is ready. One that does not exist has no registers."""
        setup = self._setup()
        if setup is None:
            return
        if offset == QUEUE_READY:
            setup.ready = value & 1
        elif setup.ready:
            trace.event("virtio.ready", device=self.device.device_id, offset=offset)
        elif offset == QUEUE_NUM:
            if value > self.device.depth:
                raise GuestFault(f"a queue of {value} descriptors, where at most {self.device.depth} were offered")
            setup.depth = value
        elif offset & ~4 in setup.addresses:
            shift = 8 * (offset & 4)
            register = offset & ~4
            setup.addresses[register] = setup.addresses[register] & ~(0xFFFFFFFF << shift) | value << shift

    # In the loop's thread

    def _configure(self, offset: int, data: bytes) -> None:
        self.device.configure(offset, data)
        self._show_config()

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
        with self._lock:
            for bit in ORDER:
                if value & bit & ~self._status:
                    self._take(bit)
            state = self.state
            self._show_selected()
        if state == "running" and not self._queues:
            self._start()

    def _take(self, bit: int) -> None:
        after = LIFE[self.state].get(bit)
        if after is None or (bit == FEATURES_OK and not self._agreed()):
            trace.event("virtio.status", device=self.device.device_id, state=self.state, bit=bit)
            return
        self.state = after
        self._status |= bit

    def _agreed(self) -> bool:
        """Whether the driver chose among what was offered, and speaks this version."""
        return bool(self._features >> VERSION_1 & 1) and not self._features & ~self.offered

    def _start(self, counters: tuple[tuple[int, int], ...] = ()) -> None:
        named = zip(self._setups, self.device.queues, strict=True)
        self._queues = tuple(self._queue(setup, name) for setup, name in named)
        for queue, bell in zip(self._queues, self.bells, strict=True):
            queue.bell = bell
        for queue, (next_available, next_used) in zip(self._queues, counters, strict=False):
            queue.restore(next_available, next_used)
        self.device.start(self._queues, self._features, self._loop)
        for index, queue in enumerate(self._queues):
            if queue.depth and not queue.carried:
                self._loop.watch(queue.bell, self._ear(index))
        trace.event("virtio.started", device=self.device.device_id, features=self._features)

    def _queue(self, setup: _Setup, name: str) -> Queue:
        if not setup.ready:
            return Unused(self._line)
        table, available, used = setup.addresses.values()
        where = f"queue {name} of virtio device {self.device.device_id}"
        return Queue(self._memory, setup.depth, table, available, used, self._features, self._line, where)

    def _ear(self, index: int) -> Callable[[int], None]:
        bell, notify = self.bells[index], self.device.notify

        def ring(_events: int) -> None:
            try:
                os.eventfd_read(bell)
            except BlockingIOError:
                return
            notify(index)

        return ring

    def _stop(self) -> None:
        if self._queues:
            for bell in self.bells:
                self._loop.forget(bell)
            self._queues = ()
            self.device.stop()

    def _reset(self) -> None:
        self._stop()
        with self._lock:
            self._clear()
            self._show_selected()
        self._show_config()

    def _changed(self) -> None:
        """The device says that its configuration is another now. 2.5.1: only who runs is told."""
        self._show_config()
        with self._lock:
            running = self.state == "running"
            if running:
                self._interrupt |= CONFIG_CHANGED
            self._show_selected()
        if running:
            self._line.fire()

    # For who builds a machine

    def attach(self, start: int, bus: Bus, executor: Executor) -> None:
        """Stand at ``start`` on the memory bus, with what the executor can do to spare exits: bells, and the page."""
        bus.attach(start, self.length, self, f"virtio {self.device.device_id}")
        for offset, size, value, fd in self.doorbells():
            executor.doorbell(start + offset, size, value, fd)
        self._window = Region(start, PAGE, fd=os.dup(self._fd), shared=True, writable=False, kind=DEVICE)
        executor.map(self._window)

    def exchange(self, device: Device) -> None:
        """Have another device of the same kind of queues here, which becomes ours; the one that was is closed.

        Its driver should have let go of it: to one that has not, it is as if the device had been reset.
        """
        assert len(device.queues) == len(self.device.queues)

        def swap() -> None:
            self._reset()
            before, self.device = self.device, device
            before.close()
            self._present()

        self._loop.call(swap)

    def doorbells(self) -> tuple[tuple[int, int, int, int], ...]:
        """(offset, size, value, eventfd) for ``Executor.doorbell``: these writes need not come as exits."""
        rings = tuple((QUEUE_NOTIFY, 4, index, bell) for index, bell in enumerate(self.bells))
        return (*rings, (INTERRUPT_ACK, 4, USED_BUFFER, self._unheard))

    def save(self) -> dict[str, bytes]:
        """Registers, rings' counters, and under ``device.`` what the device adds. While no virtual CPU runs."""
        return self._loop.call(self._save)

    def _save(self) -> dict[str, bytes]:
        own = self.device.save()  # first: it may fetch counters from other back ends
        selectors = self._features_sel, self._driver_sel, self._queue_sel
        head = SAVED_VERSION, len(self._setups), self._status, self._features, *selectors, self._interrupt
        parts = [_SAVED.pack(*head, self._generation)]
        queues = self._queues or tuple(Unused(self._line) for _ in self._setups)
        for setup, queue in zip(self._setups, queues, strict=True):
            parts.append(_SAVED_QUEUE.pack(setup.depth, setup.ready, *setup.addresses.values(), *queue.save()))
        return {"transport": b"".join(parts), **{f"device.{name}": data for name, data in own.items()}}

    def resume(self) -> None:
        """Go on, in a machine that was held still and perhaps saved."""
        self._loop.call(self.device.resume)

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take what ``save`` gave, in a fresh machine with the same memory. Invalid for another version or device."""
        self._loop.call(lambda: self._restore(state))

    def _restore(self, state: Mapping[str, bytes]) -> None:
        raw = state["transport"]
        count = len(self._setups)
        if (
            len(raw) != _SAVED.size + count * _SAVED_QUEUE.size
            or _U32.unpack_from(raw)[0] != SAVED_VERSION | count << 16
        ):
            raise Invalid(f"the state of virtio device {self.device.device_id} is another's: {len(raw)} bytes")
        self.device.restore({name[7:]: data for name, data in state.items() if name.startswith("device.")})
        counters = []
        with self._lock:
            _, _, status, self._features, *rest = _SAVED.unpack_from(raw)
            self._features_sel, self._driver_sel, self._queue_sel, self._interrupt, self._generation = rest
            for index, setup in enumerate(self._setups):
                saved = _SAVED_QUEUE.unpack_from(raw, _SAVED.size + index * _SAVED_QUEUE.size)
                setup.depth, setup.ready = saved[0], saved[1]
                setup.addresses = dict(zip((QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE), saved[2:5], strict=True))
                counters.append(saved[5:7])
            for bit in ORDER:
                if status & bit:
                    self._take(bit)
            self._show_selected()
        if self._status != status:
            raise Invalid(
                f"virtio device {self.device.device_id} cannot go on here: its driver uses the features"
                f" {self._features:#x}, of which {self._features & ~self.offered:#x} are not offered"
            )
        self._show_config()
        if self.state == "running":
            self._start(tuple(counters))
            for bell in self.bells:  # it may have been rung before, and not heard
                os.eventfd_write(bell, 1)

    def close(self) -> None:
        """Stop the device and give everything back, the device's too. When no virtual CPU and no loop runs any more."""
        self._stop()
        self.device.close()
        if self._window is not None:
            self._window.close()
        self._registers.release()
        self._page.release()
        munmap(self._hva, PAGE)
        for fd in (self._fd, self._unheard, *self.bells):
            os.close(fd)
