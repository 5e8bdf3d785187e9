"""Headers of the tar format as they are written: ustar, with a pax header in front where ustar is too small.

pax(1), "pax Interchange Format". Times keep their nanoseconds, extended attributes go into SCHILY.xattr
records as every container tool writes and reads them.
"""

from __future__ import annotations

from mamushka.spec.tar import DIRECTORY, RECORD, REGULAR, Member

# Two zero blocks end an archive.
END = bytes(2 * RECORD)
_OCTAL_7, _OCTAL_11 = 8**7, 8**11


def header(member: Member) -> bytes:
    """All blocks in front of a member's ``size`` bytes of data (REGULAR) or of the next member."""
    name = member.name + b"/" if member.kind == DIRECTORY else member.name
    size = member.size if member.kind == REGULAR else 0
    seconds, fraction = divmod(member.mtime_ns, 10**9)
    records: list[tuple[bytes, bytes]] = []
    if len(name) > 100:
        records.append((b"path", name))
    if len(member.link) > 100:
        records.append((b"linkpath", member.link))
    if size >= _OCTAL_11:
        records.append((b"size", b"%d" % size))
    records += [(key, b"%d" % id) for key, id in ((b"uid", member.uid), (b"gid", member.gid)) if id >= _OCTAL_7]
    if fraction or not 0 <= seconds < _OCTAL_11:
        records.append((b"mtime", _seconds(member.mtime_ns)))
    records += [(b"SCHILY.xattr." + key.encode("utf-8", "surrogateescape"), content) for key, content in member.xattrs]
    block = _block(member._replace(name=name, size=size))
    if not records:
        return block
    body = b"".join(map(_record, records))
    extended = _block(Member(b"PaxHeaders/" + name.rstrip(b"/")[-80:], b"x", size=len(body)))
    return extended + body + padding(len(body)) + block


def padding(size: int) -> bytes:
    """What follows ``size`` bytes of data to fill the last block."""
    return bytes(-size % RECORD)


def _seconds(nanoseconds: int) -> bytes:
    whole, fraction = divmod(abs(nanoseconds), 10**9)
    return b"%s%d.%09d" % (b"-" if nanoseconds < 0 else b"", whole, fraction)


def _record(record: tuple[bytes, bytes]) -> bytes:
    """ "length key=value\\n", where the length counts its own digits."""
    rest = b" %s=%s\n" % record
    length = len(rest) + len(str(len(rest)))
    if len(str(length)) + len(rest) != length:
        length += 1
    return b"%d%s" % (length, rest)


def _block(member: Member) -> bytes:
    block = b"".join(
        (
            member.name[:100].ljust(100, b"\0"),
            _octal(member.mode, 8),
            _octal(member.uid, 8),
            _octal(member.gid, 8),
            _octal(member.size, 12),
            _octal(member.mtime_ns // 10**9, 12),
            b" " * 8,
            member.kind,
            member.link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            _octal(member.major, 8),
            _octal(member.minor, 8),
            bytes(167),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _octal(number: int, width: int) -> bytes:
    """Zero where it does not fit: a pax record says it then."""
    digits = width - 1
    return b"%0*o\0" % (digits, number if 0 <= number < 8**digits else 0)
