"""Virtual CPUs and what runs them: an executor answers one question, run this one until it exits, and why did it?

``kvm`` runs them on the processor; ``translate`` and ``simulate`` in software. Memory, buses and devices are the same
objects for all of them: nothing outside of ``executors/`` knows KVM, and nothing in ``devices/`` an architecture.
"""

from __future__ import annotations

from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from mamushka.machine.bus import Place
    from mamushka.machine.memory import Region


# Why a virtual CPU stopped. Sizes are bytes; integers are little endian, as on the wire.


@value
class Read:
    """It waits for a value from the memory bus, or with ``port`` from the port bus: ``complete`` gives it."""

    address: int
    size: int
    port: bool = False


@value
class Write:
    """It wrote to a bus."""

    address: int
    size: int
    value: int
    port: bool = False


@value
class Halted:
    """It waits for an interrupt that the executor does not deliver by itself."""


@value
class Shutdown:
    """It has ended for good: a triple fault, or what the architecture calls so. x86 guests reboot this way."""


@value
class Reset:
    """The guest asked the firmware for an end. ``reboot`` tells whether it wants to begin again."""

    reboot: bool
    cause: str = ""


@value
class Interrupted:
    """Somebody asked for it: ``kick``, or a signal."""


BREAKPOINT, STEP, POINT = "breakpoint", "step", "point"


@value
class Debug:
    """It stopped for ``Vcpu.debug``: ``reason`` is BREAKPOINT (an instruction of that name, also a guest's own), STEP
    or POINT, with the ``point``'s place among those given. ``address`` is the guest-virtual one of the instruction."""

    address: int
    reason: str = ""
    point: int = -1


@value
class Stuck:
    """The executor cannot go on with this guest; ``detail`` are its own words, ``code`` the instruction's bytes."""

    reason: str
    detail: Mapping[str, int]
    code: bytes = b""


Exit = Read | Write | Halted | Shutdown | Reset | Interrupted | Debug | Stuck


EXECUTE, WRITE, ACCESS = "execute", "write", "access"


@value
class Point:
    """What the processor itself looks out for: an instruction at a guest-virtual address, or an access to ``length``
    bytes (1, 2, 4 or 8) there. The processor has few of them, x86 four."""

    kind: str
    address: int
    length: int = 1


@value
class Entry:
    """How the first virtual CPU begins. ``mode`` is a word of the architecture's; registers by their names.

    x86: ``long`` (64-bit, first GiB or more mapped by the tables at ``cr3``), ``protected`` (32-bit, flat, no paging),
    ``real`` (16-bit, segment bases zero). ``gdt`` is where its descriptor table lies in guest memory, and its content.
    """

    mode: str
    registers: Mapping[str, int]
    cr3: int = 0
    gdt: int = 0
    table: bytes = b""


if TYPE_CHECKING:

    class Line(Protocol):
        """An interrupt that can be raised from any thread."""

        fd: int  # an eventfd that raises it when it is written to, for back ends in the kernel or elsewhere; or -1

        def fire(self) -> None:
            """Raise it once."""

    class Vcpu(Protocol):
        """One virtual CPU; all calls but ``kick`` are made by the one thread that owns it."""

        index: int

        def run(self) -> Exit:
            """Let the guest run until it exits."""

        def complete(self, value: int) -> None:
            """Answer the last exit, a Read; the guest sees it with the next ``run``."""

        def kick(self) -> None:
            """Make ``run`` return Interrupted soon; the next one, where it is not running. From any thread."""

        def enter(self, entry: Entry) -> None:
            """Take the state in which the first one begins."""

        def registers(self) -> dict[str, int]:
            """The general registers by the architecture's names, instruction pointer and flags among them."""

        def set_registers(self, registers: Mapping[str, int]) -> None:
            """Change some of them."""

        def system_registers(self) -> dict[str, int]:
            """What else a debugger shows: segments, control registers, bases."""

        def translate(self, address: int) -> int:
            """The guest-physical address behind a guest-virtual one, by its page tables as they are now.

            NotFound where nothing is mapped."""

        def debug(
            self, active: bool, *, step: bool = False, points: tuple[Point, ...] = (), inject: bool = False
        ) -> None:
            """From the next ``run`` on, stop with Debug at breakpoint instructions, ``points`` and, with ``step``,
            after one instruction; replaces what was asked for before, and ``active=False`` ends it.

            ``inject``: the breakpoint instruction it has stopped at is the guest's own, let the guest have it.
            Unsupported where the executor or the processor cannot."""

        def save(self) -> dict[str, bytes]:
            """All of its state, by parts; the machine is paused."""

        def restore(self, state: Mapping[str, bytes]) -> None:
            """Take a state that ``save`` gave, in a fresh machine with the same memory."""

        def close(self) -> None:
            """Give its resources back."""

    class Executor(Protocol):
        """What runs a machine's virtual CPUs. One for each machine; it owns what the host's kernel keeps for it."""

        name: str

        @property
        def places(self) -> tuple[Place, ...]:
            """What it adds to the memory bus: interrupt controllers of its own."""

        def map(self, region: Region) -> None:
            """Let the guest see a region."""

        def unmap(self, region: Region) -> None:
            """Take it away again."""

        def vcpu(self, index: int) -> Vcpu:
            """Make a virtual CPU; its index is what the guest's firmware tables call it."""

        def line(self, gsi: int) -> Line:
            """An edge-triggered line to the interrupt controller, by its global number."""

        def doorbell(self, address: int, size: int, value: int | None, fd: int, *, port: bool = False) -> bool:
            """Let a write to an address (of ``value`` alone where given) signal an eventfd without an exit.

            False where the executor cannot: then the write comes as an exit, as any other.
            """

        def save(self) -> dict[str, bytes]:
            """What belongs to all virtual CPUs together: interrupt controllers, clock."""

        def restore(self, state: Mapping[str, bytes]) -> None:
            """Take what ``save`` gave."""

        def counts(self) -> dict[str, int]:
            """Exits and faults since the beginning, by the executor's own names, over all virtual CPUs.

            Asked once before any of them runs, it never waits for the guest afterwards.
            """

        def close(self) -> None:
            """Give everything back; no virtual CPU may run any more."""
