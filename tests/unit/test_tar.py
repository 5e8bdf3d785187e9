"""The tar reader and writer: against the standard library's, in pieces as at once, and any bytes at all."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.spec import tar
from mamushka.spec.tar import BLOCK, CHARACTER, DIRECTORY, FIFO, LINK, REGULAR, SYMLINK, Member, Reader
from mamushka.spec.tar_write import END, header, padding


def read(chunks: Iterable[bytes]) -> list[tuple[Member, bytes]]:
    reader = Reader(chunks)
    return [(member, b"".join(reader.pieces())) for member in reader]


def cut(raw: bytes, size: int) -> list[bytes]:
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def archive(*members: tuple[Member, bytes]) -> bytes:
    return b"".join(header(member) + content + padding(len(content)) for member, content in members) + END


def pax(records: dict[str, str], content: bytes = b"", **fields: object) -> bytes:
    """One regular member as tarfile writes it, with pax records as given."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as written:
        info = tarfile.TarInfo("f")
        info.size, info.pax_headers = len(content), records
        for key, field in fields.items():
            setattr(info, key, field)
        written.addfile(info, io.BytesIO(content))
    return out.getvalue()


names = st.lists(st.text("abcé\n .-_", min_size=1, max_size=90), min_size=1, max_size=4).map(
    lambda parts: "/".join(parts)
)
infos = st.builds(
    lambda name, kind, mode, owner, mtime, link, content: (name, kind, mode, owner, mtime, link, content),
    names,
    st.sampled_from([REGULAR, LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO]),
    st.integers(0, 0o7777),
    st.integers(0, 2**31),
    st.integers(-(2**33), 2**40),
    names,
    st.binary(max_size=1500),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(infos, max_size=5), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(1, 1300))
def test_what_tarfile_writes_is_read_the_same(listed: list[tuple], form: int, size: int) -> None:  # type: ignore[type-arg]
    out = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=out, mode="w", format=form) as written:
        for name, kind, mode, owner, mtime, link, content in listed:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, owner, owner, mtime
            info.linkname = link if kind in (LINK, SYMLINK) else ""
            info.size = len(content) if kind == REGULAR else 0
            written.addfile(info, io.BytesIO(content))
            expected.append((name.encode().rstrip(b"/"), kind, mode, owner, mtime * 10**9, info.linkname.encode()))
    found = read(cut(out.getvalue(), size))
    assert found == read([out.getvalue()])
    assert [(m.name, m.kind, m.mode, m.uid, m.mtime_ns, m.link) for m, _ in found] == expected
    assert [data for m, data in found if m.kind == REGULAR] == [entry[6] for entry in listed if entry[1] == REGULAR]


@settings(max_examples=150, deadline=None)
@given(st.lists(infos, max_size=5), st.integers(0, 999_999_999))
def test_what_we_write_is_read_by_tarfile_and_by_us(listed: list[tuple], nanoseconds: int) -> None:  # type: ignore[type-arg]
    members = []
    for name, kind, mode, owner, mtime, link, content in listed:
        data = content if kind == REGULAR else b""
        member = Member(name.encode(), kind, mode, owner, owner, len(data), mtime * 10**9 + nanoseconds)
        member = member._replace(link=link.encode() if kind in (LINK, SYMLINK) else b"", stored=len(data))
        members.append((member._replace(xattrs=(("user.x", content),)), data))
    raw = archive(*members)
    assert read([raw]) == members
    with tarfile.open(fileobj=io.BytesIO(raw)) as opened:
        theirs = opened.getmembers()
        assert [(i.name, i.type, i.mode, i.uid, i.linkname) for i in theirs] == [
            (m.name.decode(), m.kind, m.mode, m.uid, m.link.decode()) for m, _ in members
        ]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=3000), st.integers(1, 700))
def test_any_bytes_are_read_or_invalid_and_in_pieces_as_at_once(raw: bytes, size: int) -> None:
    assert outcome(raw, len(raw) or 1) == outcome(raw, size)


_SEED = archive(
    (Member(b"n" * 150, size=3, mtime_ns=7, xattrs=(("user.a", b"b"),)), b"abc"), (Member(b"d", DIRECTORY), b"")
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_SEED) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(_SEED)))
def test_a_damaged_archive_is_read_or_invalid(damage: list[tuple[int, int]], length: int) -> None:
    raw = bytearray(_SEED)
    for position, byte in damage:
        raw[position] = byte
    for start in range(0, len(raw), 512):  # damage that a checksum hides
        block = raw[start : start + 512]
        if any(block):
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
            raw[start : start + 512] = block
    assert outcome(bytes(raw[:length]), length or 1) == outcome(bytes(raw[:length]), 100)


def outcome(raw: bytes, size: int) -> object:
    try:
        return read(cut(raw, size))
    except Invalid as error:
        return str(error)


def test_data_that_nobody_takes_is_skipped_and_the_rest_drained() -> None:
    chunks = iter(cut(archive((Member(b"a", size=2000), bytes(2000)), (Member(b"b"), b"")) + b"rest" * 500, 300))
    assert [member.name for member in Reader(chunks)] == [b"a", b"b"]
    assert next(chunks, None) is None


def test_old_dialects() -> None:
    v7 = bytearray(header(Member(b"dir/")))
    v7[156:157], v7[257:265] = b"\0", bytes(8)
    v7[148:156] = b"%06o\0 " % (sum(v7[:148]) + sum(v7[156:]) + 256)
    assert read([bytes(v7) + END])[0][0].kind == DIRECTORY
    ustar = io.BytesIO()
    with tarfile.open(fileobj=ustar, mode="w", format=tarfile.USTAR_FORMAT) as written:
        written.addfile(tarfile.TarInfo("p" * 90 + "/" + "n" * 90))
    assert read([ustar.getvalue()])[0][0].name == b"p" * 90 + b"/" + b"n" * 90


