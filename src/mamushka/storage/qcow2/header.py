"""The header of a qcow2 image: bytes in, a value out, and back. QEMU, docs/interop/qcow2.txt.

All numbers are big endian. Version 2 has 72 bytes; version 3 adds feature bits, the width of reference counts and its
own length. Behind it stand extensions (type, length, content), then the backing file's name.

Features that an image needs are bits. An *incompatible* one that we do not know forbids opening, a *compatible* one
can be ignored, an *autoclear* one must be cleared by who writes without keeping it true.
"""

from __future__ import annotations

from struct import Struct

from mamushka.errors import Invalid, Unsupported
from mamushka.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"QFI\xfb"
_FIRST = Struct(">4sIQIIQIIQQIIQ")
_SECOND = Struct(">QQQII")
_EXTENSION = Struct(">II")
V2_LENGTH, V3_LENGTH = 72, 104
READ = 1 << 16  # bytes that are read of a file to find everything of the header

# Incompatible features.
DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = 0x1, 0x2, 0x4, 0x8, 0x10
KNOWN = DIRTY | CORRUPT | COMPRESSION
NAMES = {2: "an external data file", 4: "extended L2 entries (subclusters)"}
LAZY_REFCOUNTS = 0x1  # a compatible feature

_BACKING_FORMAT, _FEATURE_NAMES, _END = 0xE2792ACA, 0x6803F857, 0
ZLIB, ZSTD = 0, 1

# Bounds, all as QEMU has them: what it refuses nobody has.
BITS_MIN, BITS_MAX = 9, 21  # clusters of 512 bytes to 2 MiB
L1_MAX = 32 << 20  # bytes; the whole table is kept in memory
REFTABLE_MAX = 8 << 20  # bytes, likewise
BACKING_MAX = 1023  # bytes of a name; PATH_MAX bounds what could be opened anyway
SNAPSHOTS_MAX = 65536
_OFFSET = 1 << 56  # host offsets have 56 bits


@value
class Header:
    """What an image says about itself. Offsets and sizes are bytes, but where a name ends in ``clusters``."""

    version: int
    cluster_bits: int
    size: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression: int = ZLIB
    backing: str = ""
    backing_format: str = ""

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits


def l1_entries(size: int, cluster_bits: int) -> int:
    """Entries of the first table that a disk of ``size`` bytes needs."""
    return -(-size >> 2 * cluster_bits - 3)


def parse(raw: bytes) -> Header:
    """The header from an image's first bytes (``READ``). Invalid when broken, Unsupported with what we have not."""
    if len(raw) < V2_LENGTH or raw[:4] != MAGIC:
        raise Invalid("not a qcow2 image: it does not begin with QFI\\xfb", hint="is the format raw?")
    (_, version, backing, backing_length, bits, size, crypt, l1_size, l1_offset, refcount_offset, refcount_clusters,
     snapshots, snapshots_offset) = _FIRST.unpack_from(raw)  # fmt: skip
    if version not in (2, 3):
        raise Unsupported(f"qcow2 of version {version}", hint="qemu-img convert -O qcow2 makes version 3 of it")
    if not BITS_MIN <= bits <= BITS_MAX:
        raise Invalid(f"qcow2: clusters of 2^{bits} bytes")
    if crypt:
        raise Unsupported(f"qcow2: encrypted (method {crypt})", hint="qemu-img convert makes a plain image of it")
    header = Header(
        version, bits, size, l1_size, l1_offset, refcount_offset, refcount_clusters, snapshots, snapshots_offset
    )
    length = V2_LENGTH
    if version == 3:
        header, length = _features(header, raw)
    header = _extensions(header, raw, length, backing or header.cluster)
    _check(header)
    if backing:
        header = replace(header, backing=_backing(raw, backing, backing_length, header.cluster))
        if not header.backing_format:
            raise Invalid(
                f"qcow2: the format of the backing file {header.backing!r} is not named, and is not guessed",
                hint="qemu-img rebase -u -b BACKING -F raw|qcow2 IMAGE names it",
            )
    return header


def _features(header: Header, raw: bytes) -> tuple[Header, int]:
    if len(raw) < V3_LENGTH:
        raise Invalid("qcow2: the header is cut off")
    incompatible, compatible, autoclear, order, length = _SECOND.unpack_from(raw, V2_LENGTH)
    if length < V3_LENGTH or length % 8 or length > min(header.cluster, len(raw)):
        raise Invalid(f"qcow2: a header of {length} bytes")
    if order > 6:
        raise Invalid(f"qcow2: reference counts of 2^{order} bits")
    compression = raw[104] if length > 104 else ZLIB
    if bool(incompatible & COMPRESSION) != (compression != ZLIB):
        raise Invalid(f"qcow2: compression {compression} does not go with the feature bits {incompatible:#x}")
    if compression not in (ZLIB, ZSTD):
        raise Unsupported(f"qcow2: compression method {compression}")
    changed = replace(
        header, incompatible=incompatible, compatible=compatible, autoclear=autoclear, refcount_order=order,
        compression=compression,
    )  # fmt: skip
    return changed, length


