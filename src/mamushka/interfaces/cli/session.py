"""What one invocation of the command knows: the roots, and the engine once a verb asks for it."""

from __future__ import annotations

import os

from mamushka.errors import Denied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine

DATA_ROOT = "/var/lib/mamushka"
RUN_ROOT = "/run/mamushka"


class Session:
    """One invocation. The engine is opened at first use and closed with the session."""

    def __init__(self, data_root: str = "", run_root: str = "", *, debug: bool = False) -> None:
        self.data_root = os.path.abspath(data_root or os.environ.get("MAMUSHKA_DATA_ROOT") or DATA_ROOT)
        self.run_root = os.path.abspath(run_root or os.environ.get("MAMUSHKA_RUN_ROOT") or RUN_ROOT)
        self.debug = debug
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """This host's engine. Denied for who may not change the host."""
        if self._engine is None:
            if os.geteuid() != 0:
                raise Denied(
                    f"this version needs root, and uid {os.geteuid()} is not",
                    hint="sudo mamushka …; mamushka doctor shows what is missing otherwise",
                )
            from mamushka.engine.engine import Engine

            self._engine = Engine(self.data_root, self.run_root).__enter__()
        return self._engine

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._engine is not None:
            self._engine.__exit__(*exc)
