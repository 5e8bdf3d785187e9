"""The kernel's command line: what makes a guest quick and quiet, and what one machine adds.

Documentation/admin-guide/kernel-parameters.txt says what each means. Words of the caller come last: where a parameter
is given twice, Linux takes the later one.
"""

from __future__ import annotations

from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Nobody looks at a console of a machine that was not asked for one; without a driver's output boot is quicker too.
QUIET = ("quiet", "loglevel=1")
# A panic ends the machine; so does a reboot, by the triple fault that needs no device at all.
END = ("panic=-1", "reboot=t")
# Hardware that is not there is not looked for: no PCI bus is scanned, but pmem ranges need PCI (devices/pci).
# Of the keyboard controller the ACPI tables tell: not a port is touched.
ABSENT = ("pci=conf1,noearly", "8250.nr_uarts=1")
# Known good, so not measured or tested again at each boot.
KNOWN = ("tsc=reliable", "no_timer_check", "cryptomgr.notests", "random.trust_cpu=on")
# Boot is one long wait for grace periods otherwise; and no bounce buffers: every device sees all of memory.
FAST = ("rcupdate.rcu_expedited=1", "swiotlb=noforce")


def command_line(
    extra: Iterable[str] = (), *, console: str = "ttyS0", quiet: bool = True, init: Iterable[str] = ()
) -> bytes:
    """The whole line. ``init`` are words for the first process, which Linux hands on unread."""
    words = [*((f"console={console}",) if console else ()), *(QUIET if quiet else ()), *END, *ABSENT, *KNOWN, *FAST]
    words += extra
    behind = tuple(init)
    for word in (*words, *behind):
        if not word or "\n" in word or "\0" in word or word.count('"') % 2:
            raise Invalid(f"{word!r} is no word for a kernel's command line")
    return " ".join((*words, *(("--", *behind) if behind else ()))).encode()
