"""Addresses and subnets as integers: what the standard ``ipaddress`` does, without its 5 ms of import."""

from __future__ import annotations

import _socket

from mamushka.errors import Invalid
from mamushka.values import value


@value
class Subnet:
    """``base`` is the first address as an integer; ``bits`` is 32 or 128."""

    base: int
    prefix: int
    bits: int

    @property
    def last(self) -> int:
        """The last address; in IPv4 the broadcast address."""
        return self.base + (1 << self.bits - self.prefix) - 1

    def __contains__(self, address: int) -> bool:
        return self.base <= address <= self.last

    def overlaps(self, other: Subnet) -> bool:
        """Whether an address lies in both."""
        return self.bits == other.bits and self.base <= other.last and other.base <= self.last

    def __str__(self) -> str:
        return f"{unpack(self.base, self.bits)}/{self.prefix}"


def hardware(text: str) -> bytes:
    """A card's address, as ours are written: six bytes in hexadecimal with colons between them."""
    return bytes.fromhex(text.replace(":", ""))


def pack(address: str) -> bytes:
    """Four or sixteen bytes. Invalid where it is not an address."""
    try:
        return _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)
    except (OSError, ValueError) as error:
        raise Invalid(f"{address!r} is not an IP address") from error


def parse(address: str) -> int:
    """An address as an integer."""
    return int.from_bytes(pack(address), "big")


def unpack(address: int, bits: int) -> str:
    """An integer as text."""
    family = _socket.AF_INET if bits == 32 else _socket.AF_INET6
    return _socket.inet_ntop(family, address.to_bytes(bits // 8, "big"))


def parse_subnet(text: str, *, strict: bool = True) -> Subnet:
    """``172.18.0.0/16``. Strict: Invalid where bits stand to the right of the prefix."""
    address, slash, length = text.partition("/")
    packed = pack(address)
    bits = len(packed) * 8
    if not slash or not length.isascii() or not length.isdigit() or len(length) > 3 or int(length) > bits:
        raise Invalid(f"{text!r} is not a subnet", hint="write it as address/prefix: 172.30.0.0/16")
    prefix = int(length)
    whole = int.from_bytes(packed, "big")
    base = whole >> bits - prefix << bits - prefix
    if strict and base != whole:
        raise Invalid(f"{text!r} has bits set beyond its prefix", hint=f"did you mean {unpack(base, bits)}/{prefix}?")
    return Subnet(base, prefix, bits)
