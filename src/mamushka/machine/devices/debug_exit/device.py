"""Two ways to end a machine by a port: QEMU's isa-debug-exit, and what Bochs had before.

Neither belongs into a machine that is not meant for such programs. How the machine ends is its owner's affair: each is
given a function that is called with the status, in the virtual CPU's thread, at every such write; the guest may run on
for some instructions until its owner has stopped it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PORT, LENGTH = 0xF4, 4
BOCHS_PORT = 0x8900
_WORD = b"Shutdown"


class DebugExit:
    """A write of the value v ends the machine with the status 2·v + 1, so never with zero."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended

    def read(self, offset: int, size: int) -> int:
        """Nothing is there to be read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The end."""
        self._ended(value << 1 | 1)

    def save(self) -> dict[str, bytes]:
        """It has no state."""
        return {}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Nothing to take."""


class BochsShutdown:
    """The word "Shutdown", a byte at a time, ends the machine with the status zero."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._heard = 0  # how many of the word's letters

    def read(self, offset: int, size: int) -> int:
        """Nothing is there to be read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A letter; a wrong one and all begins anew."""
        letter = value & 0xFF
        self._heard = self._heard + 1 if letter == _WORD[self._heard] else int(letter == _WORD[0])
        if self._heard == len(_WORD):
            self._heard = 0
            self._ended(0)

    def save(self) -> dict[str, bytes]:
        """How far the word is."""
        return {"heard": bytes((self._heard,))}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take what ``save`` gave."""
        self._heard = state["heard"][0] % len(_WORD)
