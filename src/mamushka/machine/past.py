"""What is written down of a program beside its machine, and how it goes on in another: who it is now, and its streams.

A saved machine (state.py) has labels. Those of one whose program runs are these, and a warm one (warm.py) has but the
first and the cards:

    token            the secret that the agent has proved itself by
    net0, net1, …    the addresses that the guest knows its cards by
    program          "frozen" by the guest's kernel since; or "running", and going on as soon as the machine does
    terminal         "yes" where its streams are one
    resolver         "yes" where names are asked for through a resolver in the guest
    further          the names of the processes that were begun beside it and had not ended
    last             the highest name that a process was ever given
    processor        a digest of what the host's processor is: what a guest was told of it, it goes by
    file DESTINATION where in the guest lies what is bound there: files of the bundle's own, written anew

What the program has in its memory stays what it was, in however many machines it goes on: its own random numbers, keys
and open connections, of which the latter are broken. Processes that were begun beside it go on too, but nobody hears
them: their streams end, and a terminal hangs up.
"""

from __future__ import annotations

from mamushka.errors import Conflict, Invalid, Unsupported
from mamushka.machine import names, warm
from mamushka.machine.agent import settings, words
from mamushka.machine.devices.virtio.fs import Fs
from mamushka.machine.inside import MAIN
from mamushka.runtime import NotRunning
from mamushka.spec.digest import sha256
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.machine.agent import Agent
    from mamushka.machine.board import Board
    from mamushka.machine.computer import Interior
    from mamushka.machine.inside import Streams

TOKEN = "token"
_PROGRAM, _TERMINAL, _RESOLVER, _FURTHER, _LAST, _FILE = "program", "terminal", "resolver", "further", "last", "file "
_PROCESSOR = "processor"
_FROZEN, _RUNNING, _YES = "frozen", "running", "yes"
# Further processes whose streams are closed, of a saved machine; a guest has no more of them (PROCESSES_MAX).
_FURTHER_MAX = 4096


def token(labels: Mapping[str, str]) -> bytes:
    """The secret of a saved machine. Invalid where it is none."""
    try:
        return bytes.fromhex(labels.get(TOKEN, ""))
    except (TypeError, ValueError):
        raise Invalid("the saved machine's secret is damaged") from None


def card(labels: Mapping[str, str], number: int, otherwise: bytes) -> bytes:
    """The address that a saved guest knows a card by. Invalid where it is none."""
    try:
        return bytes.fromhex(labels.get(f"net{number}", otherwise.hex()))
    except (TypeError, ValueError):
        raise Invalid(f"the saved machine's card {number} is damaged") from None


def check(board: Board) -> None:
    """Unsupported where a machine cannot be saved."""
    if any(isinstance(transport.device, Fs) for transport in board.transports.values()):
        raise Unsupported(
            "this machine cannot be saved: files of the host's are shared with it, and what it has open of them is in "
            "another program, virtiofsd",
            hint="make it with --annotation com.mamushka.machine.root=layers, and without volumes and bind mounts",
        )


def check_host(labels: Mapping[str, str]) -> None:
    """Unsupported where a saved machine's processor is another's."""
    if labels.get(_PROCESSOR) != _processor():
        raise Unsupported(
            "the machine was saved on a host with another kind of processor, which its kernel goes by",
            hint="let it go on where it was saved, or on a host that is the same",
        )


def _processor() -> str:
    return sha256("\n".join(warm.processor()).encode()).encoded[:32]


