"""A workload that counts, aloud and in a file: what goes on from where it stood goes on counting there."""

from __future__ import annotations

import time

from mamushka.engine.engine import Engine
from mamushka.engine.settings import Attachment, Settings

COUNT = "i=0; while :; do i=$((i+1)); echo $i; echo $i >> /root/counted; sleep 0.2; done"


def counting(engine: Engine, script: str = COUNT, **given: object) -> str:
    """Its id, once it was started."""
    given.setdefault("networks", (Attachment("none"),))
    id = engine.create(Settings(image="host", command=("sh", "-c", script), **given))  # type: ignore[arg-type]
    engine.start(id)
    return id


def numbers(engine: Engine, id: str, least: int) -> list[int]:
    """All that it has ever counted, once that is enough."""
    deadline = time.monotonic() + 60
    while True:
        found = [int(line.data) for line in engine.logs(id) if line.data.strip().isdigit()]
        if len(found) >= least:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
