"""A snapshot: what a box was at one moment, for any number of further boxes to go on from.

It lies with the box that it was made of and goes with that, unless it was given a directory of its own.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.checkpoints import Checkpoint
    from mamushka.engine.engine import Engine
    from mamushka.engine.workload import Workload
    from mamushka.interfaces.sdk.box import Box


class Snapshot:
    """Made by ``Box.snapshot``. A context manager that removes it at the end; boxes that went on from it stay."""

    def __init__(self, engine: Engine, workload: Workload, made: Checkpoint) -> None:
        self.name, self.directory = made.name, made.directory
        self._engine, self._workload, self._made = engine, workload, made

    def __repr__(self) -> str:
        return f"<mamushka.Snapshot {self.name} of {self._workload.id[:12]}>"

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def start(self, *, name: str = "") -> Box:
        """A further box that goes on from here, as itself: its own name, addresses and random numbers."""
        return self.start_many(1, names=(name,) if name else ())[0]

    def start_many(self, count: int, *, names: tuple[str, ...] = ()) -> list[Box]:
        """``count`` of them; ``names`` one for each, or none."""
        from mamushka.interfaces.sdk.box import Box

        return [Box(self._engine, id) for id in self._engine.spawn(self._workload, self._made, count, names=names)]

    def remove(self) -> None:
        """Remove it from the disk; harmless when it is gone."""
        from shutil import rmtree

        rmtree(self.directory, ignore_errors=True)
