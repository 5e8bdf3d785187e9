"""Platforms: ``os/architecture[/variant]``, how they are spelt and which runs where.

Names are Go's (GOOS, GOARCH), as the image-spec has them. People and kernels spell them in other ways
(x86_64, aarch64, armhf), so every platform is normalised once where it enters.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid, NotFound
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from mamushka.spec.image import Descriptor

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
    "mips64el": ("mips64le", ""),
}
# The variant that an architecture without one means.
_BASE_VARIANT = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@value
class Platform:
    """What an image runs on. ``variant`` is empty where it is the architecture's base (arm: always said)."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")

    def document(self) -> dict[str, object]:
        """The JSON object of it."""
        body: dict[str, object] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            body["os.version"] = self.os_version
        if self.os_features:
            body["os.features"] = self.os_features
        if self.variant:
            body["variant"] = self.variant
        return body


def normalise(system: str, architecture: str, variant: str = "") -> Platform:
    """One spelling for each platform."""
    system, architecture, variant = system.lower(), architecture.lower(), variant.lower()
    architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
    variant = variant or implied
    if variant[:1].isdigit():
        variant = "v" + variant
    if architecture == "arm":
        variant = variant or _BASE_VARIANT["arm"]
    elif variant == _BASE_VARIANT.get(architecture):
        variant = ""
    return Platform("darwin" if system == "macos" else system, architecture, variant)


def host() -> Platform:
    """What this machine's kernel runs natively."""
    return normalise("linux", os.uname().machine)


def parse(text: str) -> Platform:
    """A platform as a user writes it: ``linux/arm64``, ``linux/arm/v7``, or an architecture alone."""
    parts = text.split("/")
    if len(parts) > 3 or not all(part and _PLAIN.issuperset(part) for part in parts):
        raise Invalid(f"{text[:200]!r} is not a platform", hint="write os/architecture[/variant], such as linux/arm64")
    if len(parts) == 1:
        return normalise("linux", parts[0])
    return normalise(*parts)


def parse_platform(body: Mapping[str, Any]) -> Platform:
    """The platform of an index's entry or of an image's config."""

    def text(key: str) -> str:
        entry = body.get(key)
        if entry is not None and not isinstance(entry, str):
            raise Invalid(f"the platform's {key} is not a string")
        return (entry or "")[:200]

    features = body.get("os.features") or []
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        raise Invalid("the platform's os.features is not a list of strings")
    plain = normalise(text("os"), text("architecture"), text("variant"))
    return Platform(plain.os, plain.architecture, plain.variant, text("os.version"), tuple(features))


def compatible(wanted: Platform) -> tuple[Platform, ...]:
    """What a machine of this platform runs, best first: its own variant, then the lesser ones below it."""
    system, architecture = wanted.os, wanted.architecture
    level = _level(wanted)
    lesser = [normalise(system, architecture, f"v{lower}") for lower in range(level, _floor(architecture) - 1, -1)]
    if architecture == "arm64":
        lesser += [Platform(system, "arm", f"v{lower}") for lower in (8, 7, 6, 5)]
    if architecture == "amd64":
        lesser.append(Platform(system, "386"))
    return tuple(lesser) or (wanted,)


def _level(platform: Platform) -> int:
    variant = platform.variant or _BASE_VARIANT.get(platform.architecture, "")
    digits = variant.removeprefix("v").partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 3 else 0


def _floor(architecture: str) -> int:
    return {"arm": 5, "arm64": 8, "amd64": 1}.get(architecture, 1)


def select(manifests: Iterable[Descriptor], wanted: Platform, *, strict: bool = False) -> Descriptor:
    """The entry of an index for a platform; ``strict`` takes only that very platform. Raises NotFound.

    An entry that does not say its platform is taken when no other fits.
    """
    entries = [entry for entry in manifests if entry.platform is None or entry.platform.os != "unknown"]
    for candidate in (wanted,) if strict else compatible(wanted):
        for entry in entries:
            if entry.platform is not None and same(entry.platform, candidate):
                return entry
    for entry in entries:
        if entry.platform is None:
            return entry
    offered = sorted({str(entry.platform) for entry in entries})
    raise NotFound(
        f"no image for {wanted}: it exists for {', '.join(offered[:20]) or 'no platform at all'}",
        hint=f"choose one with --platform {offered[0]}" if offered else "",
    )


def same(one: Platform, other: Platform) -> bool:
    """Whether system, architecture and variant agree."""
    return (one.os, one.architecture, one.variant) == (other.os, other.architecture, other.variant)
