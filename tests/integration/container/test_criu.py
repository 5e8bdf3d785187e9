"""The messages that criu is sent, against the installed criu's own description of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from mamushka.container.criu import rpc
from tests import peers

_MESSAGE = struct.pack("<I", 0x28AAEEF9)  # ProtobufCMessageDescriptor.magic, protobuf-c.h
_FIELD = 72  # sizeof(ProtobufCFieldDescriptor)


class Image:
    """An ELF file of 64 bits, little endian, with its relative relocations."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self.raw = file.read()
        (table,), (count,) = struct.unpack_from("<Q", self.raw, 40), struct.unpack_from("<H", self.raw, 60)
        self.sections = [struct.unpack_from("<IIQQQQIIQQ", self.raw, table + 64 * index) for index in range(count)]
        self.pointers: dict[int, int] = {}
        for _, kind, _, _, offset, size, *_ in self.sections:
            for at in range(offset, offset + size, 24) if kind == 4 else ():  # SHT_RELA
                place, _, addend = struct.unpack_from("<QQq", self.raw, at)
                self.pointers[place] = addend

    def offset(self, address: int) -> int:
        for _, kind, _, start, offset, size, *_ in self.sections:
            if kind != 8 and start and start <= address < start + size:
                return int(offset + address - start)
        raise LookupError(hex(address))

    def address(self, at: int) -> int:
        for _, kind, _, start, offset, size, *_ in self.sections:
            if kind != 8 and start and offset <= at < offset + size:
                return int(start + at - offset)
        raise LookupError(at)

    def text(self, address: int) -> str:
        start = self.offset(address)
        return self.raw[start : self.raw.index(b"\0", start)].decode()

    def messages(self) -> Iterator[tuple[str, dict[str, int]]]:
        """(name, fields with their numbers) of each message that it knows."""
        at = self.raw.find(_MESSAGE)
        while at >= 0:
            try:
                own = self.address(at)
                yield self.text(self.pointers[own + 8]), dict(self._fields(at, self.pointers[own + 56]))
            except (LookupError, UnicodeDecodeError):
                pass
            at = self.raw.find(_MESSAGE, at + 1)

    def _fields(self, message: int, first: int) -> Iterator[tuple[str, int]]:
        (count,) = struct.unpack_from("<I", self.raw, message + 48)
        for field in range(first, first + _FIELD * count, _FIELD):
            yield self.text(self.pointers[field]), struct.unpack_from("<I", self.raw, self.offset(field) + 8)[0]


def test_every_field_has_the_number_that_criu_gives_it() -> None:
    peers.need("criu")
    theirs = dict(Image(peers.find("criu")).messages())
    ours = {"criu_req": rpc.REQUEST, "criu_resp": rpc.RESPONSE}
    nested = {"opts": "criu_opts", "features": "criu_features", "notify": "criu_notify", "version": "criu_version",
              "restore": "criu_restore_resp", "ps": "criu_page_server_info", "ext_mnt": "ext_mount_map",
              "cg_root": "cgroup_root", "inherit_fd": "inherit_fd"}  # fmt: skip

    def compare(name: str, fields: Any) -> int:
        count = 0
        for field, entry in fields.items():
            number = entry[0] if isinstance(entry, tuple) else entry
            assert theirs[name][field] == number, f"{name}.{field}"
            count += 1 + (compare(nested[field], entry[1]) if isinstance(entry, tuple) else 0)
        return count

    assert sum(compare(name, fields) for name, fields in ours.items()) > 60