def test_attributes_and_nanoseconds_from_pax_records() -> None:
    raw = pax({"SCHILY.xattr.user.a": "x=y", "LIBARCHIVE.xattr.user.b%20c": "AQI", "mtime": "-1.5", "comment": "é"})
    member = read([raw])[0][0]
    assert member.xattrs == (("user.a", b"x=y"), ("user.b c", b"\1\2"))
    assert member.mtime_ns == -1_500_000_000


def test_global_records_hold_until_they_are_overruled() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "7"}) as written:
        written.addfile(tarfile.TarInfo("a"))
        own = tarfile.TarInfo("b")
        own.pax_headers = {"uid": "8"}
        written.addfile(own)
    assert [member.uid for member, _ in read([out.getvalue()])] == [7, 8]


def global_records(records: dict[str, str]) -> bytes:
    """A global header as tarfile writes it."""
    return tarfile.TarInfo.create_pax_global_header(records)


def test_an_empty_record_takes_back_a_global_one() -> None:
    raw = global_records({"uid": "77"})
    assert read([raw + pax({}, uid=5)])[0][0].uid == 77
    assert read([raw + pax({"uid": "", "SCHILY.xattr.user.e": ""}, uid=5)])[0][0].uid == 5
    assert read([pax({"SCHILY.xattr.user.e": ""})])[0][0].xattrs == (("user.e", b""),)


def test_the_pax_sparse_forms() -> None:
    zero_one = pax({"GNU.sparse.map": "1,2,8,3", "GNU.sparse.size": "20", "GNU.sparse.name": "s"}, b"abcde")
    one_zero = pax(
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "20", "GNU.sparse.name": "s"},
        b"2\n1\n2\n8\n3\n".ljust(512, b"\0") + b"abcde",
    )
    for raw in (zero_one, one_zero):
        for size in (1, 100, len(raw)):
            ((member, data),) = read(cut(raw, size))
            assert (member.name, member.size, member.sparse, data) == (b"s", 20, ((1, 2), (8, 3)), b"abcde")


def broken(raw: bytes, at: int, new: bytes) -> bytes:
    """With other bytes in the header, and its checksum made right."""
    block = bytearray(raw)
    block[at : at + len(new)] = new
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 256)
    return bytes(block)


PLAIN = archive((Member(b"f", size=3), b"abc"))
HOSTILE = {
    "wrong checksum": PLAIN[:100] + b"9" + PLAIN[101:],
    "global records that all pay for": tarfile.TarInfo.create_pax_global_header({"comment": "x" * 6000}) + PLAIN,
    "cut in a header": PLAIN[:300],
    "cut in data": PLAIN[:514],
    "one zero block": header(Member(b"a")) + bytes(512) + header(Member(b"b")),
    "negative size": broken(PLAIN, 124, b"\xff" * 12),
    "a size of exabytes": broken(PLAIN, 124, b"\x80" + b"\x7f" * 11),
    "no octal": broken(PLAIN, 124, b"0000000000x\0"),
    "an unknown type": broken(PLAIN, 156, b"Z"),
    "a directory with data": broken(PLAIN, 0, b"dir/"),
    "no name": broken(PLAIN, 0, bytes(100)),
    "a uid of all ones": pax({"uid": str(2**32 - 1)}),
    "a long name of gigabytes": broken(broken(PLAIN, 156, b"L"), 124, b"77777777777\0"),
    "a long pax name": pax({"path": "n" * 5000}),
    "a zero byte in a name": pax({"path": "a\0b"}),
    "a zero byte in a link": pax({"linkpath": "a\0b"}, type=SYMLINK),
    "an mtime of no clock": pax({"mtime": "9" * 19}),
    "an mtime of letters": pax({"mtime": "now"}),
    "a broken pax record": pax({"mtime": "1"}).replace(b"11 mtime=1\n", b"91 mtime=1\n"),
    "a pax record of length 0": pax({"mtime": "1"}).replace(b"11 mtime=1\n", b"00 mtime=1\n"),
    "an attribute without a name": pax({"SCHILY.xattr.": "x"}),
    "an attribute that is not base64": pax({"LIBARCHIVE.xattr.a": "A"}),
    "sparse pieces that overlap": pax({"GNU.sparse.map": "0,3,1,2", "GNU.sparse.size": "9"}, b"abcde"),
    "sparse beyond the end": pax({"GNU.sparse.map": "7,5", "GNU.sparse.size": "9"}, b"abcde"),
    "sparse of another length": pax({"GNU.sparse.map": "0,4", "GNU.sparse.size": "9"}, b"abcde"),
    "an odd sparse map": pax({"GNU.sparse.map": "0,5,6", "GNU.sparse.size": "9"}, b"abcde"),
    "a sparse map without end": pax({"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"}, b"9" * 4096),
    "a sparse map of a million": pax({"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"}, b"1000000\n" * 64),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_lies_is_invalid(raw: bytes) -> None:
    with pytest.raises(Invalid):
        read([raw])
    with pytest.raises(Invalid):
        read(cut(raw, 17))


def test_numbers_in_base_256() -> None:
    assert tar._number(b"\x80" + bytes(6) + b"\x05") == 5
    assert tar._number(b"\xff" * 8) == -1
    assert tar._number(b"\xff" * 7 + b"\x00") == -256
    assert tar._number(b" 0644 \0") == 0o644
