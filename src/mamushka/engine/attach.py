"""The streams of a process behind a wall, as the one who attached sees them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from mamushka.runtime import Exit

    class Attached(Protocol):
        """A duplex connection to a process's streams. A context manager; closing it does not end the process."""

        identifier: str  # the workload's id, or the exec's

        def fileno(self) -> int:
            """For select and poll: readable when ``read`` would answer."""

        def read(self) -> tuple[int, bytes]:
            """The next piece: (1 stdout | 2 stderr, bytes); with a terminal all is 1; (0, b"") at the end."""

        def pieces(self) -> Iterator[tuple[int, bytes]]:
            """read until the end."""

        def write(self, data: bytes) -> None:
            """Bytes for its standard input. BrokenPipeError once it takes no more."""

        def close_stdin(self) -> None:
            """End of file on its standard input."""

        def resize(self, rows: int, columns: int) -> None:
            """Tell its terminal the new size."""

        def kill(self, signal: int) -> None:
            """Signal this very process (the exec's own, or the workload's first)."""

        def wait(self, timeout: float | None = None) -> Exit:
            """How it ended. TimeoutError after ``timeout`` seconds."""

        def close(self) -> None:
            """Detach."""

        def __enter__(self) -> Attached: ...

        def __exit__(self, *exc: object) -> None: ...
