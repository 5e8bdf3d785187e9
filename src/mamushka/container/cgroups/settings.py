"""One write to one file of a cgroup, as data: the translators make a list of them, the cgroup executes it."""

from __future__ import annotations

from mamushka.errors import Invalid, Unsupported
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mamushka.spec.runtime import HugepageLimit, Memory, ThrottleDevice


# Controllers of cgroup v2 that every container gets where they are on offer, for its statistics.
ACCOUNTED = ("cpu", "io", "memory", "pids")


@value
class Setting:
    """``text`` into ``file``; where the kernel was built without that file, ``otherwise`` (file, text)."""

    controller: str
    file: str
    text: str
    otherwise: tuple[str, str] | None = None

    def describe(self) -> str:
        """As a person would type it."""
        return f"echo {self.text} > {self.file}"


def limit(number: int, unlimited: str) -> str:
    """A limit as the kernel reads it; what is negative is the hierarchy's word for no limit."""
    return unlimited if number < 0 else str(number)


def throttles(controller: str, file: str, key: str, devices: Iterable[ThrottleDevice]) -> list[Setting]:
    """One write for each block device: "8:0 1048576", or with a key "8:0 rbps=1048576"."""
    return [Setting(controller, file, f"{device.major}:{device.minor} {key}{device.rate}") for device in devices]


# include/linux/blk-cgroup.h: weights of v1 and of BFQ.
WEIGHT_MIN, WEIGHT_MAX = 10, 1000


def checked_weight(weight: int) -> int:
    """A blkio weight within the range that the specification and the kernel share."""
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise Invalid(f"the block I/O weight {weight} is outside {WEIGHT_MIN} to {WEIGHT_MAX}")
    return weight


def checked_swap(memory: Memory) -> None:
    """Memory and swap together hold at least the memory. Invalid where the specification's words contradict."""
    limit, swap = memory.limit or 0, memory.swap or 0
    if swap > 0 and limit <= 0:
        raise Invalid(f"memory and swap are limited to {swap} bytes together, memory alone is not limited",
                      hint="limit memory too")  # fmt: skip
    if swap > 0 and swap < limit:
        raise Invalid(f"memory and swap together are limited to {swap} bytes, memory alone to {limit}",
                      hint="the limit of both is at least that of memory")  # fmt: skip


def huge_pages(limits: Iterable[HugepageLimit], word: str) -> list[Setting]:
    """Of used and of reserved huge pages; before Linux 5.7 only those that are used can be limited."""
    result = []
    for page in limits:
        number, unit = page.page_size[:-2], page.page_size[-2:]
        if not (number.isascii() and number.isdigit() and unit in ("KB", "MB", "GB")):
            raise Invalid(
                f"{page.page_size!r} is not the size of a huge page", hint="64KB, 2MB, 1GB: see /sys/kernel/mm"
            )
        used = (f"hugetlb.{page.page_size}.{word}", str(page.limit))
        result.append(Setting("hugetlb", *used))
        result.append(Setting("hugetlb", f"hugetlb.{page.page_size}.rsvd.{word}", str(page.limit), used))
    return result


def checked_name(name: str, what: str) -> str:
    """A device's name as one word of one line."""
    if not name or not name.isprintable() or " " in name:
        raise Invalid(f"{name!r} is not the name of {what}")
    return name


def missing(controller: str, why: str) -> Unsupported:
    """The error for a limit that needs a controller which is not there."""
    return Unsupported(
        f"cannot limit {controller}: {why}",
        hint=f"mount or enable the {controller} controller (cgroups(7)), or leave the limit out",
    )
