"""The agent's parser under sanitizers: whatever a host sends, it answers an error or closes, and never falls."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.machine.agent import protocol, words
from mamushka.machine.agent.protocol import Parser
from tests import peers

KEYS = sorted(value for name, value in vars(words).items() if name.startswith("K_"))
# Not POWER, which is no fall; HELLO would set the secret anew.
KINDS = [kind for kind in range(words.STEPS, words.DELETE + 1) if kind != words.POWER]
# Nothing of the host's is within reach: a root of its own, no clock, no modules, a read-only procfs.
BEGIN = """
mount --make-rprivate / && mount --bind "$1" "$1" && mount -t proc -o ro proc "$1/proc" && cd "$1" &&
exec setpriv --bounding-set=-sys_time,-sys_module,-sys_boot,-sys_rawio chroot "$1" /init --socket /agent
"""


class Target:
    """One checked agent, and a socket to it."""

    def __init__(self, program: str, root: Path) -> None:
        for name in ("proc", "bin", "tmp", "etc", "dev", "image", "image/bin", "image/tmp"):
            (root / name).mkdir()
        shutil.copy(program, root / "init")
        shutil.copy(peers.find("busybox"), root / "image/bin/true")
        (root / "dev/null").touch()
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for path in (word for word in listed.split() if word.startswith("/")):
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path[1:])
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(root / "agent"))
        self.listener.listen(64)
        spaces = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "--ipc", "--uts"]
        self.report = (root.parent / "report").open("w+b")
        environment = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(
            [*spaces, "sh", "-c", BEGIN, "sh", str(root)], stderr=self.report, env=environment
        )
        self.listener.settimeout(20)
        self.control = self.listener.accept()[0]
        self.control.settimeout(20)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        self.greet()

    def greet(self) -> None:
        self.control.sendall(protocol.frame(
            words.HELLO, 1, protocol.number(words.K_VERSION, 1), protocol.raw(words.K_TOKEN, bytes(16))
        ))  # fmt: skip

    def _accept(self) -> None:
        """Streams: closed at once, or when a few more have come."""
        held: list[socket.socket] = []
        with contextlib.suppress(OSError):
            while True:
                held.append(self.listener.accept()[0])
                if len(held) > 8:
                    held.pop(0).close()

    def answers(self, id: int) -> None:
        """Read until this request was answered."""
        parser = Parser()
        while True:
            data = self.control.recv(65536)
            assert data, self.said()
            if any(getattr(event, "id", None) == id for event in parser.feed(data)):
                return

    def said(self) -> str:
        self.report.seek(0)
        return self.report.read().decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.listener.close()
        self.control.close()


@pytest.fixture
def target(checked_program: str, tmp_path: Path) -> Iterator[Target]:
    peers.need_root()
    peers.need("busybox")
    peers.need("setpriv")
    (tmp_path / "root").mkdir()
    made = Target(checked_program, tmp_path / "root")
    yield made
    made.close()


SIZES = {words.K_MAC: 6, words.K_NEW_MAC: 6, words.K_RLIMIT: 24, words.K_TOKEN: 16}
TEXTS = (
    b"", b"/", b"/tmp", b"/tmp/x/../y", b"x" * 300, b"/x" * 2000, b"true", b"..", b"lo", b"tmpfs", b"/bin/true",
    b"PATH=/bin", b"HOME",
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 7, 9, 13, 0xFFFF, 0x1000, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def field(dice: random.Random, depth: int = 0, *, wrong: float = 0.0) -> bytes:
    """A field of some key; with a chance of being of the wrong size or depth."""
    key = dice.choice(KEYS)
    bad = dice.random() < wrong
    if key in words.GROUPS:
        if depth > 3 and not bad:
            return protocol.number(words.K_PID, 1)
        return protocol.group(key, *(field(dice, depth + 1, wrong=wrong) for _ in range(dice.randrange(5))))
    if key in words.TEXTS:
        return protocol.raw(key, b"a\0b" if bad else dice.choice(TEXTS))
    if key in words.BYTES:
        size = SIZES.get(key) or dice.choice((4, 16))
        return protocol.raw(key, dice.randbytes(dice.randrange(600) if bad else size))
    return protocol.raw(key, dice.randbytes(3)) if bad else protocol.number(key, dice.choice(NUMBERS))


def request(dice: random.Random, id: int) -> bytes:
    wrong = dice.choice((0.0, 0.0, 0.0, 0.05))
    fields = [field(dice, wrong=wrong) for _ in range(dice.randrange(8))]
    if dice.random() < 0.9:
        target = dice.choice(("/tmp/a", "/etc/b", "/tmp", "../x"))
        settings = [protocol.text(words.K_ARG, "true"), *(field(dice, 1) for _ in range(dice.randrange(4)))]
        sensible = [
            protocol.number(words.K_PROCESS, dice.randrange(6)), protocol.number(words.K_CONTAINER, dice.randrange(4)),
            protocol.text(words.K_ROOT, "/image"), protocol.group(words.K_SETTINGS, *settings),
            protocol.number(words.K_STREAMS, dice.randrange(16)), protocol.number(words.K_ACTION, dice.randrange(8)),
            protocol.text(words.K_PATH, target), protocol.number(words.K_STREAM, dice.randrange(4)),
            protocol.group(words.K_STEP, protocol.number(words.K_OP, dice.randrange(1, 16)),
                           protocol.text(words.K_TARGET, target), field(dice, 1)),
            protocol.group(words.K_LINK, protocol.text(words.K_NAME, "lo"), field(dice, 1), field(dice, 1)),
        ]  # fmt: skip
        fields += dice.sample(sensible, dice.randrange(len(sensible) + 1))
        dice.shuffle(fields)
    made = bytearray(protocol.frame(dice.choice(KINDS), id, *fields))
    if dice.random() < 0.1 and len(made) > words.HEADER_SIZE:
        made[dice.randrange(words.HEADER_SIZE, len(made))] ^= 1 << dice.randrange(8)
    return bytes(made)


def alive(target: Target) -> None:
    """It still answers, and no sanitizer said a word, of it or of a child."""
    target.control.sendall(protocol.frame(words.SYNC, 0xFFFF_FFFF))
    target.answers(0xFFFF_FFFF)
    assert target.process.poll() is None
    said = target.said()
    assert "Sanitizer" not in said, said
    assert "runtime error" not in said, said


@pytest.mark.parametrize("seed", range(4))
def test_any_request_is_answered_or_refused(target: Target, seed: int) -> None:
    dice = random.Random(seed)
    for round in range(30):
        for number in range(10):
            target.control.sendall(request(dice, 10 * round + number + 2))
        alive(target)


def test_a_frame_in_pieces_is_a_frame(target: Target) -> None:
    for byte in protocol.frame(words.SYNC, 77):
        target.control.sendall(bytes([byte]))
        time.sleep(0.001)
    target.answers(77)
    alive(target)


@pytest.mark.parametrize(
    "raw",
    [struct.pack("<IHHI", (4 << 20) + 1, 2, 0, 9), struct.pack("<IHHI", 0, 2, 1, 9), bytes([255]) * 64],
)
def test_what_no_host_sends_ends_the_connection(target: Target, raw: bytes) -> None:
    target.control.sendall(raw)
    data = b"x"
    while data:
        try:
            data = target.control.recv(65536)
        except ConnectionResetError:
            break
    assert "Sanitizer" not in target.said()
