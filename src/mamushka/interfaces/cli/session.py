"""What one invocation of the command knows: the roots, and the engine once a verb asks for it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.engine import Engine


class Session:
    """One invocation. The engine is opened at first use and closed with the session."""

    def __init__(self, data_root: str = "", run_root: str = "", *, debug: bool = False) -> None:
        self._data_root = data_root or os.environ.get("MAMUSHKA_DATA_ROOT", "")
        self._run_root = run_root or os.environ.get("MAMUSHKA_RUN_ROOT", "")
        self.debug = debug
        self._engine: Engine | None = None

    @property
    def data_root(self) -> str:
        """Where images, volumes and workloads are kept."""
        return os.path.abspath(self._data_root or _defaults()[0])

    @property
    def run_root(self) -> str:
        """Where the state of this boot is kept."""
        return os.path.abspath(self._run_root or _defaults()[1])

    @property
    def engine(self) -> Engine:
        """This user's engine on this host."""
        if self._engine is None:
            from mamushka.engine.engine import Engine
            from mamushka.linux.process import initial

            self._engine = Engine(self.data_root, self.run_root).__enter__()
            if not initial():
                self._tell_once()
        return self._engine

    def _tell_once(self) -> None:
        """An ordinary user with one id is told what that means, once."""
        from mamushka.engine.rootless import limitation

        told = f"{self.data_root}/told-one-id"
        reason = limitation()
        if reason and not os.path.exists(told):
            from mamushka.interfaces.cli.output import complain

            os.close(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            complain("you have one id: every file of an image will be yours, and no other user can be run", reason)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._engine is not None:
            self._engine.__exit__(*exc)


def _defaults() -> tuple[str, str]:
    from mamushka.engine.paths import default_roots

    return default_roots()
