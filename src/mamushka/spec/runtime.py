"""OCI runtime-spec: the ``config.json`` of a bundle."""

from __future__ import annotations

from mamushka.values import value


@value
class Process:
    """The container's process."""


@value
class Resources:
    """Limits."""


@value
class Config:
    """A bundle's configuration."""
