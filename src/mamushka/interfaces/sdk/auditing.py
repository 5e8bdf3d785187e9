"""What a box with these settings could reach, tried and scored."""

from __future__ import annotations

from mamushka.interfaces.sdk import ask
from mamushka.interfaces.sdk.host import default_engine, ensure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Unpack

    from mamushka.engine.audit import Report
    from mamushka.engine.engine import Engine
    from mamushka.interfaces.sdk.ask import Asked


def audit(
    image: str = "host", *, pull: str = "missing", engine: Engine | None = None, **asked: Unpack[Asked]
) -> Report:
    """Run the probe in a box of its own, and say what it reached. The settings are those of ``run``.

    ``score`` and each of ``axes`` are 0, nothing was reached, to 100; ``findings`` say what was tried, ``reached``
    those that got something, each with what closes it.

    >>> mamushka.audit(network="none", user="65534", capabilities_drop=["ALL"], memory="1g", pids=64, cpus=1).axes
    {'network': 0, 'secrets': 0, 'files': 5, 'privileges': 0, 'processes': 0}
    """
    import os

    from mamushka.engine.audit import audit as examine

    engine = engine or default_engine()
    ensure(engine, image, asked.get("platform", ""), pull)
    return examine(engine, ask.settings(image, (), asked), environment=os.environ)
