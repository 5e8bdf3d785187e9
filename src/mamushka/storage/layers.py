"""Unpacked layers, one directory for each diff_id, shared by every image that has it.

    root/sha256/<hex>/root          what overlayfs stacks
    root/sha256/<hex>/root.erofs    the same as an image for machines, once one has asked for it
    root/sha256/<hex>/layer.json    what is known about it
    root/staging/<hex>[.n]          being made, under the lock root/staging/<hex>.lock, or being deleted

A layer appears by one rename when it is whole and its digest right, and disappears by one rename before it is
deleted. So a killed process leaves nothing but staging, which is anybody's to clean once nobody locks it.
Processes that want the same layer at the same time wait for the first and find it done.
"""

from __future__ import annotations

import os

from mamushka import document, trace
from mamushka.errors import Invalid, NotFound
from mamushka.linux.flock import Lock
from mamushka.spec import digest
from mamushka.values import asdict, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from hashlib import _Hash

    from mamushka.spec.digest import Digest
    from mamushka.storage.apply import Limits

_IMAGE = "/root.erofs"


@value
class Applied:
    """A layer that is here: bytes of file content, members, and directories that lower layers may describe."""

    diff_id: str
    size: int
    entries: int
    implicit: tuple[str, ...] = ()


class LayerStore:
    """The layers below one directory. Any number of threads and processes may use it at once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._staging = f"{root}/staging"

    def has(self, diff_id: str) -> bool:
        """Whether the layer is here, whole."""
        return os.path.isdir(self._home(digest.parse(diff_id, "diff_id")))

    def path(self, diff_id: str) -> str:
        """The directory to mount. NotFound when the layer is not here."""
        if not self.has(diff_id):
            raise NotFound(f"the layer {diff_id} is not here", hint="pull the image again")
        return self._home(digest.parse(diff_id)) + "/root"

    def get(self, diff_id: str) -> Applied:
        """What is known about a layer that is here."""
        identifier = digest.parse(diff_id, "diff_id")
        try:
            with open(f"{self._home(identifier)}/layer.json", "rb") as file:
                fields = document.parse(file.read(), f"the record of layer {diff_id}")
        except FileNotFoundError as error:
            raise NotFound(f"the layer {diff_id} is not here", hint="pull the image again") from error
        return Applied(identifier, fields["size"], fields["entries"], tuple(fields["implicit"]))

    def layers(self) -> list[Applied]:
        """All layers that are here."""
        found = []
        for algorithm in digest.ALGORITHMS:
            for name in _names(f"{self.root}/{algorithm}"):
                found.append(self.get(f"{algorithm}:{name}"))
        return found

    def apply(self, diff_id: str, chunks: Iterable[bytes], *, limits: Limits | None = None) -> Applied:
        """Unpack an uncompressed tar stream whose digest is ``diff_id``; nothing is read when it is here already.

        Invalid when the archive is, or has another digest; then nothing is left.
        """
        identifier = digest.parse(diff_id, "diff_id")
        os.makedirs(f"{self.root}/{identifier.algorithm}", 0o700, exist_ok=True)
        with self._locked(identifier):
            if not self.has(identifier):
                self._make(identifier, chunks, limits)
            return self.get(identifier)

    def adopt(self, diff_ids: Sequence[str]) -> None:
        """Call with an image's layers, lowest first, once all are here: implicit directories get their attributes.

        A layer may hold ``tmp/x`` without ``tmp``, and overlayfs shows the uppermost directory's owner and mode. So
        such a directory takes them from the nearest layer below that says them. The first image decides.
        """
        for number, diff_id in enumerate(diff_ids):
            if not number or not self.get(diff_id).implicit:
                continue
            lowers = [self.path(lower) for lower in reversed(diff_ids[:number])]
            identifier = digest.parse(diff_id)
            with self._locked(identifier):
                applied = self.get(diff_id)
                _unlink(self._home(identifier) + _IMAGE)  # it says what the directories were; who has it open keeps it
                for path in applied.implicit:
                    _take_attributes(f"{self.path(diff_id)}/{path}", lowers, path)
                self._record(self._home(identifier), replace(applied, implicit=()))

    def image(self, diff_id: str) -> str:
        """The layer as an EROFS image, made now where it is missing; call after ``adopt``.

        NotFound when the layer is not here or removed meanwhile; Invalid where EROFS has no room for something in it.
        """
        identifier = digest.parse(diff_id, "diff_id")
        path = self._home(identifier) + _IMAGE
        if not os.path.exists(path):
            self.path(diff_id)
            with self._locked(identifier):
                if not os.path.exists(path):
                    self._make_image(identifier, path)
        return path

    def occupied(self, applied: Applied) -> int:
        """Bytes that a layer takes: its files' content, and its image's blocks if there is one."""
        try:
            return applied.size + os.stat(self._home(digest.parse(applied.diff_id)) + _IMAGE).st_blocks * 512
        except FileNotFoundError:
            return applied.size

    def remove(self, diff_id: str) -> None:
        """Delete a layer that no image and no snapshot needs any more; harmless when it is gone."""
        from mamushka.storage.remove import remove

        identifier = digest.parse(diff_id, "diff_id")
        os.makedirs(self._staging, 0o700, exist_ok=True)
        gone = f"{self._staging}/{identifier.encoded}.{os.urandom(4).hex()}"
        try:
            os.rename(self._home(identifier), gone)
        except FileNotFoundError:
            return
        trace.event("layer.removed", diff_id=identifier)
        remove(gone)

    def clean(self) -> None:
        """Delete what killed processes left behind; what a living one works on stays."""
        from mamushka.storage.remove import remove

        left: dict[str, list[str]] = {}
        for name in _names(self._staging):
            left.setdefault(name.partition(".")[0], []).append(f"{self._staging}/{name}")
        for encoded, paths in left.items():
            lock_path = f"{self._staging}/{encoded}.lock"
            try:
                with Lock(lock_path, wait=False) as lock:
                    if lock.current(lock_path):
                        for path in paths:
                            if path != lock_path:
                                remove(path)
                        os.unlink(lock_path)
            except BlockingIOError:  # somebody is at work
                continue

    def _locked(self, identifier: Digest) -> _Locked:
        if not os.path.isdir(self._staging):
            from mamushka.linux.inode import spread

            os.makedirs(self._staging, 0o700, exist_ok=True)
            spread(self._staging)
        return _Locked(f"{self._staging}/{identifier.encoded}.lock")

    def _home(self, identifier: Digest) -> str:
        return f"{self.root}/{identifier.algorithm}/{identifier.encoded}"

    def _make(self, identifier: Digest, chunks: Iterable[bytes], limits: Limits | None) -> None:
        from mamushka.linux.process import initial
        from mamushka.storage.apply import apply
        from mamushka.storage.remove import remove

        staging = f"{self._staging}/{identifier.encoded}"
        remove(staging)  # of somebody who was killed
        os.mkdir(staging, 0o700)
        try:
            os.mkdir(f"{staging}/root", 0o700)
            root = os.open(f"{staging}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                hasher = identifier.hasher()
                content = apply(root, _hashed(chunks, hasher), limits=limits, user_xattr=not initial())
            finally:
                os.close(root)
            if not identifier.matches(hasher):
                raise Invalid(f"the layer {identifier} unpacks to {identifier.algorithm}:{hasher.hexdigest()}")
            implicit = tuple(map(os.fsdecode, content.implicit))
            self._record(staging, Applied(identifier, content.size, content.entries, implicit))
            os.rename(staging, self._home(identifier))
        except BaseException:
            remove(staging)
            raise
        trace.event("layer.applied", diff_id=identifier, size=content.size, entries=content.entries)

    def _make_image(self, identifier: Digest, path: str) -> None:
        from mamushka.storage import erofs

        trace.event("layer.imaging", diff_id=identifier)
        staged = f"{self._staging}/{identifier.encoded}.{os.urandom(4).hex()}"
        out = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            root = os.open(f"{self._home(identifier)}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                made = erofs.write(root, out, _uuid(identifier))
            finally:
                os.close(root)
            os.rename(staged, path)
        except BaseException as error:
            _unlink(staged)
            if isinstance(error, FileNotFoundError):
                raise NotFound(f"the layer {identifier} was removed", hint="pull the image again") from error
            raise
        finally:
            os.close(out)
        trace.event("layer.imaged", diff_id=identifier, size=made.size, inodes=made.inodes)

    @staticmethod
    def _record(home: str, applied: Applied) -> None:
        staged = f"{home}/layer.json.new"
        with open(staged, "wb") as file:
            file.write(document.dump(asdict(applied)))
        os.rename(staged, f"{home}/layer.json")


def _unlink(path: str) -> None:
    """Remove a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _uuid(identifier: Digest) -> bytes:
    """A layer's image is always called the same: the digest, as a UUID of RFC 9562's version 8."""
    raw = bytearray.fromhex(identifier.encoded)[:16]
    raw[6], raw[8] = raw[6] & 0x0F | 0x80, raw[8] & 0x3F | 0x80
    return bytes(raw)


def _take_attributes(target: str, lowers: Sequence[str], path: str) -> None:
    """Those of the first lower layer's directory at ``path``; a link in the way hides what is below it."""
    from mamushka.linux.fd import open_beneath

    for lower in lowers:
        layer = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_beneath(layer, os.fsencode(path), os.O_PATH | os.O_DIRECTORY)
        except OSError:
            continue
        finally:
            os.close(layer)
        found = os.fstat(fd)
        os.close(fd)
        os.chown(target, found.st_uid, found.st_gid)
        os.chmod(target, found.st_mode & 0o7777)
        os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))
        return


class _Locked:
    """The lock on one layer, whose file is there only while somebody has it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock: Lock | None = None

    def __enter__(self) -> None:
        while self._lock is None:
            lock = Lock(self._path)
            if lock.current(self._path):
                self._lock = lock
            else:  # whoever had it before has removed the file
                lock.close()

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.unlink(self._path)
            self._lock.close()


def _hashed(chunks: Iterable[bytes], hasher: _Hash) -> Iterator[bytes]:
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
