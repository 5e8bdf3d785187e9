"""Which registries are reached how: mirrors, plain HTTP, own certificates. A TOML file says it:

    [registry."docker.io"]
    mirrors = ["https://mirror.example.org", "http://10.0.0.5:5000"]   # asked first, in this order, for pulls

    [registry."registry.lan:5000"]
    insecure = true                       # plain HTTP and unverified certificates are accepted
    ca = "/etc/ssl/registry.lan.pem"      # or: trust these certificates besides the system's

``/etc/mamushka/registries.toml`` is the machine's, ``~/.config/mamushka/registries.toml`` the user's; where
both speak of a registry, the user's table counts. Loopback needs no entry.
"""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.image.http import Trust
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

SYSTEM = "/etc/mamushka/registries.toml"
_KEYS = {"mirrors": list, "insecure": bool, "ca": str}


@value
class Configuration:
    """Mirrors by registry, and trust by "host" or "host:port"."""

    mirrors: Mapping[str, tuple[str, ...]] = EMPTY
    trust: Mapping[str, Trust] = EMPTY


def paths(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The files that are read, the more important last."""
    home = environment.get("XDG_CONFIG_HOME") or (environment.get("HOME", "") and environment["HOME"] + "/.config")
    return (SYSTEM, f"{home}/mamushka/registries.toml") if home else (SYSTEM,)


def load(files: Sequence[str]) -> Configuration:
    """What these files say together; those that do not exist say nothing. Raises Invalid."""
    mirrors: dict[str, tuple[str, ...]] = {}
    trust: dict[str, Trust] = {}
    for path in files:
        try:
            with open(path, "rb") as file:
                raw = file.read(1 << 20)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        for registry, table in _tables(raw, path).items():
            mirrors[registry] = _mirrors(table, registry, path)
            if "insecure" in table or "ca" in table:  # otherwise loopback keeps its own rule
                insecure = table.get("insecure", False)
                trust[registry] = Trust(plain=insecure, verify=not insecure, ca=table.get("ca", ""))
            for mirror in mirrors[registry]:
                if mirror.startswith("http://"):
                    trust.setdefault(mirror.removeprefix("http://"), Trust(plain=True))
    return Configuration(mirrors, trust)


def _tables(raw: bytes, path: str) -> Mapping[str, Mapping[str, Any]]:
    import tomllib

    try:
        body = tomllib.loads(raw.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise Invalid(f"cannot read {path}: {error}") from error
    tables = body.pop("registry", {})
    if body or not isinstance(tables, dict):
        raise Invalid(f"{path}: unknown key {next(iter(body), 'registry')!r}", hint='tables are [registry."HOST"]')
    for registry, table in tables.items():
        for key, entry in table.items() if isinstance(table, dict) else ((registry, table),):
            if not isinstance(entry, _KEYS.get(key, ())):
                raise Invalid(
                    f"{path}: {key!r} of registry {registry!r} is unknown or of the wrong type",
                    hint=f"keys are {', '.join(_KEYS)}",
                )
    return tables


def _mirrors(table: Mapping[str, Any], registry: str, path: str) -> tuple[str, ...]:
    mirrors = tuple(table.get("mirrors", ()))
    for mirror in mirrors:
        if not isinstance(mirror, str) or not mirror.startswith(("https://", "http://")):
            raise Invalid(f"{path}: the mirror {mirror!r} of {registry} does not begin with https:// or http://")
    return tuple(mirror.rstrip("/") for mirror in mirrors)
