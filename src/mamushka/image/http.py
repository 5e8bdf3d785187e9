"""A small HTTP client for registries: kept-alive connections, TLS, proxies, bounded answers, stalls noticed.

It knows nothing of registries. One ``Transport`` is shared by all threads of a pull; a connection belongs to
one exchange at a time and goes back to the pool when its answer has been read to the end.
"""

from __future__ import annotations

import http.client
import ssl
import time
from _thread import allocate_lock
from socket import gaierror
from urllib.parse import unquote, urljoin, urlsplit

from mamushka.errors import Denied, Invalid, Unavailable
from mamushka.spec.distribution import plain
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import IO

    Body = bytes | IO[bytes] | Iterable[bytes] | None
    Key = tuple[str, str, int]

CONNECT_TIMEOUT = 10.0
# No byte for this long is a stall: what keeps a connection open without sending is not coming back.
READ_TIMEOUT = 30.0
# Slower than this over STALL_WINDOW seconds is a stall too: a drop now and then must not hold a pull for days.
STALL_RATE = 512
STALL_WINDOW = 60.0
# Bytes asked of the socket at once; a registry on a fast link fills them.
PIECE = 512 << 10
_IDLE_MAX = 8


class Unreachable(Unavailable):
    """There is no such host, or nobody listens there: trying again at once does not help."""


@value
class Trust:
    """How a host is spoken to: ``plain`` allows HTTP without TLS, ``verify`` checks its certificate."""

    plain: bool = False
    verify: bool = True
    ca: str = ""  # a file of certificates to trust besides the system's


@value
class Proxies:
    """Proxies by scheme, and the hosts that are reached without one, as the environment names them."""

    http: str = ""
    https: str = ""
    exceptions: tuple[str, ...] = ()

    def choose(self, scheme: str, host: str) -> str:
        """The proxy for a host, or nothing. Loopback never goes through one."""
        if is_loopback(host):
            return ""
        for exception in self.exceptions:
            suffix = exception.lower().removeprefix("*").removeprefix(".").partition(":")[0]
            if exception == "*" or (suffix and (host == suffix or host.endswith("." + suffix))):
                return ""
        return self.https if scheme == "https" else self.http


DIRECT = Proxies()


def proxies_of(environment: Mapping[str, str]) -> Proxies:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY in either case."""

    def get(name: str) -> str:
        return environment.get(name.lower()) or environment.get(name) or ""

    exceptions = (part.strip() for part in get("NO_PROXY").split(","))
    return Proxies(get("HTTP_PROXY"), get("HTTPS_PROXY"), tuple(part for part in exceptions if part))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself: localhost, 127.0.0.0/8, ::1."""
    parts = host.split(".")
    numeric = len(parts) == 4 and all(part.isdecimal() for part in parts)
    return host in ("localhost", "::1") or (numeric and parts[0] == "127")


def join(url: str, target: str) -> str:
    """Where a link that stands at ``url`` leads. Raises Invalid for what no request can be sent to."""
    try:
        there = urljoin(url, target)
        valid = there.isascii() and there.isprintable() and (urlsplit(there).port or 0) >= 0
    except ValueError as error:  # of urllib: brackets without an address, a port that is none
        raise Invalid(f"{bare(target)!r} is not an address: {error}") from error
    if not valid:
        raise Invalid(f"{bare(target)!r} is not an address")
    return there


def bare(url: str) -> str:
    """An address to show: without its query, which may hold a signature that lets everybody in."""
    return plain(url.partition("?")[0], 200)


