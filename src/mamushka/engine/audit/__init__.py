"""``audit``: a probe behind a wall tries what an attacker would, and the auditor says what it reached.

The auditor plants canaries on the host (canaries.py), writes the probe (attempts.py, and one file for each axis), has
it run as the first process of a fresh workload, reads what it tells, and judges. The probe is an executable of system
calls that needs nothing of the image, so it also runs under other people's engines: ``Audit`` is the half without one.
"""

from __future__ import annotations

import os

from mamushka.engine.audit import files, network, privileges, processes, secrets
from mamushka.engine.audit.attempts import Attempts
from mamushka.engine.audit.attempts import parse as outcomes
from mamushka.engine.audit.canaries import Canaries
from mamushka.engine.audit.janitor import LABEL, Janitor
from mamushka.engine.audit.probe import AXES, Ground, Seen
from mamushka.engine.audit.report import Finding, Report, finding
from mamushka.engine.runtimes import NAMES, obstacle
from mamushka.engine.settings import Mount
from mamushka.errors import MamushkaError, NotFound, Unavailable
from mamushka.network.address import parse, parse_subnet
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mamushka.engine.attach import Attached
    from mamushka.engine.engine import Engine
    from mamushka.engine.networks import NetworkRow
    from mamushka.engine.settings import Settings

__all__ = ["AXES", "PROBES", "Audit", "Finding", "Report", "audit", "runtimes"]

INSIDE = "/dev/mamushka-probe"  # /dev is the workload's own memory, so a place can be made in any image
# Descriptors first, while the probe has opened none.
PROBES = (*files.PROBES, *network.PROBES, *secrets.PROBES, *privileges.PROBES, *processes.PROBES)

_TOLD_MAX = 8 << 20  # some hundred steps of 16 KiB at most
_PATIENCE = 60.0  # a probe takes a second; behind slow emulation perhaps some
_ADDRESSES_MAX = 8


class Audit:
    """Canaries, and a probe that looks for them; a context manager that takes both away.

    ``write`` makes the executable at ``probe``, to be run behind any wall; ``judge`` reads what it wrote there.
    """

    def __init__(
        self, directory: str, *, mounts: tuple[Mount, ...] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._canaries = Canaries(directory)
        self._mounts = mounts
        self._environment = tuple(f"{name}={item}" for name, item in (environment or {}).items())
        self._attempts = Attempts()
        self._ground: Ground | None = None

    def __enter__(self) -> Audit:
        self._canaries.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._canaries.__exit__(*exc)

    @property
    def probe(self) -> str:
        """The executable's path."""
        return self._canaries.probe

    def write(
        self,
        networks: Sequence[NetworkRow] = (),
        neighbours: tuple[str, ...] = (),
        shim: str = "",
        *,
        machine: bool = False,
    ) -> None:
        """Write the probe, for a workload that will be in these networks, with the host's addresses as they are now."""
        gateways = tuple(row.gateway for row in networks if row.gateway)
        subnets = [parse_subnet(row.subnet) for row in networks if row.subnet]
        self._ground = Ground(
            self._canaries,
            self._mounts,
            self._environment,
            addresses=tuple(dict.fromkeys((*gateways, *_addresses())))[:_ADDRESSES_MAX],
            private=tuple(text for text in network.PRIVATE if not any(parse(text) in subnet for subnet in subnets)),
            neighbours=neighbours[:_ADDRESSES_MAX],
            disk=_disk(),
            shim=shim,
            machine=machine,
        )
        for probe in PROBES:
            probe.attempt(self._attempts, self._ground)
        fd = os.open(self.probe, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            self._attempts.write(fd)
        finally:
            os.close(fd)

    def judge(self, told: bytes) -> tuple[Finding, ...]:
        """What it reached. Unavailable where it did not come to its end, Invalid where what it told is no record."""
        assert self._ground is not None
        seen = Seen(outcomes(told, self._attempts), heard=self._canaries.heard())
        return tuple(finding(probe, seen, self._ground) for probe in PROBES)


def audit(
    engine: Engine,
    settings: Settings,
    *,
    environment: Mapping[str, str] | None = None,
    create: Callable[[Settings], str] | None = None,
) -> Report:
    """Run the probe as such a workload, whose command it replaces, and judge. ``environment`` is the caller's own."""
    mark = os.urandom(8).hex()
    directory = f"{engine.paths.run}/audit-{mark}"
    with Janitor(engine, mark), Audit(directory, mounts=settings.mounts, environment=environment) as found:
        asked = replace(
            settings,
            command=(INSIDE,),
            entrypoint=(),
            mounts=(*settings.mounts, Mount("bind", INSIDE, found.probe, read_only=True)),
            remove=True,  # also when the auditor is killed
            log_driver="none",
            labels={**settings.labels, LABEL: mark},
        )
        id = (create or engine.create)(asked)
        try:
            runtime = engine.inspect(id).runtime
            networks = _networks(engine, settings)
            found.write(
                networks, _neighbours(engine, networks), engine.paths.socket(id), machine=runtime != "container"
            )
            attached = engine.start(id, attach=True)
            assert attached is not None
            with attached:
                findings = found.judge(_listen(attached))
        finally:
            _remove(engine, id)
    return Report(runtime, settings.image, findings)


def runtimes() -> dict[str, str]:
    """Every wall, and why it cannot be had here; nothing where it can."""
    return {name: obstacle(name) for name in NAMES}


def _listen(attached: Attached) -> bytes:
    """What the probe writes until it ends, bounded in size and time: it is watched, not trusted."""
    import select
    from time import monotonic

    told, said = bytearray(), bytearray()
    deadline = monotonic() + _PATIENCE
    poll = select.poll()
    poll.register(attached.fileno(), select.POLLIN)
    while True:
        if not poll.poll(max(0.0, deadline - monotonic()) * 1000) or len(told) + len(said) > _TOLD_MAX:
            attached.kill(9)
            raise Unavailable(f"the probe did not end within {_PATIENCE:.0f} s, or told more than it could")
        stream, piece = attached.read()
        if not stream:
            return bytes(told)
        (told if stream == 1 else said).extend(piece)


def _remove(engine: Engine, id: str) -> None:
    try:
        engine.remove(id, force=True, volumes=True)
    except NotFound:
        pass  # its own end has removed it


def _networks(engine: Engine, settings: Settings) -> list[NetworkRow]:
    """The networks that the workload will be in."""
    found = []
    for attachment in settings.networks:
        try:
            found.append(engine.networks.find(attachment.network))
        except MamushkaError:
            pass  # container:ID
    return found


def _neighbours(engine: Engine, networks: Sequence[NetworkRow]) -> tuple[str, ...]:
    """The addresses of workloads that run in other networks than these."""
    own = {network.id for network in networks}
    return tuple(row.address for row in engine.networks.running() if row.address and row.network not in own)


def _addresses() -> list[str]:
    """The IPv4 addresses of this network namespace, without the loopback's. proc(5), net/ipv4/fib_trie.c."""
    found, last = [], ""
    with open("/proc/net/fib_trie") as file:
        for line in file:
            words = line.split()
            if words[:1] == ["|--"]:
                last = words[1]
            elif words[-2:] == ["host", "LOCAL"] and not last.startswith("127."):
                found.append(last)
    return list(dict.fromkeys(found))


def _disk() -> tuple[int, int]:
    """Major and minor number of a disk of this machine; zeros where there is none. proc(5)."""
    try:
        with open("/proc/partitions") as file:
            rows = [line.split() for line in file][2:]
    except OSError:
        return 0, 0
    return (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)
