"""Networks as the engine keeps them: what exists, who is in it, which addresses are taken."""

from __future__ import annotations

from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mamushka.engine.workload import Connection


@value
class NetworkSummary:
    """One network."""

    id: str
    name: str
    driver: str  # bridge | host | null
    created: float
    subnet: str = ""  # "172.18.0.0/16"
    gateway: str = ""
    subnet6: str = ""
    gateway6: str = ""
    internal: bool = False
    interface: str = ""  # the bridge's name on the host
    labels: Mapping[str, str] = EMPTY
    options: Mapping[str, str] = EMPTY
    members: Mapping[str, Connection] = EMPTY  # running workloads by id


class Networks:
    """All networks of this host; bridge, host and none always exist."""

    def create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        subnet: str = "",
        gateway: str = "",
        ip_range: str = "",
        subnet6: str = "",
        internal: bool = False,
        labels: Mapping[str, str] = EMPTY,
        options: Mapping[str, str] = EMPTY,
    ) -> NetworkSummary:
        """A new network; without a subnet the next free one of the pools."""
        raise NotImplementedError

    def get(self, identifier: str) -> NetworkSummary:
        """By name, id or unique prefix."""
        raise NotImplementedError

    def networks(self, *, filters: Mapping[str, Sequence[str]] | None = None) -> list[NetworkSummary]:
        """All of them."""
        raise NotImplementedError

    def remove(self, identifier: str) -> None:
        """Conflict while workloads are in it, or for the three that always exist."""
        raise NotImplementedError

    def connect(self, network: str, workload: str, *, aliases: Sequence[str] = (), address: str = "") -> None:
        """Put a workload, running or not, into one more network."""
        raise NotImplementedError

    def disconnect(self, network: str, workload: str, *, force: bool = False) -> None:
        """Take it out again."""
        raise NotImplementedError

    def prune(self, *, filters: Mapping[str, Sequence[str]] | None = None) -> list[str]:
        """Remove user-made networks that nobody is in; their names."""
        raise NotImplementedError
