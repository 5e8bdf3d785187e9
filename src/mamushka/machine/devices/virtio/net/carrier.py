"""Frames between a tap and two rings, moved by the kernel: vhost-net. This process sees none of them."""

from __future__ import annotations

import os

from mamushka.errors import Unsupported
from mamushka.linux import vhost
from mamushka.machine.devices.virtio.frontend import Calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.machine.devices.virtio.queue import Queue
    from mamushka.machine.loop import Loop
    from mamushka.machine.memory import Memory


class Carrier:
    """One descriptor of /dev/vhost-net, which it owns."""

    def __init__(self, fd: int, memory: Memory) -> None:
        self._fd, self._memory = fd, memory
        self._running: tuple[Queue, ...] = ()
        self._calls: Calls | None = None
        features = vhost.vhost_number()
        vhost.VHOST_GET_FEATURES(fd, features)
        self.features = features.value

    @property
    def running(self) -> bool:
        """Whether it has the rings."""
        return bool(self._running)

    def start(self, tap: int, queues: Sequence[Queue], features: int, loop: Loop) -> None:
        """Hand over the two rings: what the driver agreed to and vhost knows is vhost's, the rest the tap's."""
        self._calls = Calls(loop)
        vhost.VHOST_SET_FEATURES(self._fd, vhost.vhost_number(value=features & self.features))
        regions = [(region.start, region.length, region.hva) for region in self._memory]
        if len(regions) > vhost.REGIONS_MAX:
            raise Unsupported(
                f"memory of {len(regions)} parts is too much for vhost-net: at most {vhost.REGIONS_MAX}",
                hint="sudo modprobe -r vhost_net vhost; sudo modprobe vhost max_mem_regions=509",
            )
        vhost.VHOST_SET_MEM_TABLE(self._fd, vhost.memory_table(regions))
        for index, queue in enumerate(queues):
            if queue.depth:
                self._ring(index, queue, self._calls)
                vhost.VHOST_NET_SET_BACKEND(self._fd, vhost.vhost_vring_file(index=index, fd=tap))
                queue.carried = True
        self._running = tuple(queues)

    def _ring(self, index: int, queue: Queue, calls: Calls) -> None:
        table, available, used = (self._hva(gpa) for gpa in queue.addresses)
        base, _ = queue.save()
        vhost.VHOST_SET_VRING_NUM(self._fd, vhost.vhost_vring_state(index=index, num=queue.depth))
        vhost.VHOST_SET_VRING_BASE(self._fd, vhost.vhost_vring_state(index=index, num=base))
        places = vhost.vhost_vring_addr(
            index=index, desc_user_addr=table, used_user_addr=used, avail_user_addr=available
        )
        vhost.VHOST_SET_VRING_ADDR(self._fd, places)
        vhost.VHOST_SET_VRING_CALL(self._fd, vhost.vhost_vring_file(index=index, fd=calls.of(queue.line)))
        vhost.VHOST_SET_VRING_KICK(self._fd, vhost.vhost_vring_file(index=index, fd=queue.bell))

    def _hva(self, gpa: int) -> int:
        """Where this process has it; a queue lies in memory, or it would not be one."""
        region = next(region for region in self._memory if region.start <= gpa < region.end)
        return region.hva + gpa - region.start

    def stop(self) -> None:
        """Take the rings back."""
        running, self._running = self._running, ()
        for index, queue in enumerate(running):
            if queue.depth:
                vhost.VHOST_NET_SET_BACKEND(self._fd, vhost.vhost_vring_file(index=index, fd=-1))
                state = vhost.vhost_vring_state(index=index)
                vhost.VHOST_GET_VRING_BASE(self._fd, state)
                queue.restore(state.num, queue.used_index())
        if self._calls is not None:
            self._calls.close()
            self._calls = None

    def close(self) -> None:
        """Give it back."""
        os.close(self._fd)
