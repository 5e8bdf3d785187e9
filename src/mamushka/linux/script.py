"""A list of system calls as data, and the executable of a few pages that performs it.

What becomes a container must not be a copy of an interpreter: forking one copies its page tables, running one
copies its pages, and its executable is within reach of what it is about to confine (CVE-2019-5736). So a program of
ours writes down what is to be called, in order, and a process that knows nothing else does it. This is the page of
machine code that the process runs, ``machine/*.s``, and what it reads:

    0x400000   the code
    0x410000   the page of variables: 4 bytes each, filled by results, and buffers
    0x414000   the rows, 64 bytes each
    0x1000000  data: strings, structs, vectors

A row is sixteen words of 32 bits:

    0      the call's number; bits 16-19: arguments 1-4 are variables; bits 24-27: instead compare, fail, store, leap
    1-6    the arguments
    7      where the result goes
    8-13   three pairs of an errno and the row that goes on then; the third's may be ANY
    14     the row that goes on after any other error, once it has been noted
    15     what to say about that: a text

compare goes on where argument 1 & argument 2 == argument 3, else in the first pair's row; fail is a call that fails
with its argument; store is one whose result is its argument; leap goes on where its argument says, and its result is
the row after it, so that rows can be shared: whoever comes to them says where to go back. An error without a pair ends
in the epilogue: which error, in which operation, about what, and the kernel's reason, if there is one, are written to
the channel as one packet, which ``parse`` reads, and the process exits.
"""

from __future__ import annotations

import os

