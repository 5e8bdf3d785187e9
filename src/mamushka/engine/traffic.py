"""What a workload has received and sent: the counters of its links, as a process of its own sees them."""

from __future__ import annotations

from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.runtime import Stats


def counted(text: str) -> tuple[int, int]:
    """Bytes received and sent over all links but the loopback, from the lines of /proc/PID/net/dev. proc(5)."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, counters = line.rpartition(":")
        fields = counters.split()
        if name.strip() != "lo" and len(fields) >= 9 and (fields[0] + fields[8]).isdecimal():
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def add(stats: Stats, pid: int) -> Stats:
    """The use with its traffic; without where the process has just ended."""
    try:
        with open(f"/proc/{pid}/net/dev") as file:
            return count(stats, file.read())
    except OSError:  # EINVAL too: a process that is ending has no namespaces
        return stats


def count(stats: Stats, text: str) -> Stats:
    """The use with the traffic that these lines tell."""
    received, sent = counted(text)
    return replace(stats, net_received=received, net_sent=sent)
