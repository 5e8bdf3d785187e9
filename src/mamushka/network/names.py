"""The files by which a workload knows names: /etc/hosts and /etc/resolv.conf, made as Docker makes them."""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.network.address import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Where the responder of a user-made network listens, inside: Docker's address, which some programs know.
RESPONDER = "127.0.0.11"
# Where nothing else is known: public resolvers, as Docker falls back to.
FALLBACK4 = ("8.8.8.8", "8.8.4.4")

_LOCALHOST = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)


def hosts(own: Iterable[tuple[str, str]], extra: Sequence[str] = (), *, gateway: str = "", gateway6: str = "") -> str:
    """/etc/hosts: ``own`` pairs of address and names, then ``extra`` as "name:address" of the user's.

    The address ``host-gateway`` stands for the host as seen from inside.
    """
    lines = [_LOCALHOST]
    for entry in extra:
        name, separator, address = entry.partition("=" if "=" in entry else ":")
        if not separator or name.split() != [name]:
            raise Invalid(f"bad format for add-host: {entry!r}", hint="write it as name:address")
        addresses = [item for item in (gateway, gateway6) if item] if address == "host-gateway" else [address]
        if not addresses:
            raise Invalid(f"{entry!r}: host-gateway needs a network with a gateway")
        for item in addresses:
            bare = item.removeprefix("[").removesuffix("]")
            pack(bare)
            lines.append(f"{bare}\t{name}\n")
    lines += (f"{address}\t{names}\n" for address, names in own)
    return "".join(lines)


def nameservers(text: str) -> list[str]:
    """The resolvers of a resolv.conf, in order."""
    return [words[1] for words in map(str.split, text.splitlines()) if len(words) > 1 and words[0] == "nameserver"]


def reachable(servers: Sequence[str], *, ipv6: bool = False) -> list[str]:
    """Those that a workload with an address of its own reaches: not on the host's loopback."""
    found = [server for server in servers if not _is_loopback(server) and (ipv6 or ":" not in server)]
    return found or list(FALLBACK4)


def _is_loopback(server: str) -> bool:
    return server.startswith("127.") or server == "::1"


def resolv_conf(
    host: str,
    *,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    responder: bool = False,
    ipv6: bool = False,
) -> str:
    """/etc/resolv.conf, from the host's text and what the user sets instead; ``search`` "." clears the list.

    With the responder it is the only server: it knows the network's names and asks the others itself.
    """
    kept = [line for line in host.splitlines() if line.split()[:1] in (["search"], ["domain"], ["options"])]
    if search:
        kept = [line for line in kept if not line.startswith(("search", "domain"))]
        if list(search) != ["."]:
            kept.append("search " + " ".join(search))
    if options:
        kept = [line for line in kept if not line.startswith("options")]
        kept.append("options " + " ".join(options))
    elif responder:
        # A name of one label is first a workload's: without ndots:0 a search list would be tried before it.
        kept = [line for line in kept if not line.startswith("options")] + ["options ndots:0"]
    chosen = [RESPONDER] if responder else list(servers) or reachable(nameservers(host), ipv6=ipv6)
    for server in chosen:
        pack(server)
    for word in (*search, *options):
        if word.split() != [word]:
            raise Invalid(f"{word!r} cannot stand in resolv.conf: a word without spaces is needed")
    return "".join(f"{line}\n" for line in (*(f"nameserver {server}" for server in chosen), *kept))