from mamushka.linux.abi import DECLARED, MACHINE
from mamushka.linux.executable import (
    ALIGNMENT,
    EXECUTE,
    MACHINES,
    READ,
    WRITE,
    create,
    headers,
    headers_size,
    seal,
    words,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Argument = Any  # int, Variable, bytes (a string), or a struct

_CODE = 0x400000
_PAGE = 0x410000
_ROWS = 0x414000
_DATA = 0x1000000
_ROW = 64
_ROWS_FIRST = 512  # an ordinary container has 390
_DATA_MAX = (1 << 31) - 1 - _DATA  # addresses are positive numbers of 32 bits

# In the page of variables. An error's packet begins with E and the number, so that the head lies across a word.
_HEAD, _ERRNO, _START = _PAGE + 3, _PAGE + 4, _PAGE + 12
_VARIABLES, _VARIABLES_MAX = _PAGE + 16, 44
# The packet's parts, each as long as it may be, since nobody counts: four iovecs.
_PARTS = _PAGE + 192
_HEAD_SIZE, _OPERATION_SIZE, _ABOUT_SIZE, REASON_SIZE = 5, 1200, 4500, 512
_OPERATION, _ABOUT = _PARTS + 16, _PARTS + 32
STATUS = _PAGE + 256  # a struct statx
REASON = _PAGE + 512  # why the kernel refused a mount
ROOM, ROOM_SIZE = _PAGE + 1024, 4096  # for whatever one call tells the next
PACKET, PACKET_SIZE = _PAGE + 5120, 1024  # what the other end of the channel said
ANSWER, ANSWER_SIZE = _PAGE + 6144, 8192  # and once more
NEXT, SELF = 0, 1  # as a place to go on: the row after this one, and this one
ANY = -1  # as an errno
_COMPARE, _FAIL, _STORE, _LEAP = 1 << 24, 1 << 25, 1 << 26, 1 << 27
_VARIABLE = (0, 1 << 16, 1 << 17, 1 << 18, 1 << 19)  # by the argument's number
_SIGN = 1 << 31

_CODES = {
    "x86_64": (
        "bd000041008b5d0c448b2348637b04486373084863530c4c6353104c6343144c634b1841f7c400000100740348633f41f7c4000002007403"
        "48633641f7c400000400740348631241f7c40000080074034d63124889f841f7c400000001754541f7c400000002754a41f7c40000000475"
        "1741f7c400000008751b410fb7c40f05483d01f0ffff732c8b4b1c890183c340e973ffffff8b4b1c83c340891989fbe964ffffff21f739d7"
        "74e38b5b24e956fffffff7d8f7d83b43208b4b2474253b43288b4b2c741d3b43308b4b347415837b30ff740f8945048b4b3c898de0000000"
        "8b4b3889cbe91effffff"
    ),
    "aarch64": (
        "3408a0d2930e40b9750240b9600680b9610a80b9620e80b9631280b9641680b9651a80b955008036000080b955008836210080b955009036"
        "420080b955009836630080b93502c037b502c837d500d0373501d837a83e0012010000d41ffc3fb102020054691e40b9200100b973020111"
        "e6ffff17691e40b973020111330100b9f303002ae1ffff170000010a1f00026be0feff54732640b9dcffff17e003004be003004b692a4429"
        "1f00096ba0010054692a45291f00096b40010054692a46291f00096be00000543f050031a0000054800600b9693e40b989e200b96a3a40b9"
        "f3030a2ac9ffff17"
    ),
    "riscv64": (
        "370941008364c90083a9040003a5440083a5840003a6c40083a6040103a7440183a7840193d2090113f31200630403000325050013f32200"
        "6304030083a5050013f34200630403000326060013f382006304030083a6060013f30210631e030413f302206314030613f3024063120302"
        "13934203634603029398090393d8080373000000b7f2ffff9b8212006372550483e2c40123a0a200938404046ff0dff683e2c40193840404"
        "23a092009314050293d404026ff05ff53375b5001b050500e30cc5fc83e444026ff01ff43305a0403305a04083a2040203e34402630a5502"
        "83a2840203e3c4026304550283a2040303e34403630e55009303f0ff638a72002322a90083a2c4032320590e03e38403930403006ff05fef"
    ),
}

# x86_64, and aarch64 and riscv64, which have the same: what a script calls and nothing in linux/ declares.
_NUMBERS = {
    "chdir": (80, 49), "chroot": (161, 51), "clone": (56, 220), "close": (3, 57), "dup3": (292, 24),
    "execve": (59, 221), "exit_group": (231, 94), "fchdir": (81, 50), "fchmod": (91, 52), "fchownat": (260, 54),
    "getcwd": (79, 17), "getpid": (39, 172), "ioctl": (16, 29), "kill": (62, 129), "mkdirat": (258, 34),
    "mknodat": (259, 33), "openat": (257, 56), "pidfd_open": (434, 434), "pipe2": (293, 59), "ppoll": (271, 73),
    "read": (0, 63), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigtimedwait": (128, 137),
    "sched_setaffinity": (203, 122), "sendmsg": (46, 211), "setgroups": (116, 159), "setpgid": (109, 154),
    "setresgid": (119, 149), "setresuid": (117, 147), "setsid": (112, 157), "statx": (332, 291),
    "symlinkat": (266, 36), "timer_create": (222, 107), "timer_settime": (223, 110),
    "umask": (95, 166), "wait4": (61, 260), "waitid": (247, 95), "write": (1, 64),
    "writev": (20, 66),
}  # fmt: skip
for _name, _number in _NUMBERS.items():
    DECLARED.setdefault(_name, ("syscall", _number[MACHINE != "x86_64"]))


class Variable:
    """Four bytes of the script's; as an argument it stands for what it holds when the call is made."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address


def variable(index: int) -> Variable:
    """One of the page of variables, 0 unless a script gives it a value."""
    assert index < _VARIABLES_MAX
    return Variable(_VARIABLES + 4 * index)


CHANNEL = variable(0)  # where a failure is told
REASONING = variable(1)  # the descriptor of fsopen that says why a mount is refused
ERROR = Variable(_ERRNO)  # of the last call that failed and was noted
FURTHER = 4  # the first variable that is the caller's
_SCRATCH, _OWN = variable(2), variable(3)


class Label:
    """A place among the rows, perhaps one that comes later."""

    __slots__ = ("row",)

    def __init__(self) -> None:
        self.row = -1


class Script:
    """A list of calls in the making. What it is given as descriptors (``descriptor``) is open when it runs."""

    def __init__(self, machine: str = MACHINE) -> None:
        self.machine = machine
        # What linux/ declares is for this machine; for another there are the calls of the table above.
        self._foreign = (
            {} if machine == MACHINE else {name: pair[machine != "x86_64"] for name, pair in _NUMBERS.items()}
        )
        self.descriptors: list[int] = []
        # Where they stand, and where names do: what another process that does the same has in other words.
        self._held: list[int] = []
        self._names: list[tuple[int, int]] = []
        # Words as the kernel of this machine has them, and the machines above are all alike; zero until they are set.
        self._words = memoryview(bytearray(_ROW * _ROWS_FIRST)).cast("i")
        self._at = 0  # the word that is to be written next
        self._later: list[tuple[int, Label]] = []  # words that are to be a label's row
        self._data = bytearray(8)
        self._texts: dict[bytes, int] = {}
        self._placed: dict[bytes, int] = {}
        self._abouts: dict[tuple[str, str | bytes], int] = {}
        self._given: dict[int, int] = {}
        self._reasoning = self._epilogue = 0
        self._begin()

    def _begin(self) -> None:
        """The epilogue stands first: telling what failed, with the kernel's reason from a descriptor or without."""
        begin = Label()
        self.jump(begin)
        self._reasoning = self._here()
        self.call("read", REASONING, REASON, REASON_SIZE, on={ANY: NEXT})
        self._epilogue = self._here()
        self.call("writev", CHANNEL, _PARTS, 4, on={ANY: NEXT})
        self.call("exit_group", 126)
        self.mark(begin)
        # The process has no more use for its executable; nobody else is to have any (#!/proc/self/exe).
        self.call("fchmod", _OWN, 0, on={ANY: NEXT})
        self.call("close", _OWN, on={ANY: NEXT})

    # Data

    def text(self, content: bytes) -> int:
        """The address of a string that ends in a zero byte."""
        found = self._texts.get(content)
        if found is None:
            found = self._texts[content] = self.copy(content + b"\0")
        return found

    def place(self, content: bytes) -> int:
        """The address of these bytes; aligned to eight."""
        found = self._placed.get(content)
        if found is None:
            found = self._placed[content] = self.copy(content)
        return found

    def copy(self, content: bytes) -> int:
        """The address of these bytes, which calls may change."""
        data = self._data
        address = _DATA + len(data)
        data += content
        data += _PADDING[len(content) & 7]
        return address

    def room(self, size: int) -> int:
        """The address of zero bytes that calls may write to."""
        return self.copy(bytes(size))

    def variable(self) -> Variable:
        """A further variable."""
        return Variable(self.room(4))

    def vector(self, addresses: Sequence[int]) -> int:
        """The address of a list of addresses that ends with a null."""
        return self.copy(words([*addresses, 0], 8))

    def give(self, variable: Variable, number: int) -> None:
        """What a variable holds at first."""
        self._given[variable.address] = number

    def descriptor(self, fd: int, into: Variable | None = None) -> Variable:
        """A descriptor of the caller's that the script uses: a variable of its own, or ``into``."""
        self.descriptors.append(fd)
        if into is None:
            into = Variable(self.copy(words([fd], 4)))
        else:
            self.give(into, fd)
        self._held.append(into.address)
        return into

    def name(self, content: bytes) -> int:
        """The address of a text that another process that does the same has otherwise (``again``)."""
        address = self.copy(content + b"\0")
        self._names.append((address, len(content)))
        return address

    # Rows

    def begin(self, operation: str) -> None:
        """What fails from here on is told as this operation's failure: its kind, a zero byte, its description."""
        content = operation.encode(errors="surrogateescape")[: _OPERATION_SIZE - 1]
        self.store(self.text(content), Variable(_OPERATION))

    def mark(self, label: Label) -> None:
        """The next row is where the label leads."""
        label.row = self._here()

    def call(
        self,
        name: str,
        *arguments: Argument,
        into: Variable = _SCRATCH,
        on: Mapping[int, Label | int] | None = None,
        about: str | bytes = "",
        reason: bool = False,
    ) -> None:
        """A system call. ``on`` says where to go on after which error (NEXT, SELF, a label), at most three; ANY last.

        ``about`` is the path that it is about, or a text that goes after the error's own when it is told; one that
        starts with = replaces it. With ``reason`` the kernel's own sentence is read from the descriptor REASONING.
        """
        first = self._foreign[name] if self._foreign else DECLARED[name][1]
        at = self._row()
        words = self._words
        for place, argument in enumerate(arguments, at + 1):
            kind = type(argument)
            if kind is int:
                words[place] = argument if argument < _SIGN else argument - 2 * _SIGN
            elif kind is Variable:
                first |= _VARIABLE[place - at]
                words[place] = argument.address
            elif kind is bytes:
                words[place] = self._texts.get(argument) or self.text(argument)
            else:
                words[place] = self.place(bytes(argument))
        words[at] = first
        words[at + 7] = into.address
        if on is not None:
            self._pairs(at, on)
        words[at + 14] = self._reasoning if reason else self._epilogue
        words[at + 15] = self._abouts.get((name, about)) or self._note(name, about)

    def _here(self) -> int:
        """The address of the next row."""
        return _ROWS + 4 * self._at

    def _row(self) -> int:
        """The first word of a new row, which is zero."""
        at = self._at
        if at == len(self._words):
            larger = memoryview(bytearray(8 * at)).cast("i")
            larger[:at] = self._words
            self._words = larger
        self._at = at + 16
        return at

    def _pairs(self, at: int, on: Mapping[int, Label | int]) -> None:
        place = at + 8
        for error, target in on.items():
            if error == ANY:
                place = at + 12
            self._words[place] = error
            if isinstance(target, int):
                self._words[place + 1] = _ROWS + 4 * (at + (16 if target == NEXT else 0))
            else:
                self._later.append((place + 1, target))
            place += 2

    def _note(self, name: str, about: str | bytes) -> int:
        text = f": {os.fsdecode(about)!r}" if isinstance(about, bytes) and about else about or ""
        content = f"{name}\0{text}".encode(errors="surrogateescape")[: _ABOUT_SIZE - 1]
        found = self._abouts[name, about] = self.copy(content + b"\0")
        return found

    def ioctl(self, name: str, fd: Variable | int, argument: Argument, *, into: Variable = _SCRATCH) -> None:
        """An ioctl by the name it is declared under; an int may be an address."""
        self.call("ioctl", fd, DECLARED[name][1], argument, into=into, about=f": {name}")

    def compare(self, item: Variable | int, mask: int, number: int | Variable, otherwise: Label) -> None:
        """Go on in the next row where the variable, or the word at an address, masked, is the number."""
        at = self._plain(_COMPARE | _VARIABLE[1], item.address if isinstance(item, Variable) else item)
        if isinstance(number, Variable):
            self._words[at] |= _VARIABLE[3]
            number = number.address
        self._words[at + 2], self._words[at + 3] = mask, number
        self._later.append((at + 9, otherwise))

    def jump(self, label: Label, back: Variable = _SCRATCH) -> None:
        """Go on elsewhere; ``back`` holds then where to ``leap`` to come to the row after this."""
        self._later.append((self._plain(_LEAP, 0, back) + 1, label))

    def leap(self, back: Variable) -> None:
        """Go back to after the jump."""
        self._plain(_LEAP | _VARIABLE[1], back.address)

    def store(self, number: int | Variable, into: Variable) -> None:
        """Set a variable."""
        if isinstance(number, Variable):
            self._plain(_STORE | _VARIABLE[1], number.address, into)
        else:
            self._plain(_STORE, number, into)

    def attempt(self, name: str, *arguments: Argument, into: Variable = _SCRATCH) -> None:
        """A system call that may fail: the next row goes on in any case, and ERROR holds the errno, or 0."""
        self.store(0, ERROR)
        at = self._at
        self.call(name, *arguments, into=into)
        self._words[at + 14] = self._here()

    def fail(self, number: int | Variable, about: str = "") -> None:
        """End as if a call had failed with this errno."""
        flag, word = (_VARIABLE[1], number.address) if isinstance(number, Variable) else (0, number)
        at = self._plain(_FAIL | flag, word)
        self._words[at + 14] = self._epilogue
        self._words[at + 15] = self._abouts.get(("", about)) or self._note("", about)

    def _plain(self, first: int, argument: int, into: Variable = _SCRATCH) -> int:
        """A row that makes no call; its first word."""
        at = self._row()
        self._words[at], self._words[at + 1], self._words[at + 7] = first, argument, into.address
        return at

    # The executable

    def again(self, descriptors: Sequence[int], names: Sequence[bytes]) -> Script:
        """The same calls with other descriptors and names, in the order of ``descriptor`` and ``name``.

        Names are as long as they were. Only once this script's own executable is written.
        """
        new = Script.__new__(Script)
        new.machine, new._words, new._at, new._later = self.machine, self._words, self._at, []
        new._data, new._given = bytearray(self._data), {**self._given}
        for address, fd in zip(self._held, descriptors, strict=True):
            if address < _DATA:
                new._given[address] = fd
            else:
                new._data[address - _DATA : address - _DATA + 4] = fd.to_bytes(4, "little")
        for (address, length), content in zip(self._names, names, strict=True):
            assert len(content) == length
            new._data[address - _DATA : address - _DATA + length] = content
        new.descriptors = [*descriptors]
        return new

    def executable(self, name: str) -> int:
        """A memory file that performs the script, one of its descriptors; the caller's to close. OSError, see create.

        KeyError for a machine that there is no code for, ValueError for a script that does not fit.
        """
        fd = create(name)
        try:
            self.write(fd, own=fd)
            # Who cannot read it cannot read, nor trace, who executes it: begin_new_exec in fs/exec.c, would_dump.
            os.fchmod(fd, 0o111)
            seal(fd)
        except BaseException:
            os.close(fd)
            raise
        self.descriptors.append(fd)
        return fd

    def write(self, fd: int, *, own: int = -1) -> None:
        """Write the executable to an empty file. It takes the mode away from ``own``, a descriptor of itself."""
        code = bytes.fromhex(_CODES[self.machine])
        size = 4 * self._at
        if size > _DATA - _ROWS or len(self._data) > _DATA_MAX:
            raise ValueError(f"a script of {size // _ROW} calls and {len(self._data)} bytes of data")
        for place, label in self._later:
            self._words[place] = label.row
        start = headers_size(3)
        page_size = _ROWS - _PAGE + size
        data_at = (ALIGNMENT + page_size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        segments = [
            (READ | EXECUTE, 0, _CODE, start + len(code), 0),
            (READ | WRITE, ALIGNMENT, _PAGE, page_size, 0),
            # The parts of a packet are read as if they were as long as they may be, also the last text.
            (READ | WRITE, data_at, _DATA, len(self._data), _ABOUT_SIZE),
        ]
        os.pwrite(fd, headers(self.machine, _CODE + start, segments) + code, 0)
        os.pwrite(fd, self._page(own), ALIGNMENT)
        os.pwrite(fd, self._words[: self._at], ALIGNMENT + _ROWS - _PAGE)
        os.pwrite(fd, self._data, data_at)

    def _page(self, own: int) -> memoryview:
        """The variables as they are at first; the buffers behind them are a hole in the file."""
        page = memoryview(bytearray(STATUS - _PAGE)).cast("i")
        page[0] = ord("E") << 24  # at _HEAD
        for place, number in enumerate((_HEAD, _HEAD_SIZE, 0, _OPERATION_SIZE, 0, _ABOUT_SIZE, REASON, REASON_SIZE)):
            page[(_PARTS - _PAGE) // 4 + 2 * place] = number
        for address, number in ((_START, _ROWS), (_OWN.address, own), *self._given.items()):
            page[(address - _PAGE) // 4] = number
        return page


assert set(_CODES) == set(MACHINES)
_PADDING = tuple(bytes(-count % 8) for count in range(8))


def failure(number: int, operation: str, about: str) -> bytes:
    """The packet of a failure, as the epilogue writes it."""
    told = operation.encode(errors="surrogateescape")[: _OPERATION_SIZE - 1].ljust(_OPERATION_SIZE, b"\0")
    return b"E" + number.to_bytes(4, "little") + told + b"\0" + about.encode(errors="surrogateescape") + b"\0"


def parse(packet: bytes) -> tuple[int, str, str, str]:
    """(errno, the operation's kind, its description, what went wrong) of such a packet."""
    number = int.from_bytes(packet[1:5], "little") & 0x7FFFFFFF  # a damaged record, too, is read
    kind, description = _fields(packet, _HEAD_SIZE, _OPERATION_SIZE)
    call, about = _fields(packet, _HEAD_SIZE + _OPERATION_SIZE, _ABOUT_SIZE)
    reason, _ = _fields(packet, _HEAD_SIZE + _OPERATION_SIZE + _ABOUT_SIZE, REASON_SIZE)
    text = about[1:] if about.startswith("=") else os.strerror(number) + about
    if call:
        text = f"{call}: {text}"
    if reason:
        text += f": {reason.strip()[2:]}"  # "e " marks an error
    return number, kind, description, text


def _fields(packet: bytes, start: int, size: int) -> tuple[str, str]:
    """Two strings that end in zero bytes, from the part of a packet that begins there; what is missing is empty."""
    first, _, rest = packet[start : start + size].decode(errors="surrogateescape").partition("\0")
    return first, rest.partition("\0")[0]