class Response:
    """The head of an answer; the body is still to be read, or thrown away by ``close``."""

    def __init__(self, transport: Transport, key: Key, conn: http.client.HTTPConnection, url: str) -> None:
        self._transport, self._key, self._conn = transport, key, conn
        self._answer = conn.getresponse()
        self._closed = False
        self.url = url
        self.status = self._answer.status
        self.length = -1 if self._answer.length is None else self._answer.length  # of the body to come

    def header(self, name: str) -> str:
        """A header's value, empty where it is missing."""
        return self._answer.getheader(name) or ""

    def read(self, most: int, what: str) -> bytes:
        """The whole body, refused when it is longer than ``most``."""
        pieces, total = [], 0
        for piece in self.pieces():
            total += len(piece)
            if total > most:
                raise Invalid(f"{what} is longer than the {most} bytes that are allowed")
            pieces.append(piece)
        return b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Unavailable when it stalls, breaks off, or is shorter than announced."""
        got, since, window = 0, time.monotonic(), 0
        try:
            while piece := self._answer.read1(PIECE):
                got += len(piece)
                window += len(piece)
                now = time.monotonic()
                if now - since > STALL_WINDOW:
                    if window < STALL_RATE * STALL_WINDOW:
                        raise Unavailable(f"{bare(self.url)} stalls: {window} bytes in {now - since:.0f} s")
                    since, window = now, 0
                yield piece
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(f"{bare(self.url)} broke off after {got} bytes: {_reason(error)}") from error
        finally:
            self.close()
        if 0 <= self.length != got:
            raise Unavailable(f"{bare(self.url)} broke off after {got} of {self.length} bytes")

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, close it otherwise; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        if self._answer.length == 0:
            self._answer.read()  # nothing is left, and http.client shall notice it
        if not self._answer.isclosed():
            self._answer.close()
            self._conn.close()
        elif self._conn.sock is not None:
            self._transport.put_back(self._key, self._conn)

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport:
    """Connections by (scheme, host, port). ``trust`` is asked by "host" or "host:port"."""

    def __init__(
        self, trust: Mapping[str, Trust] = EMPTY, proxies: Proxies = DIRECT, *, read_timeout: float = READ_TIMEOUT
    ) -> None:
        self._trust, self._proxies, self.read_timeout = trust, proxies, read_timeout
        self._lock = allocate_lock()
        self._idle: dict[Key, list[http.client.HTTPConnection]] = {}
        self._contexts: dict[Trust, ssl.SSLContext] = {}

    def trust(self, host: str, port: int) -> Trust:
        """What was configured for a host; loopback may speak plain HTTP and present any certificate."""
        for name in (f"{host}:{port}", host):
            if name in self._trust:
                return self._trust[name]
        return Trust(plain=True, verify=False) if is_loopback(host) else Trust()

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Body = None, *, insecure: bool = False
    ) -> Response:
        """Send one request. Unavailable when nobody answers; Denied for HTTP without TLS to a host that may not
        speak it, unless ``insecure`` says that it is nothing new."""
        key, target = self._address(url, insecure)
        if key[0] == "http" and (proxy := self._proxies.choose(*key[:2])):
            target, headers = url, {**headers, **_proxy_headers(proxy)}
        while True:
            conn, fresh = self._take(key)
            try:
                if conn.sock is not None:
                    conn.sock.settimeout(self.read_timeout)
                _send(conn, method, target, headers, body)
                return Response(self, key, conn, url)
            except (OSError, http.client.HTTPException) as error:
                conn.close()
                if not fresh and (body is None or isinstance(body, bytes)):
                    continue  # the server had closed an idle connection, which says nothing about it
                raise Unavailable(f"no answer from {key[0]}://{key[1]}:{key[2]}: {_reason(error)}") from error

    def _address(self, url: str, insecure: bool) -> tuple[Key, str]:
        parts = urlsplit(join(url, ""))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Invalid(f"{bare(url)!r} is not an HTTP address")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme == "http" and not insecure and not self.trust(parts.hostname, port).plain:
            raise Denied(
                f"{parts.hostname} wants plain HTTP, which anybody on the way can read and change",
                hint="name it insecure in /etc/mamushka/registries.toml if you accept that",
            )
        return (parts.scheme, parts.hostname, port), (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def speaks_tls(self, host: str, port: int) -> bool:
        """Whether TLS is spoken there; False where the port answers without it. Unavailable where nobody does."""
        key = ("https", host, port)
        try:
            self.put_back(key, self._connect(key))
        except ssl.SSLCertVerificationError as error:
            raise Unavailable(f"cannot trust https://{host}:{port}: {error.verify_message}") from error
        except (ssl.SSLError, ConnectionError, http.client.HTTPException, TimeoutError):
            return False
        except OSError as error:
            raise Unreachable(f"no answer from {host}:{port}: {_reason(error)}") from error
        return True

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for conn in connections:
                conn.close()

    def put_back(self, key: Key, conn: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request to the same place."""
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if len(idle) < _IDLE_MAX:
                idle.append(conn)
                return
        conn.close()

    def _take(self, key: Key) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it is a fresh one."""
        with self._lock:
            idle = self._idle.get(key)
            if idle:
                return idle.pop(), False
        try:
            return self._connect(key), True
        except (OSError, http.client.HTTPException) as error:
            kind = Unreachable if isinstance(error, gaierror | ConnectionRefusedError) else Unavailable
            raise kind(
                f"cannot connect to {key[0]}://{key[1]}:{key[2]}: {_reason(error)}",
                hint="check the name, the network and, if there is one, the proxy",
            ) from error

    def _connect(self, key: Key) -> http.client.HTTPConnection:
        scheme, host, port = key
        proxy = self._proxies.choose(scheme, host)
        to = _proxy_address(proxy) if proxy else (host, port)
        if scheme == "http":
            conn = http.client.HTTPConnection(*to, timeout=CONNECT_TIMEOUT, blocksize=PIECE)
        else:
            context = self._context(self.trust(host, port))
            conn = http.client.HTTPSConnection(*to, timeout=CONNECT_TIMEOUT, context=context, blocksize=PIECE)
            if proxy:
                conn.set_tunnel(host, port, _proxy_headers(proxy))
        try:
            conn.connect()
        except BaseException:
            conn.close()
            raise
        return conn

    def _context(self, trust: Trust) -> ssl.SSLContext:
        with self._lock:
            context = self._contexts.get(trust)
            if context is None:
                context = self._contexts[trust] = _tls(trust)
            return context


def _send(conn: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str], body: Body) -> None:
    try:
        conn.request(method, target, body=body, headers=dict(headers))
    except (BrokenPipeError, ConnectionResetError):
        # A server may refuse in the middle of an upload: what it said explains more than the broken pipe.
        if body is None or conn.sock is None:
            raise


def _tls(trust: Trust) -> ssl.SSLContext:
    if not trust.verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context = ssl.create_default_context()
    if trust.ca:
        try:
            context.load_verify_locations(cafile=trust.ca)
        except OSError as error:
            raise Invalid(f"cannot read the certificates in {trust.ca}: {_reason(error)}") from error
    return context


def _proxy_address(proxy: str) -> tuple[str, int]:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _proxy_headers(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if not parts.username:
        return {}
    from base64 import b64encode

    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + b64encode(pair.encode()).decode()}


def _reason(error: BaseException) -> str:
    """What an exception says; http.client's repeat what the server sent."""
    return plain(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200)
