"""ACPI's machine language, as much of it as describing devices takes. ACPI 6.5, chapter 20; resources, section 6.4.

Functions give bytes and nest as the language does: ``device("COM1", name("_HID", eisa_id("PNP0501")), …)``.
"""

from __future__ import annotations

import struct


def package_length(body: bytes) -> bytes:
    """The body with its length in front, which counts its own bytes. Section 20.2.4."""
    if len(body) < 0x3F:
        return bytes((len(body) + 1,)) + body
    further = 1 if len(body) + 2 < 1 << 12 else 2 if len(body) + 3 < 1 << 20 else 3
    total = len(body) + 1 + further
    assert total < 1 << 28, total
    # The first byte: how many follow, and the lowest four bits; the others eight bits each.
    return bytes((further << 6 | total & 0xF,)) + (total >> 4).to_bytes(further, "little") + body


def path(text: str) -> bytes:
    r"""A name, ``\`` in front for the root, its parts separated by dots and filled up with underscores."""
    root = b"\\" if text.startswith("\\") else b""
    parts = [part.ljust(4, "_").encode("ascii") for part in text.removeprefix("\\").split(".")]
    assert all(len(part) == 4 for part in parts), text
    if len(parts) == 1:
        return root + parts[0]
    prefix = b"\x2e" if len(parts) == 2 else b"\x2f" + bytes((len(parts),))
    return root + prefix + b"".join(parts)


def integer(number: int) -> bytes:
    """The shortest of its spellings."""
    if number < 2:
        return b"\x01" if number else b"\x00"
    for prefix, size in ((b"\x0a", 1), (b"\x0b", 2), (b"\x0c", 4)):
        if number < 1 << 8 * size:
            return prefix + number.to_bytes(size, "little")
    return b"\x0e" + number.to_bytes(8, "little")


def string(text: str) -> bytes:
    """Text, ASCII without NUL."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """Three letters and four hexadecimal digits in 32 bits, big endian. Section 19.3.4, EISAID."""
    first, second, third = (ord(letter) - 0x40 for letter in text[:3])
    return b"\x0c" + struct.pack(">HH", first << 10 | second << 5 | third, int(text[3:], 16))


def buffer(content: bytes) -> bytes:
    """Bytes."""
    return b"\x11" + package_length(integer(len(content)) + content)


def package(*elements: bytes) -> bytes:
    """A list."""
    return b"\x12" + package_length(bytes((len(elements),)) + b"".join(elements))


def name(label: str, content: bytes) -> bytes:
    """An object with a name."""
    return b"\x08" + path(label) + content


def scope(label: str, *terms: bytes) -> bytes:
    """Terms within what was defined elsewhere."""
    return b"\x10" + package_length(path(label) + b"".join(terms))


def device(label: str, *terms: bytes) -> bytes:
    """A device."""
    return b"\x5b\x82" + package_length(path(label) + b"".join(terms))


def method(label: str, arguments: int, *terms: bytes) -> bytes:
    """Code; serialized, as what makes no names of its own may well be."""
    return b"\x14" + package_length(path(label) + bytes((arguments | 8,)) + b"".join(terms))


def notify(label: str, number: int) -> bytes:
    """Tell the driver of a device that something happened to it."""
    return b"\x86" + path(label) + integer(number)


def resources(*descriptors: bytes) -> bytes:
    """What ``_CRS`` gives: descriptors, then the end tag, whose checksum zero means "not computed"."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def memory32(address: int, length: int) -> bytes:
    """Memory32Fixed, to be read and written. Section 6.4.3.4."""
    return struct.pack("<BHBII", 0x86, 9, 1, address, length)


def io(port: int, length: int) -> bytes:
    """IO, sixteen address lines decoded. Section 6.4.2.5."""
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, length)


def interrupt(gsi: int) -> bytes:
    """Interrupt: of the device alone, edge-triggered, active high. Section 6.4.3.6."""
    return struct.pack("<BHBBI", 0x89, 6, 0x3, 1, gsi)
