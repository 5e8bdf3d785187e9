"""What is fuzzed. A function returns whether the input was worth keeping, usually whether it was valid."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from mamushka.errors import Invalid, MamushkaError


class Target(NamedTuple):
    """One invariant, and inputs to start from."""

    run: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]

    @property
    def invariant(self) -> str:
        return (self.run.__doc__ or "").strip()


TARGETS: dict[str, Target] = {}


def target(*seeds: bytes) -> Callable[[Callable[[bytes], bool]], Callable[[bytes], bool]]:
    """Make a function a target; its docstring is the invariant."""

    def register(run: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        TARGETS[run.__name__] = Target(run, seeds)
        return run

    return register


def accepted(parse: Callable[[], object]) -> bool:
    """Whether the parser took it; Invalid is the one way to refuse."""
    try:
        parse()
    except Invalid:
        return False
    return True


def _archives() -> tuple[bytes, ...]:
    from mamushka.spec.tar import CHARACTER, DIRECTORY, LINK, REGULAR, SYMLINK, Member
    from mamushka.spec.tar_write import END, header, padding

    def one(name: str, kind: bytes = REGULAR, content: bytes = b"", **fields: object) -> bytes:
        made = Member(name.encode(), kind, size=len(content), **fields)  # type: ignore[arg-type]
        return header(made) + content + padding(len(content))

    sparse = b"2\n1\n2\n8\n3\n".ljust(512, b"\0") + b"abcde"
    body = b"".join(
        b"%d %s\n" % (len(record) + 4, record)
        for record in (b"GNU.sparse.major=1", b"GNU.sparse.realsize=20", b"GNU.sparse.name=s")
    )
    extended = header(Member(b"p", b"x", size=len(body))) + body + padding(len(body))
    return (
        one("d/", DIRECTORY) + one("d/f", content=b"x" * 700) + one("d/.wh.g") + one("d/.wh..wh..opq") + END,
        one("s", SYMLINK, link=b"../../etc") + one("s/x", content=b"1") + one("h", LINK, link=b"s/x") + END,
        one("n" * 300, mtime_ns=5, xattrs=(("user.a", b"b"),)) + one("c", CHARACTER, major=1, minor=3) + END,
        extended + one("ignored", content=sparse) + END,
    )


def _repaired(raw: bytes) -> bytes:
    """With every header's checksum made right, so that damage gets further in."""
    fixed = bytearray(raw)
    for start in range(0, len(fixed) - 511, 512):
        block = fixed[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
            fixed[start : start + 512] = block
    return bytes(fixed)


def _read(raw: bytes, size: int) -> object:
    from mamushka.spec.tar import Reader

    try:
        reader = Reader([raw[start : start + size] for start in range(0, len(raw), size)])
        return [(member, b"".join(reader.pieces())) for member in reader]
    except Invalid as error:
        return str(error)


@target(*_archives())
def tar(raw: bytes) -> bool:
    """any bytes are read as a tar archive or Invalid, and in pieces equals at once"""
    raw = _repaired(raw)
    whole = _read(raw, len(raw) or 1)
    assert whole == _read(raw, 1 + len(raw) % 701), "in pieces differs from at once"
    return isinstance(whole, list)


@target(*_archives())
def layer(raw: bytes) -> bool:
    """any bytes are applied as a layer or refused, and nothing outside the layer changes"""
    from mamushka.storage.apply import Limits, apply
    from mamushka.storage.remove import remove

    base = tempfile.mkdtemp(prefix="mamushka-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        os.mkdir(f"{base}/root")
        root = os.open(f"{base}/root", os.O_RDONLY | os.O_DIRECTORY)
        try:
            apply(root, [_repaired(raw)], limits=Limits(size=1 << 20, entries=1000, names=1 << 16))
            return True
        except (MamushkaError, OSError):
            return False
        finally:
            os.close(root)
            assert os.listdir(base) == ["root"], "something is beside the layer's root"
            remove(f"{base}/root")
            assert os.listdir(base) == [], "a layer could not be removed"
    finally:
        shutil.rmtree(base, ignore_errors=True)


@target(*_archives())
def erofs(raw: bytes) -> bool:
    """a layer that could be applied becomes an image with the same paths, or is refused"""
    from mamushka.storage import erofs
    from mamushka.storage.apply import Limits, apply
    from mamushka.storage.remove import remove
    from tests.erofs import paths_of

    base = tempfile.mkdtemp(prefix="mamushka-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        os.mkdir(f"{base}/root")
        root = os.open(f"{base}/root", os.O_RDONLY | os.O_DIRECTORY)
        out = os.open(f"{base}/image", os.O_RDWR | os.O_CREAT)
        try:
            apply(root, [_repaired(raw)], limits=Limits(size=1 << 20, entries=1000, names=1 << 16))
        except (MamushkaError, OSError):
            os.close(root)
            os.close(out)
            return False
        try:
            made = erofs.write(root, out, bytes(16))
            image = os.pread(out, min(made.size, 64 << 20), 0)  # directories come before what files hold
        except Invalid:
            return False
        finally:
            os.close(root)
            os.close(out)
        top = os.fsencode(f"{base}/root")
        below = [os.path.join(at, name) for at, names, files in os.walk(top) for name in (*names, *files)]
        assert set(paths_of(image)) == {os.path.relpath(path, top) for path in below}
        return True
    finally:
        remove(base)


@target(b"alpine:3.20", b"localhost:5000/a/b_c@sha256:" + b"0" * 64, b"[::1]:5/x-y", b"docker.io/library/x")
def reference(raw: bytes) -> bool:
    """any text is parsed as a reference or Invalid, and what was parsed is written and read as the same"""
    from mamushka.spec.reference import parse

    def run() -> None:
        found = parse(raw.decode("utf-8", "surrogateescape"))
        assert parse(str(found)) == found, "its own text reads differently"
        assert len(found.familiar) == 64 or parse(found.familiar) == found, "its familiar text reads differently"

    return accepted(run)


@target(
    b'{"schemaVersion":2,"config":{"mediaType":"a","digest":"sha256:%064d","size":1},"layers":[]}' % 0,
    b'{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"sha256:%064d","size":1,"platform":{"os":"l"}}]}' % 0,
)
def manifest(raw: bytes) -> bool:
    """any bytes are parsed as a manifest or index, or Invalid or Unsupported, and are kept as they came"""
    from mamushka.errors import Unsupported
    from mamushka.spec.image import parse_manifest

    def run() -> None:
        try:
            assert parse_manifest(raw).raw == raw, "its bytes are not what came"
        except Unsupported:
            raise Invalid("schema 1") from None

    return accepted(run)


@target(b'{"os":"linux","architecture":"arm","config":{"Env":["a=b"]},"rootfs":{"diff_ids":["sha256:%064d"]}}' % 0)
def image_config(raw: bytes) -> bool:
    """any bytes are parsed as an image's config or Invalid"""
    from mamushka.spec.image import parse_config

    return accepted(lambda: parse_config(raw))


@target(b'Bearer realm="https://x/t",service="r",scope="a:b,c"', b"Negotiate YQ==, Basic realm=x", b'A b="\\""')
def challenge(raw: bytes) -> bool:
    """any header is parsed as challenges or Invalid"""
    from mamushka.spec.distribution import parse_challenges

    return accepted(lambda: parse_challenges(raw.decode("latin-1")))


def _compressed() -> tuple[bytes, ...]:
    import gzip

    return (
        gzip.compress(b"abc" * 100) + gzip.compress(b""),
        bytes.fromhex("28b52ffd2003190000616263") + bytes.fromhex("502a4d1804000000") + b"skip",
        b"plain",
    )


_QUERY = bytes.fromhex("1234010000010000000000000264620474657374000001 0001".replace(" ", ""))


@target(_QUERY, _QUERY[:12] + b"\xc0\x0c\0\1\0\1", b"\0\1\x80\0" + bytes(8))
def dns(raw: bytes) -> bool:
    """any datagram is a question, and its answer repeats it, or is Invalid"""
    from mamushka.network.dns import answer, parse

    def asked() -> None:
        question = parse(raw)
        told = parse(answer(question, [(1, bytes(4))] * 100))
        assert (told.id, told.raw) == (question.id, question.raw)

    return accepted(asked)


@target(*_compressed())
def compressed(raw: bytes) -> bool:
    """any bytes are expanded or Invalid, and in pieces equals at once"""
    from mamushka.image.compression import decompress

    def expand(step: int) -> bytes | None:
        pieces = (raw[start : start + step] for start in range(0, len(raw), step))
        try:
            return b"".join(decompress(pieces, size=len(raw)))
        except Invalid:
            return None

    whole = expand(len(raw) or 1)
    assert expand(1 + len(raw) % 7) == whole, "in pieces differs from at once"
    return whole is not None


_SIGNAL = bytes.fromhex(
    "6c04000121000000050000003a00000001016f00020000002f6d00000000000002017300030000006f2e530000000000030173000400"
    "00004a6f6252000000000801670004756f73730000000000000001000000020000002f6a000007000000612e73636f70650004000000"
    "646f6e6500"
)


@target(_SIGNAL)
def dbus(raw: bytes) -> bool:
    """any bytes are a D-Bus message, not whole yet or Invalid, and a message is written and read as the same"""
    from mamushka.spec.dbus import decode, encode

    def run() -> None:
        message, used = decode(raw)
        assert (message is None) == (used == 0) and used <= len(raw)
        if message and message.kind in (1, 2, 3, 4) and message.serial:
            again, _ = decode(encode(message))
            assert again == message or "nan" in repr(message), "written anew it reads differently"

    return accepted(run)


def _vsock_seeds() -> tuple[bytes, ...]:
    from mamushka.machine.devices.virtio.vsock.packet import HEADER, REQUEST, RW, SHUTDOWN

    def packet(op: int, data: bytes = b"", flags: int = 0) -> bytes:
        return HEADER.pack(3, 2, 5000, 1, len(data), 1, op, flags, 1 << 16, 0) + data

    return (
        packet(REQUEST) + packet(RW, b"hello") + packet(SHUTDOWN, flags=2) + packet(SHUTDOWN, flags=1),
        packet(REQUEST) + packet(7) + packet(6) + packet(3) + packet(REQUEST),
        packet(REQUEST) + packet(REQUEST) + packet(2),
    )


@target(*_vsock_seeds())
def vsock(raw: bytes) -> bool:
    """any packets of a guest's are answered or a GuestFault, cost bounded memory, and leave nothing spinning"""
    from mamushka.errors import GuestFault
    from mamushka.machine.devices.virtio.vsock import BUFFER, CONNECTIONS, SEND_MAX, Connection, Endpoint, Vsock
    from mamushka.machine.devices.virtio.vsock.packet import HEADER
    from mamushka.machine.devices.virtio.vsock.vsock import RESETS
    from tests.vsock import driver

    class Echo(Endpoint):
        def __init__(self, connection: Connection) -> None:
            self.connection = connection
            connection.endpoint = self

        def received(self, view: memoryview) -> None:
            self.connection.consumed(self.connection.send(view))

    device = Vsock()
    device.listen(1, Echo)  # type: ignore[arg-type]

    def run() -> None:
        with driver(device, room=4) as guest:
            at = 0
            while at < len(raw) and guest.rings[1].index < 30:
                length = int.from_bytes(raw[at + 24 : at + 28], "little")
                end = at + HEADER.size + min(length, 0x8000)
                guest.raw(raw[at : at + HEADER.size], raw[at + HEADER.size : end])
                guest.vsock.notify(1)
                assert guest.turn() < 50, "it spins"
                guest.packets()
                guest.give(min(1, len(guest.rings[0].free)))
                at = end
            assert len(device.connections) <= CONNECTIONS and len(device._resets) <= RESETS + CONNECTIONS
            for connection in device.connections:
                assert connection.held <= BUFFER and len(connection._unsent) <= SEND_MAX

    try:
        run()
    except GuestFault:
        return False
    return True


@target(b"$qSupported:x+#00+$g#67", b"$m10,10#00$M1000,2:cafe#00", b"$vCont;s:1;c#00\x03$X0,1:}]#0f", b"$Z0,1,1#00")
def gdb(raw: bytes) -> bool:
    """any bytes of a debugger's are packets or Invalid, in pieces equal at once, and every packet has an answer"""
    from mamushka.errors import NotFound
    from mamushka.machine.gdb.protocol import INTERRUPT, PACKET_MAX, Packets, escape, unescape
    from mamushka.machine.gdb.session import Session
    from mamushka.machine.gdb.x86 import X86_64

    class Nothing:
        """A target of one virtual CPU without memory."""

        architecture, count = X86_64, 1

        def registers(self, _index: int) -> dict[str, int]:
            return {register.source: 1 for register in X86_64.registers if register.source}

        def read(self, _index: int, _address: int, length: int) -> bytes:
            assert length <= PACKET_MAX
            raise NotFound("nothing")

        def __getattr__(self, _name: str) -> Callable[..., None]:
            return lambda *_, **__: None

    assert unescape(escape(raw)) == raw

    def events(step: int) -> tuple[list[bytes], bytes]:
        packets = Packets()
        packets.acknowledged = False
        found = [event for at in range(0, len(raw), step) for event in packets.feed(raw[at : at + step])]
        return found, bytes(packets.out)

    def run() -> None:
        found = events(len(raw) or 1)
        assert events(1 + len(raw) % 5) == found, "in pieces differs from at once"
        for event in found[0]:
            answer = None if event == INTERRUPT else Session(Nothing()).command(event[1:])  # type: ignore[arg-type]
            assert answer is None or len(escape(answer)) <= PACKET_MAX + 64

    return accepted(run)


def _agent() -> tuple[bytes, ...]:
    from mamushka.machine.agent import protocol, words

    number, text = protocol.number, protocol.text
    return (
        protocol.frame(words.HELLO, 0, number(words.K_VERSION, 1), text(words.K_RELEASE, "6.1")),
        protocol.frame(words.EXITED, 0, number(words.K_PROCESS, 1), number(words.K_CODE, 3)),
        protocol.frame(words.ERROR, 9, number(words.K_ERRNO, 2), text(words.K_PATH, "/x")),
        protocol.frame(
            words.REPLY, 7, protocol.group(words.K_ITEM, number(words.K_PID, 1), text(words.K_TEXT, "stat"))
        ),
    )


@target(*_agent())
def agent(raw: bytes) -> bool:
    """What a guest's agent sends is events or a GuestFault, in pieces as at once."""
    from mamushka.errors import GuestFault
    from mamushka.machine.agent.protocol import Parser

    def tell(pieces: list[bytes]) -> tuple[int, bool]:
        parser, count = Parser(), 0
        for piece in pieces:
            try:
                while parser.feed(piece, most=1):
                    count, piece = count + 1, b""
            except GuestFault:
                return count, True
        return count, False

    told = tell([raw])
    assert tell([raw[at : at + 7] for at in range(0, len(raw), 7)]) == told
    return told[0] > 0


def _tree() -> tuple[bytes, ...]:
    from mamushka.machine.agent import tree
    from mamushka.spec.tar import DIRECTORY, SYMLINK, Member

    file = tree.item(Member(b"d/f", size=3, xattrs=(("user.x", b"y"),)))
    return (
        tree.item(Member(b"d", DIRECTORY)) + file + b"".join(tree.pieces([b"abc"])),
        tree.item(Member(b"l", SYMLINK, link=b"/x")),
    )


@target(*_tree())
def tree(raw: bytes) -> bool:
    """What a guest's agent packs is entries below their place or a GuestFault, in pieces as at once."""
    from mamushka.errors import GuestFault
    from mamushka.machine.agent.tree import Entry, Unpacker

    def tell(pieces: list[bytes]) -> tuple[list[Entry | bytes], bool]:
        unpacker = Unpacker()
        found: list[Entry | bytes] = []
        try:
            for piece in pieces:
                for part in unpacker.feed(piece):
                    found.append(part)
            unpacker.end()
        except GuestFault:
            return found, True
        return found, False

    told = tell([raw])
    assert tell([raw[at : at + 7] for at in range(0, len(raw), 7)]) == told
    for part in told[0]:
        assert isinstance(part, bytes) or not {b"..", b"."} & set(part.name.split(b"/"))
    return bool(told[0])
