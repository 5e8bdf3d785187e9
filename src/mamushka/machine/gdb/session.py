"""What is said to one debugger: a packet's text in, an answer's text out. GDB manual, appendix E, "Packets".

A virtual CPU is a thread, numbered from 1. The machine stops and goes as a whole ("all-stop"); a single step can be
one virtual CPU's alone, as gdb asks when it leaves a breakpoint behind.

    stopped --c, s, vCont--> running --a stop, an interrupt--> stopped
    any of them --D--> gone, the machine runs          --k--> gone, the machine has ended
"""

from __future__ import annotations

from mamushka.errors import Invalid, MamushkaError
from mamushka.machine.gdb.protocol import PACKET_MAX, number, octets
from mamushka.machine.gdb.target import KINDS
from mamushka.machine.vcpu import ACCESS, BREAKPOINT, EXECUTE, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.machine.gdb.architecture import Register
    from mamushka.machine.gdb.target import Stop, Target

READ_MAX = PACKET_MAX // 2 - 8  # each byte is two digits
SIGINT, SIGTRAP = 2, 5  # as gdb numbers them
STOPPED, RUNNING, GONE = "stopped", "running", "gone"

_FEATURES = b"QStartNoAckMode+;qXfer:features:read+;swbreak+;hwbreak+;vContSupported+"
_REASONS = {BREAKPOINT: b"swbreak:;", EXECUTE: b"hwbreak:;"}
_WATCHED = {WRITE: b"watch:%x;", ACCESS: b"awatch:%x;"}


