"""A machine without an image: a kernel or a bare-metal program, disks, a serial port, and what test programs expect.

The machine is held by a child of whoever starts it, behind the cage (cage.py) like any other. What it has of the
outside are descriptors that were opened before: disks, a tap, the way to the terminal. The parent keeps the terminal:
what is typed comes through a pipe, so that a key can mean the end; what the guest says goes straight to where the
caller's output goes. A line connects the two: the child tells on it how the machine ended, and its own end is the end
of the machine. Who is killed while his terminal is raw gets it back from the child.

Programs for bare machines find the ports that they look for: fw_cfg, two ways to end with a status, a device that
drives interrupt lines. A status ends this machine as it would end QEMU: v·2 + 1.
"""

from __future__ import annotations

import os

from mamushka.errors import GuestFault, Invalid, MamushkaError, Unsupported
from mamushka.machine import control
from mamushka.machine.boot import layout
from mamushka.machine.machine import DEBUGGER, FAULT, OFF, REBOOT, End
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from mamushka.machine.board import Board
    from mamushka.machine.cage import Cage
    from mamushka.machine.control import Line
    from mamushka.machine.devices.virtio.block import Disk
    from mamushka.machine.gdb import Server
    from mamushka.machine.machine import Machine

MIB = 1 << 20
# The tables of the boot lie below 1 MiB, and a program above it.
MEMORY_MIN = 2 * MIB
MEMORY_MAX = 128 << 30  # shape.py has the reasons of both of these
CPUS_MAX = 128
# How long whoever reads the guest's last words may take for them.
_LAST_WORDS = 10.0
_PAGE = 4096


@value
class Bare:
    """What the machine is made of; ``memory`` in bytes. ``force`` tries what this host's KVM is known not to do."""

    kernel: str
    initramfs: tuple[str, ...] = ()
    append: str = ""
    memory: int = 512 * MIB
    cpus: int = 1
    serial: bool = True
    force: bool = False


@value
class Plugged:
    """What is opened in the child, and belongs to the machine: disks in order, a tap's descriptor or -1."""

    disks: tuple[Disk, ...] = ()
    tap: int = -1


@value
class Terminal:
    """The caller's: where typed bytes come from, where output goes, and what is to be restored where the caller dies.

    Descriptors stay the caller's. ``settings`` are those of termios for ``keyboard``; empty where it is none.
    """

    source: int = -1
    output: int = 1
    keyboard: int = -1
    settings: tuple[Any, ...] = ()


def check(bare: Bare) -> None:
    """Invalid or Unsupported where no such machine can be, saying why."""
    if not MEMORY_MIN <= bare.memory <= MEMORY_MAX:
        raise Invalid(
            f"a machine of {bare.memory} bytes",
            hint=f"from {MEMORY_MIN >> 20} MiB to {MEMORY_MAX >> 30} GiB, as in 512m",
        )
    if not 1 <= bare.cpus <= CPUS_MAX:
        raise Invalid(f"a machine of {bare.cpus} processors", hint=f"from 1 to {CPUS_MAX}")
    from mamushka.machine import boot

    if bare.force or boot.is_program(bare.kernel):
        return
    boot.check(bare.kernel)
    from mamushka.machine.executors.kvm.probe import ABSENT, probe

    found = probe()
    if found.kind == ABSENT:
        raise Unsupported(f"cannot run {bare.kernel}: {found.reason}", hint="mamushka doctor says what is missing")
    if not found.usable:
        raise Unsupported(
            f"cannot run {bare.kernel}: it is an operating system's kernel, and this host's KVM is not a processor's "
            f"({found.kind}): {found.reason}",
            hint="choose a host with hardware virtualization; --force tries all the same; small multiboot programs "
            "may run here",
        )


def bear(
    bare: Bare, plug: Callable[[], Plugged], terminal: Terminal, listener: _socket.socket | None = None
) -> tuple[int, Line]:
    """Fork the child that holds the machine: (its pid, the line on which it says how that ended).

    ``plug`` runs in the child. With ``listener`` the machine waits for a debugger before its first instruction.
    """
    from mamushka.linux.process import clone3

    ours, theirs = control.Line.pair()
    try:
        pid, pidfd = clone3(0)
        if pid == 0:
            _become(bare, plug, terminal, listener, theirs)
        os.close(pidfd)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return pid, ours


def ended(packet: Mapping[str, Any]) -> tuple[int, str]:
    """(exit status, what there is to be said) of a line's last packet. GuestFault or what the child raised, where it
    did not end by itself; an empty packet is a child that was killed."""
    if not packet:
        raise MamushkaError("the machine's monitor was killed", hint="dmesg tells whether memory ran out")
    found = control.answered(dict(packet))
    end = End(str(found["kind"]), str(found["cause"]), int(found["status"]))
    lost = int(found["lost"])
    return status(end), f"{lost} bytes from the serial port were lost: nobody took them in time" if lost else ""


def status(end: End) -> int:
    """The exit status that a machine's end means. GuestFault or MamushkaError where it is none that a guest wants."""
    if end.kind == OFF:
        return end.status & 0xFF
    if end.kind == REBOOT and not end.cause:
        return 0  # asked for by the reset register
    if end.kind == REBOOT:
        raise GuestFault(f"the guest's processor reset itself: {end.cause}")
    if end.kind == FAULT:
        raise GuestFault(f"the guest broke a rule: {end.cause}")
    raise MamushkaError(
        f"the processor cannot go on with this guest: {end.cause}",
        hint="mamushka doctor tells what this host's KVM can do",
    )


# In the child


