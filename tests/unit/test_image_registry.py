"""The registry client against a registry that stalls, breaks off, lies, goes in circles and refuses."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator

import pytest

from mamushka.errors import Denied, Invalid, MamushkaError, NotFound, Unavailable
from mamushka.image import download
from mamushka.image.auth import Credentials
from mamushka.image.download import Download
from mamushka.image.http import Transport, Trust
from mamushka.image.registry import Patience, Registry
from mamushka.spec.digest import Digest
from tests.scripted import Answer, Request, Scripted, manifest, response, scripted, sha256

MANIFEST = manifest(b"{}", b"layer")
OCI = "application/vnd.oci.image.manifest.v1+json"
PATIENCE = Patience(attempts=3, sleep=lambda _seconds: None)
BLOB = bytes(range(256)) * 1024
DIGEST = Digest(sha256(BLOB))


def client(server: Scripted, *, timeout: float = 5.0, credentials: Credentials | None = None) -> Registry:
    transport = Transport(read_timeout=timeout)
    return Registry(server.url, transport, lambda: credentials or Credentials(), PATIENCE)


def whole(registry: Registry, size: int = len(BLOB), offset: int = 0) -> bytes:
    return b"".join(Download(registry, "a", DIGEST, size).pieces(offset))


def ranged(request: Request, content: bytes = BLOB) -> bytes:
    """As a good registry answers."""
    asked = request.headers.get("range", "")
    if not asked:
        return response(200, content, Accept_Ranges="bytes")
    first, _, last = asked.removeprefix("bytes=").partition("-")
    end = int(last) if last else len(content) - 1
    part = content[int(first) : end + 1]
    return response(206, part, Content_Range=f"bytes {first}-{end}/{len(content)}")


# manifests


def test_manifest_bytes_as_they_came() -> None:
    with scripted(lambda _: response(200, MANIFEST, Content_Type=OCI)) as server:
        descriptor, raw = client(server).manifest("a/b", "latest")
        assert raw == MANIFEST
        assert descriptor.digest == sha256(MANIFEST)
        assert server.asked() == ["GET /v2/a/b/manifests/latest"]
        assert OCI in server.requests[0].headers["accept"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (response(200, b"not json", Content_Type=OCI), Invalid),
        (response(200, MANIFEST, Docker_Content_Digest=sha256(b"other")), Invalid),
        (response(200, MANIFEST, Docker_Content_Digest="sha256:zz"), Invalid),
        (response(200, b" " * (5 << 20)), Invalid),
        (response(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\\u001b[31m such"}]}'), NotFound),
        (response(403), Denied),
        (response(401), Denied),
        (response(400, b"<html>"), Invalid),
        (response(503), Unavailable),
        (response(200, MANIFEST, Content_Length=len(MANIFEST) + 10), Unavailable),
        (b"HTTP/1.1 200 Fine\r\n" + b"X: y\r\n" * 200 + b"\r\n", Unavailable),
        (b"HTTP/1.1 200 Fine\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", Unavailable),
        (b"SSH-2.0-OpenSSH\r\n", Unavailable),
    ],
)
def test_every_answer_is_a_manifest_or_a_typed_error(answer: bytes, kind: type[MamushkaError]) -> None:
    def say(_: Request) -> Iterator[bytes]:
        yield answer
        raise ConnectionAbortedError

    with scripted(say) as server, pytest.raises(kind) as caught:
        client(server).manifest("a", "b")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_passing_failure_is_tried_again() -> None:
    answers = iter([response(503), response(429, Retry_After="1"), response(200, MANIFEST)])
    waits: list[float] = []
    with scripted(lambda _: next(answers)) as server:
        registry = Registry(server.url, Transport(), patience=Patience(attempts=3, sleep=waits.append))
        assert registry.manifest("a", "b")[1] == MANIFEST
    assert len(waits) == 2
    assert waits[1] == 1.0


def test_a_stall_is_noticed() -> None:
    def stall(_: Request) -> Iterator[bytes]:
        yield response(200, MANIFEST)[:-20]
        time.sleep(2)

    with scripted(stall) as server, pytest.raises(Unavailable, match="broke off"):
        client(server, timeout=0.1).manifest("a", "b")


def test_nobody_there() -> None:
    with scripted(lambda _: b"") as server:
        pass
    waits: list[float] = []
    for host in (server.url, "http://no.such.host.invalid"):
        transport = Transport({"no.such.host.invalid": Trust(plain=True)})
        registry = Registry(host, transport, patience=Patience(sleep=waits.append))
        with pytest.raises(Unavailable, match="cannot connect"):
            registry.manifest("a", "b")
    assert waits == []


def test_resolve_by_head() -> None:
    with scripted(lambda _: response(200, Content_Length=7, Content_Type=OCI, Docker_Content_Digest=DIGEST)) as server:
        registry = client(server)
        assert registry.resolve("a", "b").digest == DIGEST
        assert registry.resolve("a", "b").size == 7
        assert server.asked() == ["HEAD /v2/a/manifests/b"] * 2


# redirects


def test_redirects_in_circles_end() -> None:
    with scripted(lambda _: response(307, Location="/v2/a/manifests/b")) as server:
        with pytest.raises(Unavailable, match="redirects more than"):
            client(server).manifest("a", "b")
        assert len(server.requests) <= 18


STRANGE = ["http://[", "http://x:99999/", "http://x:y/", "ftp://x/", "http:///", "javascript:alert(1)", "http://\xe9/"]


@pytest.mark.parametrize("target", [*STRANGE, "http://x/\x01", "//["])
def test_strange_places_are_not_gone_to(target: str) -> None:
    with scripted(lambda _: response(302, Location=target)) as server, pytest.raises((Invalid, Unavailable, Denied)):
        client(server).manifest("a", "b")


@pytest.mark.parametrize("realm", STRANGE)
def test_strange_token_servers_are_not_asked(realm: str) -> None:
    challenge = f'Bearer realm="{realm}"'
    with scripted(lambda _: response(401, WWW_Authenticate=challenge)) as server, pytest.raises((Invalid, Denied)):
        client(server).manifest("a", "b")


def test_signatures_in_addresses_are_not_shown() -> None:
    def answer(request: Request) -> Iterator[bytes]:
        if "signature" not in request.path:
            yield response(307, Location="/there?signature=secret")
        else:
            yield response(200, MANIFEST)[:-5]
            raise ConnectionAbortedError

    with scripted(answer) as server, pytest.raises(Unavailable) as caught:
        client(server).manifest("a", "b")
    assert "secret" not in str(caught.value)


def test_credentials_do_not_travel_to_another_host() -> None:
    with scripted(lambda request: ranged(request)) as elsewhere:

        def answer(request: Request) -> bytes:
            if "authorization" not in request.headers:
                return response(401, WWW_Authenticate='Basic realm="x"')
            return response(307, Location=f"http://{elsewhere.host}/there")

        with scripted(answer) as server:
            assert whole(client(server, credentials=Credentials("ada", "secret"))) == BLOB
        assert "authorization" not in elsewhere.requests[0].headers


def test_plain_http_is_not_spoken_to_strangers() -> None:
    transport = Transport({"127.0.0.1": Trust()})
    with pytest.raises(Denied, match="plain HTTP"):
        transport.request("GET", "http://127.0.0.1:1/", {})


def test_loopback_falls_back_to_plain_http() -> None:
    with scripted(lambda _: response(200, MANIFEST)) as server:
        registry = Registry(server.host, Transport(), patience=PATIENCE)
        assert registry.manifest("a", "b")[1] == MANIFEST
        assert registry.base() == server.url


# authentication


def bearer(server: list[Scripted], tokens: Iterator[str], *, body: Callable[[str], bytes] | None = None) -> Answer:
    def answer(request: Request) -> bytes:
        if request.path.startswith("/token"):
            token = next(tokens)
            return response(200, body(token) if body else json.dumps({"token": token}).encode())
        if request.headers.get("authorization") == "Bearer good":
            return response(200, MANIFEST)
        return response(401, WWW_Authenticate=f'Bearer realm="{server[0].url}/token",service="s"')

    return answer


def test_bearer_token_is_fetched_once_and_kept() -> None:
    servers: list[Scripted] = []
    with scripted(bearer(servers, itertools.repeat("good"))) as server:
        servers.append(server)
        registry = client(server, credentials=Credentials("ada", "secret"))
        registry.manifest("a", "b")
        registry.manifest("a", "c")
        asked = [path for path in server.asked() if "token" in path]
        assert asked == ["GET /token?service=s&scope=repository%3Aa%3Apull&account=ada"]
        sent = next(request for request in server.requests if "token" in request.path)
        assert sent.headers["authorization"] == Credentials("ada", "secret").basic


def test_identity_token_is_exchanged() -> None:
    servers: list[Scripted] = []
    with scripted(bearer(servers, itertools.repeat("good"))) as server:
        servers.append(server)
        client(server, credentials=Credentials(identity_token="refresh")).manifest("a", "b")
        sent = next(request for request in server.requests if "token" in request.path)
        assert sent.method == "POST"
        assert b"grant_type=refresh_token" in sent.body


def test_an_expired_token_is_replaced() -> None:
    servers: list[Scripted] = []
    with scripted(bearer(servers, iter(["good", "good"]))) as server:
        servers.append(server)
        registry = client(server)
        registry.manifest("a", "b")
        registry._authorizer._tokens[("repository:a:pull",)] = ("stale", time.monotonic() + 60)
        registry.manifest("a", "b")


def test_a_loop_of_refusals_ends() -> None:
    servers: list[Scripted] = []
    with scripted(bearer(servers, itertools.repeat("bad"))) as server:
        servers.append(server)
        with pytest.raises(Denied):
            client(server).manifest("a", "b")
        assert len(server.requests) <= 4


@pytest.mark.parametrize(
    "challenge",
    ["Negotiate", 'Bearer realm="ftp://x"', "Bearer", 'Basic realm="x"', '"', 'Bearer realm="' + "x" * 20_000 + '"'],
)
def test_strange_challenges(challenge: str) -> None:
    with scripted(lambda _: response(401, WWW_Authenticate=challenge)) as server, pytest.raises((Denied, Invalid)):
        client(server).manifest("a", "b")


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"token": "a\\nb"}', b'{"token": 1}', b"x" * 100_000])
def test_strange_tokens(body: bytes) -> None:
    servers: list[Scripted] = []
    with scripted(bearer(servers, itertools.repeat(""), body=lambda _: body)) as server:
        servers.append(server)
        with pytest.raises(Invalid):
            client(server).manifest("a", "b")


# blobs


def test_blob_resumes_where_it_broke_off() -> None:
    def answer(request: Request) -> Iterator[bytes]:
        said = ranged(request)
        yield said[: len(said) // 2]
        if len(said) > 1000:
            raise ConnectionAbortedError
        yield said[len(said) // 2 :]

    with scripted(answer) as server:
        assert whole(client(server)) == BLOB
        assert len(server.requests) > 3
        assert server.requests[1].headers["range"].startswith("bytes=1")


def test_blob_from_a_server_without_ranges() -> None:
    cut = iter([True])

    def answer(_: Request) -> Iterator[bytes]:
        said = response(200, BLOB)
        if next(cut, False):
            yield said[:100_000]
            raise ConnectionAbortedError
        yield said

    with scripted(answer) as server:
        assert whole(client(server)) == BLOB
        assert whole(client(server), offset=200_000) == BLOB[200_000:]


@pytest.mark.parametrize(
    "answer",
    [
        response(206, BLOB[5:], Content_Range=f"bytes 5-{len(BLOB) - 1}/{len(BLOB)}"),
        response(206, BLOB, Content_Range="bytes x"),
        response(206, BLOB, Content_Range=f"bytes 7-{len(BLOB) - 1}/{len(BLOB) + 1}"),
        response(206, BLOB),
        response(200, BLOB + b"more"),
        response(200, BLOB[:-1]),
    ],
)
def test_lies_about_ranges_and_sizes(answer: bytes) -> None:
    with scripted(lambda _: answer) as server, pytest.raises(Invalid):
        whole(client(server), offset=7)


def test_more_bytes_than_promised_without_a_length() -> None:
    endless = b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"x" * 0x8000 + b"\r\n"

    def answer(_: Request) -> Iterator[bytes]:
        yield endless
        for _ in range(1000):
            yield b"8000\r\n" + b"x" * 0x8000 + b"\r\n"

    with scripted(answer) as server, pytest.raises(Invalid, match="more than"):
        whole(client(server))


def test_a_blob_that_never_comes_ends_the_patience() -> None:
    def answer(_: Request) -> bytes:
        raise ConnectionAbortedError

    with scripted(answer) as server, pytest.raises(Unavailable):
        whole(client(server))


def test_a_slow_connection_gets_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SEGMENT", 20_000)
    monkeypatch.setattr(download, "PATIENT_SECONDS", 0.05)

    def answer(request: Request) -> Iterator[bytes]:
        said = ranged(request)
        if "range" in request.headers:
            yield said
            return
        for start in range(0, len(said), 10_000):
            yield said[start : start + 10_000]
            time.sleep(0.02)

    with scripted(answer) as server:
        assert whole(client(server)) == BLOB
        assert len([request for request in server.requests if "range" in request.headers]) > 3


# lists


def test_tags_over_pages() -> None:
    def answer(request: Request) -> bytes:
        if "last=" in request.path:
            return response(200, b'{"tags": ["c"]}')
        return response(200, b'{"tags": ["a", "b"]}', Link='</v2/a/tags/list?n=2&last=b>; rel="next"')

    with scripted(answer) as server:
        assert list(client(server).tags("a")) == ["a", "b", "c"]


def test_pages_in_circles_end() -> None:
    with scripted(lambda _: response(200, b'{"tags": ["a"]}', Link='</v2/a/tags/list>; rel="next"')) as server:
        assert list(client(server).tags("a")) == ["a", "a"]


def test_pages_do_not_lead_elsewhere() -> None:
    link = '<http://elsewhere/>; rel="next"'
    with scripted(lambda _: response(200, b"{}", Link=link)) as server, pytest.raises(Invalid, match="another host"):
        list(client(server).tags("a"))


def test_referrers_by_tag_where_the_api_is_missing() -> None:
    index = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [{"mediaType": OCI, "digest": DIGEST, "size": 1, "artifactType": "signature"}],
        }
    ).encode()

    def answer(request: Request) -> bytes:
        if "/referrers/" in request.path:
            return response(404)
        return response(200, index) if request.path.endswith(f"/manifests/sha256-{DIGEST.encoded}") else response(404)

    with scripted(answer) as server:
        assert [entry.digest for entry in client(server).referrers("a", DIGEST)] == [DIGEST]
        assert client(server).referrers("a", DIGEST, "other") == []