@value
class Past:
    """What a program was when its machine was saved."""

    frozen: bool
    terminal: bool
    resolver: bool
    further: tuple[int, ...]
    last: int
    files: Mapping[str, str] = EMPTY  # paths in the guest by destination

    @staticmethod
    def of(labels: Mapping[str, str]) -> Past | None:
        """Out of labels; None where the machine had no program yet. Invalid where they are damaged."""
        if _PROGRAM not in labels:
            return None
        try:
            further = tuple(int(name) for name in labels[_FURTHER].split())
            files = {key.removeprefix(_FILE): str(path) for key, path in labels.items() if key.startswith(_FILE)}
            if len(further) > _FURTHER_MAX or labels[_PROGRAM] not in (_FROZEN, _RUNNING):
                raise ValueError(labels[_PROGRAM])
            frozen, terminal = labels[_PROGRAM] == _FROZEN, labels[_TERMINAL] == _YES
            return Past(frozen, terminal, labels[_RESOLVER] == _YES, further, int(labels[_LAST]), files)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Invalid(f"the saved machine's labels are damaged: {error!r}") from error


class Program:
    """What a monitor knows of its program and of the processes begun beside it. For the worker's thread."""

    def __init__(self, board: Board, interior: Interior, past: Past | None) -> None:
        self._board, self._interior = board, interior
        self.terminal = past is not None and past.terminal
        self._resolver = bool(interior.resolver) or (past is not None and past.resolver)
        # Names that the guest has given away before; the monitor's keys begin anew.
        self._further: set[int] = set(past.further) if past is not None else set()
        self._before = max(past.last - MAIN, 0) if past is not None else 0
        self._last = self._before + MAIN
        self._files = dict(past.files) if past is not None else dict(interior.sources)
        self._processor = _processor() if interior.disks else ""  # while there are paths; only those can be saved

    def name(self, key: int) -> int:
        """The guest's name of a process."""
        return key if key == MAIN else key + self._before

    def begun(self, name: int) -> None:
        """A further process begins."""
        self._further.add(name)
        self._last = max(self._last, name)

    def ended(self, name: int) -> None:
        """It has ended, or could not begin. From any thread."""
        self._further.discard(name)

    def labels(self, token: bytes, *, frozen: bool) -> Mapping[str, str]:
        """What is written down of it now."""
        return {
            TOKEN: token.hex(),
            _PROGRAM: _FROZEN if frozen else _RUNNING,
            _TERMINAL: _YES if self.terminal else "no",
            _RESOLVER: _YES if self._resolver else "no",
            _FURTHER: " ".join(map(str, sorted(self._further))),
            _LAST: str(self._last),
            _PROCESSOR: self._processor,
            **{f"net{number}": mac.hex() for number, mac in enumerate(self._interior.cards)},
            **{f"{_FILE}{destination}": path for destination, path in self._files.items()},
        }

    def come_back(self, agent: Agent, past: Past, streams: Streams) -> None:
        """Tell a guest that goes on who it is now, and connect its program's streams. Its program is not woken yet."""
        interior = self._interior
        if past.terminal != (streams.console >= 0):
            raise Conflict(f"the program was saved {'with' if past.terminal else 'without'} a terminal",
                           hint="restore it likewise")  # fmt: skip
        agent.steps(interior.steps)
        if interior.config.hostname:
            agent.steps([settings.step(words.HOSTNAME, interior.config.hostname)], MAIN)
        agent.network(interior.links, names.PORT if interior.resolver and not past.resolver else 0)
        for name in past.further:
            for stream in (words.STDIN, words.STDOUT, words.STDERR, words.TTY):
                _close(agent, name, stream)
        if past.terminal:
            _attach(agent, words.TTY, streams.console, streams.console)
            return
        _attach(agent, words.STDIN, streams.stdin, -1)
        _attach(agent, words.STDOUT, -1, streams.stdout)
        _attach(agent, words.STDERR, -1, streams.stderr)


def _attach(agent: Agent, stream: int, source: int, sink: int) -> None:
    """A stream of the program's, unless it had closed it."""
    if source >= 0 or sink >= 0:
        try:
            agent.attach(MAIN, stream, source, sink)
        except NotRunning:
            pass


def _close(agent: Agent, process: int, stream: int) -> None:
    """A stream of a further process, unless that has ended."""
    try:
        agent.close_stream(process, stream)
    except NotRunning:
        pass
