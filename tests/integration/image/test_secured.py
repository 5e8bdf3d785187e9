"""A registry behind TLS that wants a name and a password."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.engine.images import Images
from mamushka.errors import Denied, Unavailable
from mamushka.image.auth import Credentials
from mamushka.image.remote import Remotes
from tests import peers
from tests import registry as registries
from tests.images import Layout
from tests.integration.image.conftest import consume

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.peer]

# bcrypt of "secret" with the least rounds.
HTPASSWD = "ada:$2b$04$dYyYD/IY/kXi2Ew/hOjqje0U.eV9WqOZmlzn24EIWx219AZV9OGnK\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates: one for 127.0.0.1 that signs itself, and one of a stranger."""
    peers.need("openssl")
    directory = tmp_path_factory.mktemp("secured")
    for name in ("server", "stranger"):
        peers.run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem"),
        )  # fmt: skip
    (directory / "htpasswd").write_text(HTPASSWD)
    return directory


@pytest.fixture(scope="module")
def secured(directory: Path, busybox_image: Layout) -> Iterator[str]:
    """host:port of the registry, with an image in it."""
    tls = f", tls: {{certificate: {directory}/server.pem, key: {directory}/server.key}}"
    auth = f"auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}\n"
    with registries.registry(str(directory), extra=tls, more=auth) as address:
        registries.push(busybox_image, f"{address}/busybox:latest", "--dest-creds", "ada:secret")
        yield address


def surroundings(home: Path, address: str, *, login: str = "", configuration: str = "") -> dict[str, str]:
    """The environment of a user with this home."""
    (home / ".docker").mkdir(parents=True)
    auths = {address: {"auth": b64encode(login.encode()).decode()}} if login else {}
    (home / ".docker/config.json").write_text(json.dumps({"auths": auths}))
    (home / ".config/mamushka").mkdir(parents=True)
    (home / ".config/mamushka/registries.toml").write_text(configuration)
    return {"HOME": str(home)}


def pull(tmp_path: Path, environment: dict[str, str], reference: str) -> Images:
    images = Images(str(tmp_path / "data"), environment=environment)
    consume(images.pull(reference))
    return images


def test_loopback_may_have_any_certificate(secured: str, tmp_path: Path) -> None:
    environment = surroundings(tmp_path / "home", secured, login="ada:secret")
    images = pull(tmp_path, environment, f"{secured}/busybox")
    images.tag(f"{secured}/busybox", f"{secured}/again")
    assert "Mounted from busybox" in consume(images.push(f"{secured}/again"))


def test_a_certificate_that_is_trusted(secured: str, tmp_path: Path, directory: Path) -> None:
    table = f'[registry."{secured}"]\nca = "{directory}/server.pem"\n'
    environment = surroundings(tmp_path / "home", secured, login="ada:secret", configuration=table)
    assert pull(tmp_path, environment, f"{secured}/busybox").images()


def test_a_certificate_of_a_stranger(secured: str, tmp_path: Path, directory: Path) -> None:
    table = f'[registry."{secured}"]\nca = "{directory}/stranger.pem"\n'
    environment = surroundings(tmp_path / "home", secured, login="ada:secret", configuration=table)
    with pytest.raises(Unavailable, match="certificate"):
        pull(tmp_path, environment, f"{secured}/busybox")


@pytest.mark.parametrize("login", ["", "ada:wrong", "nobody:secret"])
def test_refused(secured: str, tmp_path: Path, login: str) -> None:
    environment = surroundings(tmp_path / "home", secured, login=login)
    with pytest.raises(Denied) as caught:
        pull(tmp_path, environment, f"{secured}/busybox")
    assert caught.value.hint


def test_login(secured: str, tmp_path: Path) -> None:
    remotes = Remotes(surroundings(tmp_path / "home", secured))
    remotes.login(secured, Credentials("ada", "secret"))
    with pytest.raises(Denied):
        remotes.login(secured, Credentials("ada", "wrong"))
