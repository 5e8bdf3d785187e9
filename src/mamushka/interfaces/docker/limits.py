"""Ulimits, devices, throttles and restart policies as Docker spells them."""

from __future__ import annotations

from mamushka.engine.settings import Device, Restart, Throttle, Ulimit
from mamushka.errors import Invalid
from mamushka.interfaces.docker import units

ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
    *("rtprio", "rttime", "sigpending", "stack"),
)
POLICIES = ("no", "on-failure", "always", "unless-stopped")


def ulimit(text: str) -> Ulimit:
    """NAME=SOFT[:HARD]; -1 is unlimited."""
    name, equals, limits = text.partition("=")
    if name not in ULIMITS:
        raise Invalid(f"{name!r} is not a resource limit", hint="one of " + ", ".join(ULIMITS))
    soft_text, colon, hard_text = limits.partition(":")
    if not equals:
        raise Invalid("the limit is missing", hint=f"for example {name}=1024:2048")
    soft = _limit(soft_text)
    hard = _limit(hard_text) if colon else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise Invalid(f"the soft limit {soft_text} is above the hard limit {hard_text}")
    return Ulimit(name, soft, hard)


def _limit(text: str) -> int:
    number = -1 if text == "unlimited" else units.integer(text)
    if number < -1:
        raise Invalid(f"{number} is not a limit", hint="-1 is unlimited")
    return number


def device(text: str) -> Device:
    """SOURCE[:DESTINATION][:ACCESS], access being some of r, w and m."""
    parts = text.split(":")
    access = "rwm"
    if len(parts) > 1 and _is_access(parts[-1]):
        access = parts.pop()
    if len(parts) > 2 or not all(part.startswith("/") for part in parts):
        raise Invalid("not SOURCE[:DESTINATION][:rwm]", hint="for example /dev/fuse or /dev/sdb:/dev/disk:r")
    return Device(parts[0], parts[-1], access)


def _is_access(text: str) -> bool:
    return bool(text) and not text.strip("rwm") and len(set(text)) == len(text)


def device_rule(text: str) -> str:
    """A rule of the device cgroup: "c 42:* rmw"."""
    words = text.split(" ")
    if len(words) == 3 and words[0] in ("a", "b", "c") and _is_access(words[2]):
        major, colon, minor = words[1].partition(":")
        if colon and all(number == "*" or (number.isascii() and number.isdigit()) for number in (major, minor)):
            return text
    raise Invalid("not TYPE MAJOR:MINOR ACCESS", hint='for example "c 42:* rmw"')


def bytes_a_second(text: str) -> Throttle:
    """PATH:RATE with a size as the rate."""
    path, rate = _throttle(text)
    return Throttle(path, units.size(rate))


def operations_a_second(text: str) -> Throttle:
    """PATH:RATE with a count as the rate."""
    path, rate = _throttle(text)
    return Throttle(path, units.natural(rate))


def _throttle(text: str) -> tuple[str, str]:
    path, colon, rate = text.rpartition(":")
    if not colon or not path.startswith("/dev/"):
        raise Invalid("not a device and a rate", hint="for example /dev/sda:1mb")
    return path, rate


def restart(text: str) -> Restart:
    """no, always, unless-stopped, on-failure[:RETRIES]."""
    policy, colon, retries = text.partition(":")
    if policy not in POLICIES:
        raise Invalid(f"{policy!r} is not a restart policy", hint="one of " + ", ".join(POLICIES))
    if colon and policy != "on-failure":
        raise Invalid(f"{policy} takes no number of retries", hint="only on-failure does: on-failure:5")
    return Restart(policy, units.natural(retries) if colon else 0)