class Session:
    """A conversation from ``Target.attach`` on. ``state`` is STOPPED, RUNNING or GONE."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.state = STOPPED
        self.acknowledged = True
        self._current = 0  # the virtual CPU that g, m and the like are about
        self._registers = target.architecture.registers
        self._commands: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _: self._told(SIGTRAP, self._current), b"g": self._all, b"G": self._set_all,
            b"p": self._one, b"P": self._set_one, b"m": self._read, b"M": self._write, b"X": self._write_binary,
            b"H": self._choose, b"T": self._alive, b"q": self._query, b"Q": self._set, b"v": self._verbose,
            b"c": self._continue, b"s": self._step, b"Z": self._insert, b"z": self._remove,
            b"D": self._detach, b"k": self._kill,
        }  # fmt: skip

    def command(self, text: bytes) -> bytes | None:
        """The answer; None where there is none (yet)."""
        perform = self._commands.get(text[:1])
        if perform is None or self.state != STOPPED:
            return b""  # what we do not know
        try:
            return perform(text[1:])
        except (MamushkaError, OSError):
            return b"E01"

    def stopped(self, stop: Stop, *, interrupted: bool) -> bytes:
        """The machine holds still now: what to tell."""
        self.state, self._current = STOPPED, stop.index
        more = _REASONS.get(stop.reason, b"")
        if stop.reason in _WATCHED:
            more = _WATCHED[stop.reason] % stop.address
        return self._told(SIGINT if interrupted and not stop.reason else SIGTRAP, stop.index, more)

    def ended(self, status: int) -> bytes:
        """The machine has ended: what to tell."""
        self.state = GONE
        return b"W%02x" % (status & 0xFF)

    def _told(self, signal: int, index: int, more: bytes = b"") -> bytes:
        return b"T%02xthread:%x;%s" % (signal, index + 1, more)

    # Registers

    def _all(self, _rest: bytes) -> bytes:
        values = self._target.registers(self._current)
        return b"".join(_digits(register, values) for register in self._registers)

    def _set_all(self, rest: bytes) -> bytes:
        place = 0
        before = self._target.registers(self._current)
        for register in self._registers:
            digits = rest[place : place + register.bits // 4]
            place += register.bits // 4
            if register.writable and digits != _digits(register, before):
                self._target.set_register(self._current, register.source, int.from_bytes(octets(digits), "little"))
        return b"OK"

    def _one(self, rest: bytes) -> bytes:
        return _digits(self._register(number(rest)), self._target.registers(self._current))

    def _set_one(self, rest: bytes) -> bytes:
        which, _, digits = rest.partition(b"=")
        register = self._register(number(which))
        content = octets(digits)
        if not register.writable or len(content) * 8 != register.bits:
            raise Invalid(f"{register.name} cannot be set")
        self._target.set_register(self._current, register.source, int.from_bytes(content, "little"))
        return b"OK"

    def _register(self, index: int) -> Register:
        if index >= len(self._registers):
            raise Invalid(f"there is no register {index}")
        return self._registers[index]

    # Memory

    def _read(self, rest: bytes) -> bytes:
        address, length = _range(rest)
        return self._target.read(self._current, address, min(length, READ_MAX)).hex().encode()

    def _write(self, rest: bytes) -> bytes:
        where, _, digits = rest.partition(b":")
        return self._put(where, octets(digits))

    def _write_binary(self, rest: bytes) -> bytes:
        where, _, content = rest.partition(b":")
        return self._put(where, content)

    def _put(self, where: bytes, content: bytes) -> bytes:
        address, length = _range(where)
        if length != len(content):
            raise Invalid(f"{len(content)} bytes where {length} were announced")
        self._target.write(self._current, address, content)
        return b"OK"

    # Threads

    def _thread(self, digits: bytes) -> int:
        """A virtual CPU's index; -1 for all, the present one for any."""
        if digits == b"-1":
            return -1
        which = number(digits)
        if which > self._target.count:
            raise Invalid(f"there is no thread {which}")
        return which - 1 if which else self._current

    def _choose(self, rest: bytes) -> bytes:
        index = self._thread(rest[1:])
        if rest[:1] == b"g" and index >= 0:
            self._current = index
        return b"OK"

    def _alive(self, rest: bytes) -> bytes:
        self._thread(rest)
        return b"OK"

    # What gdb asks about us

    def _query(self, rest: bytes) -> bytes:
        word = rest.partition(b":")[0]
        if word == b"Supported":
            return b"PacketSize=%x;" % PACKET_MAX + _FEATURES
        if rest.startswith(b"Xfer:features:read:target.xml:"):
            return self._description(rest.rpartition(b":")[2])
        if word == b"fThreadInfo":
            return b"m" + b",".join(b"%x" % (index + 1) for index in range(self._target.count))
        if word == b"sThreadInfo":
            return b"l"
        if word == b"C":
            return b"QC%x" % (self._current + 1)
        if word == b"Attached":
            return b"1"
        if rest.startswith(b"ThreadExtraInfo,"):
            return (b"virtual CPU %d" % self._thread(rest.partition(b",")[2])).hex().encode()
        return b""

    def _description(self, where: bytes) -> bytes:
        offset, length = _range(where)
        text = self._target.architecture.description()
        part = text[offset : offset + min(length, READ_MAX)]
        return (b"m" if offset + len(part) < len(text) else b"l") + part

    def _set(self, rest: bytes) -> bytes:
        if rest != b"StartNoAckMode":
            return b""
        self.acknowledged = False
        return b"OK"

    # Stop and go

    def _verbose(self, rest: bytes) -> bytes | None:
        if rest == b"Cont?":
            return b"vCont;c;C;s;S"
        if rest.startswith(b"Cont;"):
            return self._actions(rest[5:].split(b";"))
        if rest.startswith(b"Kill"):
            self._kill(b"")
            return b"OK"
        return b""

    def _actions(self, actions: list[bytes]) -> bytes | None:
        """The first that names a virtual CPU counts for it; an action without one is for all others."""
        stepping, others = -1, False
        for action in actions:
            verb, _, thread = action.partition(b":")
            index = self._thread(thread) if thread else -1
            if verb[:1] in (b"s", b"S") and stepping < 0:
                stepping = index if index >= 0 else self._current
            elif verb[:1] in (b"c", b"C"):
                others = True
        return self._go(stepping, alone=not others)

    def _continue(self, rest: bytes) -> bytes | None:
        self._jump(rest)
        return self._go(-1)

    def _step(self, rest: bytes) -> bytes | None:
        self._jump(rest)
        return self._go(self._current, alone=True)

    def _jump(self, address: bytes) -> None:
        if address:
            self._target.set_register(self._current, self._target.architecture.program_counter, number(address))

    def _go(self, stepping: int, *, alone: bool = False) -> bytes | None:
        self._target.resume(stepping, alone=alone)
        self.state = RUNNING
        return None  # the answer is the next stop

    def _insert(self, rest: bytes) -> bytes:
        kind, address, length = _point(rest)
        if kind == b"0":
            self._target.plant(self._current, address)
        elif kind in KINDS:
            self._target.watch(KINDS[kind], address, length)
        else:
            return b""
        return b"OK"

    def _remove(self, rest: bytes) -> bytes:
        kind, address, length = _point(rest)
        if kind == b"0":
            self._target.remove_breakpoint(address)
        elif kind in KINDS:
            self._target.unwatch(KINDS[kind], address, length)
        else:
            return b""
        return b"OK"

    def _detach(self, _rest: bytes) -> bytes:
        self._target.detach()
        self.state = GONE
        return b"OK"

    def _kill(self, _rest: bytes) -> None:
        self._target.kill()
        self.state = GONE


def _digits(register: Register, values: dict[str, int]) -> bytes:
    """A register as gdb wants it: its bytes in the target's order; x where it is not known."""
    size = register.bits // 8
    if not register.source:
        return b"xx" * size
    return (values[register.source] & (1 << register.bits) - 1).to_bytes(size, "little").hex().encode()


def _range(text: bytes) -> tuple[int, int]:
    address, _, length = text.partition(b",")
    return number(address), number(length)


def _point(text: bytes) -> tuple[bytes, int, int]:
    kind, _, rest = text.partition(b",")
    address, length = _range(rest.partition(b";")[0])
    return kind, address, length
