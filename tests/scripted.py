"""A registry in this process that says exactly what a test wants it to say, byte for byte."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Request(NamedTuple):
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


Answer = Callable[[Request], "bytes | Iterable[bytes]"]


class Scripted:
    """Answers every request with what ``answer`` gives: raw bytes of a response, sent piece by piece.

    The connection stays open after a response, and is closed when ``answer`` raises ConnectionAbortedError
    or the pieces do. ``requests`` remembers what was asked.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The address without TLS."""
        return f"http://{self.host}"

    def asked(self) -> list[str]:
        """Method and path of each request so far."""
        return [f"{request.method} {request.path}" for request in self.requests]

    def close(self) -> None:
        """Stop, and cut every connection."""
        for each in self._open:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while (request := _read(stream)) is not None:
                    self.requests.append(request)
                    said = self.answer(request)
                    for piece in (said,) if isinstance(said, bytes) else said:
                        connection.sendall(piece)
            except OSError:
                return


def _read(stream: Iterable[bytes]) -> Request | None:
    line = stream.readline()  # type: ignore[attr-defined]
    words = line.decode("latin-1").split()
    if len(words) != 3:  # also the first bytes of TLS
        return None
    headers = {}
    for line in stream:
        name, colon, text = line.decode("latin-1").strip().partition(":")
        if not colon:
            break
        headers[name.lower()] = text.strip()
    body = stream.read(int(headers.get("content-length", 0)))  # type: ignore[attr-defined]
    return Request(words[0], words[1], headers, body)


@contextmanager
def scripted(answer: Answer) -> Iterator[Scripted]:
    """Run one until the block ends."""
    server = Scripted(answer)
    try:
        yield server
    finally:
        server.close()


def response(status: int, body: bytes = b"", **headers: object) -> bytes:
    """A whole response; header names with ``_`` for ``-``, Content-Length unless it is given."""
    lines = {"Content_Length": len(body), **headers}
    head = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in lines.items() if text is not None)
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode("latin-1") + body


def sha256(content: bytes) -> str:
    """The digest of some bytes."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def manifest(config: bytes = b"{}", *layers: bytes, **more: object) -> bytes:
    """An OCI manifest of these blobs."""

    def descriptor(kind: str, content: bytes) -> dict[str, object]:
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": sha256(content), "size": len(content)}

    body = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config),
        "layers": [descriptor("layer.v1.tar", layer) for layer in layers],
        **more,
    }
    return json.dumps(body).encode()
