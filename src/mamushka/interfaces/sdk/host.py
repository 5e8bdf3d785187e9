"""This machine: its engine, and the images on it."""

from __future__ import annotations

from mamushka.errors import Invalid, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mamushka.engine.engine import Engine
    from mamushka.engine.images import ImageSummary, Progress

_engine: Engine | None = None


def default_engine() -> Engine:
    """The engine of this machine, opened at first use and shared by the process."""
    global _engine
    if _engine is None:
        from mamushka.engine.engine import Engine

        _engine = Engine()
    return _engine


def pull(
    name: str,
    *,
    platform: str = "",
    progress: Callable[[Progress], None] | None = None,
    engine: Engine | None = None,
) -> ImageSummary:
    """Fetch an image, or what of it is not here yet; ``progress`` is told each step.

    >>> mamushka.pull("python:3.12", progress=lambda step: print(step.layer, step.status)).platform
    'linux/amd64'
    """
    engine = engine or default_engine()
    for step in engine.images.pull(name, platform=platform):
        if progress is not None:
            progress(step)
    return engine.images.get(name, platform=platform)


def images(*, engine: Engine | None = None) -> list[ImageSummary]:
    """The images on this machine, newest first."""
    return (engine or default_engine()).images.images()


def ensure(engine: Engine, name: str, platform: str, policy: str) -> None:
    """Have the image here, as the pull policy says: missing, always, never."""
    if policy not in ("missing", "always", "never"):
        raise Invalid(f"{policy!r} is not a pull policy", hint="missing, always, never")
    if policy != "always":
        try:
            engine.images.get(name, platform=platform)
            return
        except NotFound:
            if policy == "never":
                raise
    pull(name, platform=platform, engine=engine)
