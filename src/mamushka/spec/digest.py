"""Content digests: ``algorithm:hex``, the names by which everything in an image is called.

image-spec, descriptor.md#digests. Only registered algorithms that hold against collisions are taken; a
digest of any other kind is refused, because what cannot be verified must not be trusted.
"""

from __future__ import annotations

from mamushka.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import _Hash

# Hex digits of each algorithm.
ALGORITHMS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = frozenset("0123456789abcdef")


class Digest(str):
    """A validated digest; a ``str`` in every other respect, so it is a key, a JSON value and a path's part."""

    __slots__ = ()

    @property
    def algorithm(self) -> str:
        """The part before the colon."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hex digits."""
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """Twelve hex digits, as people see an id."""
        return self.encoded[:12]

    @property
    def path(self) -> str:
        """Where an OCI image layout keeps the blob: ``blobs/sha256/…``."""
        return f"blobs/{self.algorithm}/{self.encoded}"

    def hasher(self) -> _Hash:
        """A fresh hash of this algorithm; feed it, then ask ``matches``."""
        import hashlib  # loads OpenSSL: milliseconds that only those pay who verify

        return hashlib.new(self.algorithm, usedforsecurity=True)

    def matches(self, hasher: _Hash) -> bool:
        """Whether what the hasher was fed is what this digest names."""
        return hasher.hexdigest() == self.encoded

    def verify(self, content: bytes | memoryview, what: str) -> None:
        """Raise Invalid unless ``content`` has this digest; ``what`` names it in the error."""
        hasher = self.hasher()
        hasher.update(content)
        if not self.matches(hasher):
            raise Invalid(
                f"{what} does not match its digest: expected {self}, got {self.algorithm}:{hasher.hexdigest()}"
            )


def is_hex(text: str) -> bool:
    """Whether every character is a lower-case hex digit."""
    return _HEX.issuperset(text)


def parse(text: object, what: str = "digest") -> Digest:
    """A digest from a stranger. Raises Invalid."""
    if type(text) is Digest:
        return text
    if not isinstance(text, str):
        raise Invalid(f"the {what} is a {type(text).__name__}, not a string")
    algorithm, colon, encoded = text.partition(":")
    if not colon:
        raise Invalid(f"the {what} {text[:200]!r} is not algorithm:hex")
    length = ALGORITHMS.get(algorithm)
    if length is None:
        raise Invalid(f"the {what} {text[:200]!r} uses an algorithm other than {', '.join(ALGORITHMS)}")
    if len(encoded) != length or not is_hex(encoded):
        raise Invalid(f"the {what} {text[:200]!r} does not have {length} lower-case hex digits")
    return Digest(text)


# The interpreter's own hash is slower by the byte, and there at once: OpenSSL takes milliseconds to be loaded.
_SHORT = 1 << 16


def sha256(content: bytes | memoryview) -> Digest:
    """The canonical digest of some bytes."""
    return Digest("sha256:" + _sha256(len(content))(content).hexdigest())


def _sha256(size: int) -> Callable[[bytes | memoryview], _Hash]:
    import sys

    if size <= _SHORT and "_hashlib" not in sys.modules:
        for name in ("_sha2", "_sha256"):  # Python 3.12 and before
            try:
                found: Callable[[bytes | memoryview], _Hash] = __import__(name).sha256
            except ImportError:
                continue
            return found
    import hashlib

    return hashlib.sha256
