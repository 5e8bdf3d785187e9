"""registries.toml, proxies, and which place a pull asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mamushka.errors import Invalid, NotFound
from mamushka.image import configuration
from mamushka.image.http import Proxies, Trust, is_loopback, proxies_of
from mamushka.image.registry import Patience
from mamushka.image.remote import Remotes
from mamushka.spec.image import Descriptor
from mamushka.spec.reference import parse
from tests.scripted import manifest, response, scripted, sha256

EXAMPLE = """
[registry."docker.io"]
mirrors = ["https://mirror.example", "http://10.0.0.5:5000/"]

[registry."registry.lan:5000"]
insecure = true

[registry."own.example"]
ca = "/etc/ssl/own.pem"
"""


def test_example(tmp_path: Path) -> None:
    path = tmp_path / "registries.toml"
    path.write_text(EXAMPLE)
    read = configuration.load([str(tmp_path / "none.toml"), str(path)])
    assert read.mirrors["docker.io"] == ("https://mirror.example", "http://10.0.0.5:5000")
    assert read.trust["10.0.0.5:5000"] == Trust(plain=True)
    assert read.trust["registry.lan:5000"] == Trust(plain=True, verify=False)
    assert read.trust["own.example"].ca == "/etc/ssl/own.pem"


def test_the_users_table_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('[registry."x"]\ninsecure = true\n')
    (tmp_path / "b").write_text('[registry."x"]\ninsecure = false\n')
    assert not configuration.load([str(tmp_path / "a"), str(tmp_path / "b")]).trust["x"].plain


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "other = 1",
        '[registry."x"]\nunknown = 1',
        '[registry."x"]\ninsecure = "yes"',
        '[registry."x"]\nmirrors = ["ftp://y"]',
        '[registry."x"]\nmirrors = [1]',
        "registry = 1",
        "[registry]\nx = 1",
    ],
)
def test_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "registries.toml"
    path.write_text(text)
    with pytest.raises(Invalid, match=str(path)):
        configuration.load([str(path)])


def test_proxies() -> None:
    proxies = proxies_of(
        {"https_proxy": "http://p:1", "HTTP_PROXY": "http://q:2", "NO_PROXY": "a.example, .b.example,*.c"}
    )
    assert proxies.choose("https", "x.example") == "http://p:1"
    assert proxies.choose("http", "x.example") == "http://q:2"
    for host in ("a.example", "sub.a.example", "sub.b.example", "d.c", "localhost", "127.3.2.1", "::1"):
        assert proxies.choose("https", host) == ""
    assert proxies.choose("https", "not-a.example") == "http://p:1"
    assert Proxies("p", "p", ("*",)).choose("http", "x") == ""


def test_loopback() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("127.0.0.1.example") and not is_loopback("128.0.0.1") and not is_loopback("127.1")


def remotes(tmp_path: Path, text: str) -> Remotes:
    (tmp_path / "mamushka").mkdir()
    (tmp_path / "mamushka" / "registries.toml").write_text(text)
    return Remotes({"XDG_CONFIG_HOME": str(tmp_path)}, Patience(attempts=1, sleep=lambda _: None))


def test_mirrors_are_asked_in_order_and_the_registry_last(tmp_path: Path) -> None:
    body, layer = manifest(b"{}", b"layer"), b"layer"
    descriptor = Descriptor("", sha256(layer), len(layer))  # type: ignore[arg-type]
    with (
        scripted(lambda _: response(404)) as first,
        scripted(lambda r: response(200, body) if "manifests" in r.path else response(200, b"wrong size")) as second,
        scripted(lambda r: response(200, body if "manifests" in r.path else layer)) as upstream,
    ):
        text = f'[registry."{upstream.host}"]\nmirrors = ["{first.url}", "{second.url}"]\n'
        source = remotes(tmp_path, text).source(parse(f"{upstream.host}/a:b"))
        assert source.manifest("b")[1] == body
        assert [server.asked() for server in (first, second, upstream)] == [["GET /v2/a/manifests/b"]] * 2 + [[]]
        assert b"".join(source.blob(descriptor, 0)) == layer
        assert any("blobs" in path for path in upstream.asked())


def test_nobody_has_it(tmp_path: Path) -> None:
    with scripted(lambda _: response(404)) as server, pytest.raises(NotFound):
        remotes(tmp_path, "").source(parse(f"{server.host}/a:b")).manifest("b")


def test_a_proxy_is_used(tmp_path: Path) -> None:
    with scripted(lambda _: response(200, manifest())) as proxy:
        environment = {"HTTP_PROXY": f"http://ada:secret@{proxy.host}", "XDG_CONFIG_HOME": str(tmp_path)}
        (tmp_path / "mamushka").mkdir()
        (tmp_path / "mamushka" / "registries.toml").write_text(
            '[registry."x.example"]\nmirrors = ["http://m.example"]\n'
        )
        Remotes(environment).source(parse("x.example/a")).manifest("b")
        assert proxy.asked() == ["GET http://m.example/v2/a/manifests/b"]
        assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")
