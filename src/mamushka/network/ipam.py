"""Which subnet a network gets, and which address an endpoint: pure functions over what is taken already."""

from __future__ import annotations

from mamushka.errors import Conflict, Invalid
from mamushka.network.address import Subnet, pack, parse, parse_subnet, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

# Each pool is cut into subnets of the prefix beside it; Docker's defaults, so that nobody's habits break.
DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    *((f"172.{second}.0.0/16", 16) for second in range(17, 32)),
    ("192.168.0.0/16", 20),
)


def choose_subnet(used: Collection[Subnet], pools: Sequence[tuple[str, int]] = DEFAULT_POOLS) -> Subnet:
    """The first subnet of the pools that overlaps none in ``used`` (networks, and the host's own routes)."""
    for text, prefix in pools:
        pool = parse_subnet(text)
        if prefix < pool.prefix or prefix > pool.bits:
            raise Invalid(f"pool {text} cannot be cut into subnets of /{prefix}")
        step = 1 << pool.bits - prefix
        candidate = Subnet(pool.base, prefix, pool.bits)
        while candidate.base <= pool.last:
            hit = next((subnet for subnet in used if subnet.overlaps(candidate)), None)
            if hit is None:
                return candidate
            candidate = Subnet(_beyond(hit, candidate, step), prefix, pool.bits)
    raise Conflict(
        f"all address pools are used up by {len(used)} subnets",
        hint="remove networks that nobody uses (mamushka network prune) or name a subnet with --subnet",
    )


def _beyond(hit: Subnet, candidate: Subnet, step: int) -> int:
    """The first multiple of ``step`` from the candidate on that lies after ``hit``."""
    return candidate.base + -(-(hit.last + 1 - candidate.base) // step) * step


def first_host(subnet: Subnet) -> int:
    """The first address that an interface can have; the gateway's, where nobody says otherwise."""
    return subnet.base + (1 if subnet.prefix < subnet.bits - 1 else 0)


def last_host(subnet: Subnet) -> int:
    """The last address that an interface can have: in IPv4 not the broadcast address."""
    return subnet.last - (1 if subnet.bits == 32 and subnet.prefix < 31 else 0)


def allocate(
    subnet: Subnet,
    taken: Collection[int],
    *,
    requested: str = "",
    ip_range: Subnet | None = None,
    after: int = 0,
) -> str:
    """An address of the subnet that nobody has; ``taken`` holds the gateway too.

    Taken in turn from ``after``, the one given out last, so that an address rests before it comes back: the
    host's and the neighbours' memory of its last owner fades. Conflict when it is taken or none is left.
    """
    if requested:
        return _requested(subnet, taken, requested)
    low, high = first_host(subnet), last_host(subnet)
    if ip_range is not None:
        low, high = max(low, ip_range.base), min(high, ip_range.last)
    start = after + 1 if low <= after < high else low
    for begin, end in ((start, high), (low, start - 1)):
        candidate = begin
        while candidate <= end:
            if candidate not in taken:
                return unpack(candidate, subnet.bits)
            candidate += 1
    raise Conflict(
        f"subnet {ip_range or subnet} has no free address: {len(taken)} are taken",
        hint="remove workloads, or make a network with a larger subnet",
    )


def _requested(subnet: Subnet, taken: Collection[int], requested: str) -> str:
    address = parse(requested)
    if len(pack(requested)) * 8 != subnet.bits or address not in subnet:
        raise Invalid(f"address {requested} is not in the network's subnet {subnet}")
    if not first_host(subnet) <= address <= last_host(subnet):
        raise Invalid(f"address {requested} stands for the whole of {subnet}, not for one workload")
    if address in taken:
        raise Conflict(f"address {requested} is already in use")
    return unpack(address, subnet.bits)


def mac_of(address: str) -> str:
    """The MAC of an endpoint: 02:42 and the last four bytes of its address, as Docker's are."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + pack(address)[-4:])


def check_subnet(text: str, used: Iterable[Subnet]) -> Subnet:
    """A subnet that a user names. Conflict where it overlaps one in use, Invalid where nothing fits into it."""
    subnet = parse_subnet(text)
    if last_host(subnet) - first_host(subnet) < 1:
        raise Invalid(f"subnet {subnet} has no room for a gateway and a workload")
    for other in used:
        if subnet.overlaps(other):
            raise Conflict(f"subnet {subnet} overlaps {other}, which is in use on this host")
    return subnet