def _extensions(header: Header, raw: bytes, start: int, end: int) -> Header:
    """Take the backing file's format, and refuse unknown features by the names that the image gives them."""
    names = dict(NAMES)
    for kind, content in _each(raw, start, min(end, len(raw), header.cluster)):
        if kind == _BACKING_FORMAT:
            header = replace(header, backing_format=content.decode("ascii", "replace"))
        elif kind == _FEATURE_NAMES:
            for at in range(0, len(content) - 47, 48):
                if content[at] == 0:
                    name = content[at + 2 : at + 48].rstrip(b"\0").decode("ascii", "replace")
                    names.setdefault(content[at + 1], name)
    unknown = header.incompatible & ~KNOWN
    if unknown:
        wanted = ", ".join(names.get(bit, f"bit {bit}") for bit in range(64) if unknown >> bit & 1)
        raise Unsupported(f"qcow2: the image needs {wanted!r}", hint="qemu-img convert -O qcow2 makes a plain one")
    return header


def _each(raw: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    while at + 8 <= end:
        kind, length = _EXTENSION.unpack_from(raw, at)
        if kind == _END:
            return
        if length > end - at - 8:
            raise Invalid(f"qcow2: extension {kind:#x} of {length} bytes leads out of the header")
        yield kind, raw[at + 8 : at + 8 + length]
        at += 8 + (length + 7 & ~7)


def _backing(raw: bytes, offset: int, length: int, cluster: int) -> str:
    if not 0 < length <= BACKING_MAX or offset + length > min(cluster, len(raw)):
        raise Invalid(f"qcow2: the backing file's name lies at {offset}, {length} bytes")
    name = raw[offset : offset + length]
    if b"\0" in name:
        raise Invalid("qcow2: the backing file's name has a zero byte")
    return name.decode("utf-8", "surrogateescape")


def _check(header: Header) -> None:
    mask = header.cluster - 1
    if header.size % 512:
        raise Invalid(f"qcow2: a disk of {header.size} bytes, not whole sectors")
    if header.l1_entries * 8 > L1_MAX or header.l1_entries < l1_entries(header.size, header.cluster_bits):
        raise Invalid(f"qcow2: an L1 table of {header.l1_entries} entries for a disk of {header.size} bytes")
    if header.l1_entries and (header.l1_offset & mask or not mask < header.l1_offset < _OFFSET):
        raise Invalid(f"qcow2: the L1 table lies at {header.l1_offset:#x}")
    if header.refcount_offset & mask or not mask < header.refcount_offset < _OFFSET:
        raise Invalid(f"qcow2: the refcount table lies at {header.refcount_offset:#x}")
    if not 0 < header.refcount_clusters <= REFTABLE_MAX >> header.cluster_bits:
        raise Invalid(f"qcow2: a refcount table of {header.refcount_clusters} clusters")
    if header.snapshots > SNAPSHOTS_MAX:
        raise Invalid(f"qcow2: {header.snapshots} snapshots")


def pack(header: Header) -> bytes:
    """The first bytes of an image, backing file's name and format included; they fit into any cluster."""
    name = header.backing.encode("utf-8", "surrogateescape")
    extensions = b""
    if header.backing:
        kind = header.backing_format.encode("ascii")
        extensions = _EXTENSION.pack(_BACKING_FORMAT, len(kind)) + kind + bytes(-len(kind) % 8)
    extensions += _EXTENSION.pack(_END, 0)
    length = V3_LENGTH + 8 if header.version == 3 else V2_LENGTH
    at = length + len(extensions)
    if len(name) > BACKING_MAX or at + len(name) > header.cluster:
        raise Invalid(f"qcow2: the backing file's name has {len(name)} bytes", hint="use a shorter, relative one")
    first = _FIRST.pack(
        MAGIC, header.version, at if name else 0, len(name), header.cluster_bits, header.size, 0, header.l1_entries,
        header.l1_offset, header.refcount_offset, header.refcount_clusters, header.snapshots, header.snapshots_offset,
    )  # fmt: skip
    if header.version == 3:
        first += _SECOND.pack(
            header.incompatible, header.compatible, header.autoclear, header.refcount_order, length
        ) + bytes((header.compression,)).ljust(8, b"\0")
    return first + extensions + name
