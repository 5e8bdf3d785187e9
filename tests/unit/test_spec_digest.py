"""Digests of what is at hand: the same from either of the interpreter's hashes, and the small ones without OpenSSL."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from mamushka.spec.digest import sha256

ALONE = """
import sys
from mamushka.spec.digest import sha256
print(sha256(b"abc"), sha256(memoryview(bytes(1 << 16))), "_hashlib" in sys.modules)
print(sha256(bytes((1 << 16) + 1)), "_hashlib" in sys.modules)
"""


def named(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("size", [0, 3, 1 << 16, (1 << 16) + 1])
def test_it_is_what_everybody_calls_sha256(size: int) -> None:
    assert sha256(bytes(size)) == named(bytes(size))


def test_a_short_one_does_not_wait_for_openssl() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", ALONE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        named(b"abc"), named(bytes(1 << 16)), "False", named(bytes((1 << 16) + 1)), "True"
    ]  # fmt: skip
