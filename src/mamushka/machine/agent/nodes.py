"""The devices of a guest's own kernel, for a container that is to have all of them: its devtmpfs has their nodes."""

from __future__ import annotations

import stat

from mamushka.errors import GuestFault
from mamushka.machine.agent import words
from mamushka.machine.agent.settings import EVERY
from mamushka.spec.runtime import Device
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.machine.agent import Agent
    from mamushka.spec.runtime import Config

# A distribution's kernel with all that a machine can have plugged in makes some hundreds.
_MOST = 4096
# Terminals and shared memory are the container's own, as with the other wall (engine/limits.py).
_LEFT_OUT = ("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx")


def equipped(config: Config, agent: Agent) -> Config:
    """The bundle with the devices that it means by EVERY. GuestFault where the guest tells of more than can be."""
    if config.linux.devices != EVERY:
        return config
    return replace(config, linux=replace(config.linux, devices=tuple(_all(agent))))


def _all(agent: Agent) -> Iterator[Device]:
    waiting, seen = ["/dev"], 0
    while waiting:
        directory = waiting.pop()
        for item in agent.list_files(directory)[1:]:
            path, mode = f"{directory}/{item.text(words.K_NAME)}", item.number(words.K_MODE)
            seen += 1
            if seen > _MOST:
                raise GuestFault(f"the guest's agent told of more than {_MOST} names in /dev")
            if path in _LEFT_OUT:
                continue
            if stat.S_ISDIR(mode):
                waiting.append(path)
            elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                number = item.number(words.K_DEVICE)
                kind = "b" if stat.S_ISBLK(mode) else "c"
                owner = item.number(words.K_UID), item.number(words.K_GID)
                yield Device(path, kind, number >> 32, number & 0xFFFFFFFF, stat.S_IMODE(mode), *owner)
