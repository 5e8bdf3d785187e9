"""Mounts as Docker spells them: ``-v SOURCE:DESTINATION:OPTIONS``, ``--mount key=value,…`` and ``--tmpfs``."""

from __future__ import annotations

import os

from mamushka.engine.settings import Mount
from mamushka.errors import Invalid
from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
# Words that other systems' file sharing or SELinux give a meaning to; without them they say nothing.
_WITHOUT_EFFECT = ("rw", "z", "Z", "cached", "delegated", "consistent")


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise Invalid(
            f"the mount path {path!r} is not absolute", hint="name the place inside the workload, such as /data"
        )
    clean = os.path.normpath("/" + path.lstrip("/"))
    if clean == "/":
        raise Invalid("a mount cannot replace the whole root", hint="name a directory inside the workload")
    return clean


def _is_path(source: str) -> bool:
    return source.startswith(("/", "./", "../", "~/")) or source in (".", "..", "~")


def _volume_name(name: str) -> str:
    if not (
        name.isascii() and name[:1].isalnum() and name.replace("_", "").replace(".", "").replace("-", "").isalnum()
    ):
        raise Invalid(
            f"{name!r} is neither a path nor the name of a volume",
            hint="a path starts with / or ./; a name has letters, digits, _ . and -",
        )
    return name


def volume(text: str) -> Mount:
    """One ``-v``: a bind of a path, a named volume, or an anonymous one."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise Invalid("not SOURCE:DESTINATION[:OPTIONS]", hint="for example -v ./src:/app:ro or -v cache:/var/cache")
    if len(parts) == 1:
        return Mount("volume", _absolute(parts[0]))
    words = parts[2].split(",") if len(parts) == 3 else []
    extra: dict[str, Any] = {"read_only": "ro" in words}
    for word in words:
        if word in PROPAGATIONS:
            extra["propagation"] = word
        elif word == "nocopy":
            extra["copy_up"] = False
        elif word != "ro" and word not in _WITHOUT_EFFECT:
            raise Invalid(f"{word!r} is not an option of -v", hint="ro, rw, nocopy, or a propagation such as rslave")
    if _is_path(parts[0]):
        source = os.path.abspath(os.path.expanduser(parts[0]))
        return Mount("bind", _absolute(parts[1]), source, create_source=True, **extra)
    return Mount("volume", _absolute(parts[1]), _volume_name(parts[0]), **extra)


def tmpfs(text: str) -> Mount:
    """One ``--tmpfs``: DESTINATION[:size=64m,mode=1777,exec,…]."""
    destination, _, words = text.partition(":")
    size, mode, options = 0, 0o1777, []
    for word in words.split(",") if words else ():
        key, _, text = word.partition("=")
        if key == "size":
            size = units.size(text)
        elif key == "mode":
            mode = _mode(text)
        else:
            options.append(word)
    read_only = "ro" in options
    kept = tuple(word for word in options if word not in ("ro", "rw"))
    return Mount("tmpfs", _absolute(destination), size=size, mode=mode, options=kept, read_only=read_only)


def _mode(text: str) -> int:
    if not text or text.strip("01234567") or len(text) > 5:
        raise Invalid(f"{text!r} is not an octal mode")
    return int(text, 8)


def fields(text: str) -> list[str]:
    """The comma-separated fields of one line of CSV; a field in double quotes may hold commas."""
    result, index = [], 0
    while index <= len(text):
        if text[index : index + 1] == '"':
            word, index = _quoted(text, index + 1)
            if index < len(text) and text[index] != ",":
                raise Invalid("a quoted field ends before its comma")
        else:
            end = text.find(",", index)
            end = len(text) if end < 0 else end
            word, index = text[index:end], end
            if '"' in word:
                raise Invalid("a quote stands inside a field", hint='quote the whole field: "source=/a,b"')
        result.append(word)
        index += 1
    return result


def _quoted(text: str, index: int) -> tuple[str, int]:
    word = ""
    while True:
        end = text.find('"', index)
        if end < 0:
            raise Invalid("a quote is not closed")
        word += text[index:end]
        if text[end + 1 : end + 2] != '"':
            return word, end + 1
        word, index = word + '"', end + 2


def _truth(text: str) -> bool:
    if text.lower() in ("", "1", "t", "true"):
        return True
    if text.lower() in ("0", "f", "false"):
        return False
    raise Invalid(f"{text!r} is not true or false")


_KEYS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_BY_KIND = {
    "bind": ("bind-propagation", "bind-recursive", "bind-create-src"),
    "volume": ("volume-nocopy", "volume-label", "volume-subpath"),
    "tmpfs": ("tmpfs-size", "tmpfs-mode"),
}


def mount(text: str) -> Mount:
    """One ``--mount``: type=bind|volume|tmpfs,source=…,target=…,readonly and what the kind knows besides."""
    kind, pairs = "volume", []
    for field in fields(text):
        key, _, word = field.partition("=")
        key = _KEYS.get(key.strip().lower(), key.strip().lower())
        if key == "type":
            kind = word.lower()
        else:
            pairs.append((key, word))
    if kind not in _BY_KIND:
        raise Invalid(f"{kind!r} is not a type of mount", hint="type is bind, volume or tmpfs")
    known = ("source", "target", "readonly", *_BY_KIND[kind])
    found: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for key, word in pairs:
        if key not in known:
            raise Invalid(f"{key!r} is not a field of a {kind} mount", hint="it takes " + ", ".join(known))
        if key == "volume-label":
            name, _, labels[name] = word.partition("=")
        else:
            found[key] = word
    if not found.get("target"):
        raise Invalid("target is missing", hint="for example --mount type=bind,source=/srv,target=/data")
    return _mount(kind, found, labels)


def _mount(kind: str, found: dict[str, Any], labels: dict[str, str]) -> Mount:
    source = found.get("source", "")
    extra: dict[str, Any] = {"read_only": "readonly" in found and _truth(found["readonly"])}
    if kind == "bind":
        if not source:
            raise Invalid("source is missing", hint="a bind mount shows a path of this machine: source=/srv")
        source = os.path.abspath(os.path.expanduser(source))
        extra["propagation"] = _propagation(found.get("bind-propagation", "rprivate"))
        extra["recursive"] = found.get("bind-recursive", "enabled") != "disabled"
        extra["create_source"] = "bind-create-src" in found and _truth(found["bind-create-src"])
    elif kind == "volume":
        source = _volume_name(source) if source else ""
        extra["copy_up"] = not ("volume-nocopy" in found and _truth(found["volume-nocopy"]))
        extra["subpath"] = found.get("volume-subpath", "")
        extra["labels"] = labels
    elif source:
        raise Invalid("a tmpfs mount has no source")
    else:
        extra["size"] = units.size(found["tmpfs-size"]) if "tmpfs-size" in found else 0
        extra["mode"] = _mode(found.get("tmpfs-mode", "1777"))
    return Mount(kind, _absolute(found["target"]), source, **extra)


def _propagation(word: str) -> str:
    if word not in PROPAGATIONS:
        raise Invalid(f"{word!r} is not a propagation", hint=", ".join(PROPAGATIONS))
    return word
