"""Whoever calls a monitor: one connection, with one question and its answer, or more than one for as long as it stays.

exec    the process that was begun: further packets are about it, and with the connection goes the process
save    a machine that holds still: ``go`` lets it go on, as the connection's end does, and ``end`` ends it
"""

from __future__ import annotations

from mamushka import trace
from mamushka.errors import Invalid, MamushkaError, NotFound
from mamushka.machine import control
from mamushka.machine.inside import MAIN, Streams
from mamushka.spec.runtime import parse_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.machine.control import Line, Packet
    from mamushka.machine.inside import Held
    from mamushka.machine.monitor import Monitor
    from mamushka.runtime import Exit


class Caller:
    """One connection: a question and its answer, or a further process for as long as it lives."""

    def __init__(self, monitor: Monitor, line: Line) -> None:
        self._monitor, self._line = monitor, line
        self._key = 0
        self._gone = False
        self._saves = self._asked = False  # has the machine hold still; and has said what becomes of it

    def heard(self) -> None:
        """Something came."""
        try:
            packet, descriptors = self._line.receive()
        except BlockingIOError:
            return
        except (OSError, MamushkaError, ImportError) as error:  # json words its own errors by an import
            trace.event("machine.caller_strange", error=str(error))
            packet, descriptors = {}, []
        if not packet:
            self._lost()
            return
        try:
            self._serve(packet, descriptors)
        except Exception as error:
            self._answer(control.failed(error))
        finally:
            control.close(descriptors)

    def _serve(self, packet: Packet, descriptors: list[int]) -> None:
        verb = packet.get("ask")
        if self._key:
            self._about(str(verb), packet)
        elif self._saves:
            self._decide(str(verb))
        elif verb == "exec":
            self._exec(packet, descriptors)
        elif verb in ("pause", "resume"):
            getattr(self._monitor, verb)()
            self._answer({"answer": verb})
        elif verb == "signal":
            key = 0 if packet.get("all") else MAIN
            self._monitor.signal(key, _number(packet, "number", 64))
            self._answer({"answer": verb})
        elif verb in ("gdb", "files", "plug", "names"):
            self._hand_over(verb, packet, descriptors)
        elif verb == "save":
            self._save()
        elif isinstance(verb, str):
            self._monitor.ask(verb, packet, self._told)
        else:
            raise Invalid("a message that asks nothing")

    def _hand_over(self, verb: str, packet: Packet, descriptors: list[int]) -> None:
        """A debugger's connection, a copy's pipe, a card's tap, sockets for names: the guest's from here on."""
        self._monitor.check_running()
        own, descriptors[:] = descriptors[:], []
        self._monitor.ask(verb, {**packet, "descriptors": own}, self._told)

    def _save(self) -> None:
        """From the answer to this on, until ``go`` or ``end``, the machine holds still."""
        self._monitor.save(self)
        self._saves = True

    def held(self, held: Held) -> None:
        """It holds still: what there is to be had of it."""
        own = [held.state, held.memory]
        try:
            if not self._gone:
                self._line.send({"answer": "held"}, (*own, *held.disks))
        except OSError as error:
            trace.event("machine.caller_gone", error=str(error))
            self._lost()
        finally:
            control.close(own)

    def let_go(self, packet: Packet) -> None:
        """It is over: it has gone on, or could not be saved."""
        self._saves = self._asked = False
        self._answer(packet)

    def _decide(self, verb: str) -> None:
        """What becomes of a machine that holds still for this caller."""
        if verb == "end":
            self._monitor.end_saved()
        elif verb != "go":
            raise NotFound(f"nothing is called {verb!r} while a machine is saved")
        elif not self._asked:
            self._asked = True
            self._monitor.let_go(self)

    def _told(self, found: object) -> None:
        self._answer(control.failed(found) if isinstance(found, BaseException) else {"answer": found})

    def _about(self, verb: str, packet: Packet) -> None:
        """A process that this connection has begun; nothing is answered."""
        if verb == "signal":
            self._monitor.signal(self._key, _number(packet, "number", 64))
        elif verb == "resize":
            self._monitor.resize(self._key, _number(packet, "rows", 0xFFFF), _number(packet, "columns", 0xFFFF))
        else:
            raise NotFound(f"nothing is called {verb!r} about a process")

    def _exec(self, packet: Packet, descriptors: list[int]) -> None:
        """The document of the process, then its terminal or its three streams."""
        if len(descriptors) not in (2, 4):
            raise Invalid("a process has a terminal or three streams")
        process = parse_process(control.content_of(descriptors[0]))
        own, descriptors[1:] = descriptors[1:], []
        streams = Streams(console=own[0]) if len(own) == 1 else Streams(*own)
        try:
            self._key = self._monitor.further(process, streams, self)
        except BaseException:
            control.close(own)
            raise

    def started(self, pid: int) -> None:
        self._monitor.post(lambda: self._answer({"answer": pid}))

    def failed(self, error: BaseException) -> None:
        def tell() -> None:
            self._key = 0
            self._answer(control.failed(error))

        self._monitor.post(tell)

    def ended(self, exit: Exit) -> None:
        def tell() -> None:
            self._key = 0
            self._answer(control.ended(exit))

        self._monitor.post(tell)

    def _answer(self, packet: Packet) -> None:
        if self._gone:
            return
        try:
            self._line.reply(packet)
        except OSError as error:  # it has gone, or does not listen
            trace.event("machine.caller_gone", error=str(error))
            self._lost()

    def _lost(self) -> None:
        """Hung up: with whoever stood for a process goes the process."""
        self._gone = True
        self._monitor.hang_up(self._line)
        if self._saves and not self._asked:
            self._asked = True
            self._monitor.let_go(self)
        key, self._key = self._key, 0
        if key:
            try:
                self._monitor.signal(key, 9)
            except MamushkaError:
                pass  # it is ending anyway


def _number(packet: Packet, name: str, most: int) -> int:
    found = packet.get(name)
    if not isinstance(found, int) or not 0 <= found <= most:
        raise Invalid(f"{name} is {found!r}, not a number of 0 to {most}")
    return found