def _become(
    bare: Bare, plug: Callable[[], Plugged], terminal: Terminal, listener: _socket.socket | None, line: Line
) -> NoReturn:
    from mamushka.machine.creation import settle, tell

    try:
        output = _own(terminal)
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # what paths are relative to
        keep = [terminal.source, output, terminal.keyboard, line.fileno(), listener.fileno() if listener else -1, here]
        settle(tuple(fd for fd in keep if fd >= 0), -1)
        os.fchdir(here)
        os.close(here)
        held = _Held(bare, plug(), terminal.source, output, listener)
        tell(line, {"answer": held.serve(line, terminal)})
    except BaseException as error:
        tell(line, control.failed(error))
    finally:
        os._exit(0)


def _own(terminal: Terminal) -> int:
    """A description of our own of the caller's output: that it does not wait is nobody else's affair."""
    from mamushka.machine.terminal import stream

    return stream(terminal.output, os.O_WRONLY)


class _Held:
    """The machine in its process."""

    def __init__(self, bare: Bare, plugged: Plugged, source: int, output: int, listener: _socket.socket | None) -> None:
        from mamushka.machine.board import Board, ram
        from mamushka.machine.cage import Cage
        from mamushka.machine.executors.kvm import KvmExecutor

        self._cage = Cage()
        self._board = Board(KvmExecutor(), ram(bare.memory - bare.memory % _PAGE), vcpus=bare.cpus)
        if bare.serial:
            self._board.console(output, source)
        _plug(self._board, plugged)
        _attach_ports(self._board.machine, bare)
        self._entry = _load(self._board, bare)
        self._debugger = _debugger(self._board.machine, listener, self._cage) if listener is not None else None

    def serve(self, line: Line, terminal: Terminal) -> dict[str, object]:
        """Run it to its end; what to tell of that."""
        import select
        import termios

        machine = self._board.machine
        self._cage.close()
        if self._debugger is not None:
            self._debugger.begin()
        machine.start(self._entry, held=self._debugger is not None, confine=self._cage.enter)
        poll = select.poll()
        poll.register(line.fileno(), select.POLLIN)
        poll.register(machine.ended_fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll()]
        if line.fileno() in ready:
            machine.finish(End(OFF, "left"))
            if terminal.settings and not line.receive()[0]:  # hung up without a word: it was killed
                termios.tcsetattr(terminal.keyboard, termios.TCSANOW, list(terminal.settings))
        return self._finish()

    def _finish(self) -> dict[str, object]:
        machine, serial = self._board.machine, self._board.serial
        end = machine.wait()
        assert end is not None
        if serial is not None:
            serial.drain(_LAST_WORDS)
        if self._debugger is not None:
            self._debugger.close()
        self._board.close()
        lost = serial.dropped if serial is not None else 0
        return {"kind": end.kind, "cause": end.cause, "status": end.status, "lost": lost}


def _plug(board: Board, plugged: Plugged) -> None:
    from mamushka.machine.devices.virtio.block import Block
    from mamushka.machine.devices.virtio.rng import Rng

    for number, disk in enumerate(plugged.disks):
        board.add(f"disk{number}", Block(disk, name=str(number), serial=f"mamushka-{number}"))
    if plugged.tap >= 0:
        from mamushka.machine.devices.virtio.net import Net

        # Locally administered, and nobody's group: IEEE 802, 8.2.
        mac = bytes((0x02,)) + os.urandom(5)
        board.add("net0", Net(plugged.tap, mac, memory=board.machine.memory))
    board.add("rng", Rng())


def _attach_ports(machine: Machine, bare: Bare) -> None:
    """What programs for bare machines look for. Lines are made here: later nothing can be."""
    from mamushka.machine.devices import debug_exit, fwcfg, testdev

    ports = machine.ports
    asked = fwcfg.FwCfg(ram=machine.memory.size, processors=bare.cpus, command_line=bare.append.encode())
    ports.attach(layout.FW_CFG, fwcfg.LENGTH, asked, "fw_cfg")
    leave = debug_exit.DebugExit(lambda status: machine.finish(End(OFF, "debug exit", status)))
    ports.attach(layout.DEBUG_EXIT, debug_exit.LENGTH, leave, "debug exit")
    shut = debug_exit.BochsShutdown(lambda status: machine.finish(End(OFF, "shutdown", status)))
    ports.attach(debug_exit.BOCHS_PORT, 1, shut, "shutdown")
    lines = tuple(machine.executor.line(number) for number in range(testdev.LINES))
    drive = testdev.Lines(lambda number, high: lines[number].fire() if high else None)
    ports.attach(testdev.LINES_PORT, testdev.LINES, drive, "lines")
    ports.attach(testdev.FLUSH_PORT, testdev.FLUSH_LENGTH, testdev.Flush(), "flush")


def _load(board: Board, bare: Bare) -> Any:
    from mamushka.machine.boot import is_program
    from mamushka.machine.boot.command_line import command_line

    if is_program(bare.kernel):
        line = bare.append.encode()
    else:
        # A reboot by the register can be told from a triple fault, which is a fault then.
        extra = ("reboot=acpi", *((bare.append,) if bare.append else ()))
        line = command_line(extra, console="ttyS0" if bare.serial else "", quiet=False)
    return board.boot(bare.kernel, command_line=line, initramfs=[_content(path) for path in bare.initramfs])


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise Invalid(f"there is no initramfs {path}") from error


def _debugger(machine: Machine, listener: _socket.socket, cage: Cage) -> Server:
    from mamushka.machine.gdb import Server

    return Server(machine, listener=listener, confine=lambda: cage.enter(DEBUGGER))
