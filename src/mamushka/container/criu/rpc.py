"""criu's requests and answers: messages of criu's images/rpc.proto in protobuf's wire format. Bytes in, values out.

A message is a mapping of field names; a table says which number each has, with a table of its own where a field is
a message again. Of the wire format there are varints (numbers, enumerations, booleans) and what has a length (text,
messages); the message has nothing else. protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, TypeAlias

    Fields: TypeAlias = Mapping[str, Any]  # a number; or a number and the fields of the message that stands there

DUMP, RESTORE, PRE_DUMP, NOTIFY, FEATURE_CHECK, VERSION = 1, 2, 4, 6, 9, 10
CGROUP_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5}
NETWORK_LOCKS = {"iptables": 1, "nftables": 2, "skip": 3}

_PAIR = {"key": 1, "val": 2}
_OPTIONS = {
    "images_dir_fd": 1, "pid": 2, "leave_running": 3, "ext_unix_sk": 4, "tcp_established": 5, "evasive_devices": 6,
    "shell_job": 7, "file_locks": 8, "log_level": 9, "log_file": 10, "ps": (11, {"address": 1, "port": 2}),
    "notify_scripts": 12, "root": 13, "parent_img": 14, "track_mem": 15, "auto_dedup": 16, "work_dir_fd": 17,
    "link_remap": 18, "ext_mnt": (23, _PAIR), "manage_cgroups": 24, "cg_root": (25, {"ctrl": 1, "path": 2}),
    "rst_sibling": 26, "inherit_fd": (27, {"key": 1, "fd": 2}), "manage_cgroups_mode": 34, "external": 37,
    "empty_ns": 38, "freeze_cgroup": 44, "tcp_skip_in_flight": 46, "lazy_pages": 48, "status_fd": 49,
    "orphan_pts_master": 50, "tcp_close": 52, "lsm_profile": 53, "lsm_mount_context": 63, "network_lock": 64,
}  # fmt: skip
_FEATURES = {"mem_track": 1, "lazy_pages": 2}
REQUEST: Fields = {"type": 1, "opts": (2, _OPTIONS), "notify_success": 3, "features": (5, _FEATURES)}
RESPONSE: Fields = {
    "type": 1, "success": 2, "restore": (4, {"pid": 1}), "notify": (5, {"script": 1, "pid": 2}), "cr_errno": 7,
    "features": (8, _FEATURES), "cr_errmsg": 9, "version": (10, {"major_number": 1, "minor_number": 2, "sublevel": 4}),
}  # fmt: skip
_VARINT, _LENGTH = 0, 2
_SIZES = {1: 8, 5: 4}  # of kinds that a later criu might send, to be skipped
_U64 = (1 << 64) - 1


def encode(message: Mapping[str, Any], fields: Fields) -> bytes:
    """A message's bytes. A sequence is a repeated field, None is left out."""
    parts = []
    for name, given in message.items():
        entry = fields[name]
        number, inner = entry if isinstance(entry, tuple) else (entry, None)
        for item in given if isinstance(given, (list, tuple)) else (given,):
            if item is not None:
                parts.append(_encoded(number, item, inner))
    return b"".join(parts)


def _encoded(number: int, item: Any, inner: Fields | None) -> bytes:
    if isinstance(item, int):
        return varint(number << 3 | _VARINT) + varint(item)
    content = encode(item, inner) if inner is not None else item.encode(errors="surrogateescape")
    return varint(number << 3 | _LENGTH) + varint(len(content)) + content


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number is the 64-bit one with the same bits."""
    number &= _U64
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def decode(raw: bytes, fields: Fields) -> dict[str, Any]:
    """The fields of a message that the table knows. Invalid for bytes that are none."""
    known = {entry[0] if isinstance(entry, tuple) else entry: name for name, entry in fields.items()}
    found: dict[str, Any] = {}
    for number, content in _fields(raw):
        if number in known:
            entry = fields[known[number]]
            if isinstance(content, bytes):
                inner = entry[1] if isinstance(entry, tuple) else None
                found[known[number]] = decode(content, inner) if inner else content.decode(errors="replace")
            else:
                found[known[number]] = content
    return found


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        if key & 7 == _VARINT:
            item, at = _varint(raw, at)
            yield key >> 3, item
            continue
        size = _SIZES.get(key & 7, -1)
        if key & 7 == _LENGTH:
            size, at = _varint(raw, at)
        if not 0 <= size <= len(raw) - at:
            raise Invalid("criu's answer is no message of its protocol")
        if key & 7 == _LENGTH:
            yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            break
        number |= (raw[at] & 0x7F) << shift
        at += 1
        if raw[at - 1] < 0x80:
            return number & _U64, at
    raise Invalid("criu's answer is no message of its protocol")
