"""Credentials in Docker's config.json, and the protocol of docker-credential programs."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from mamushka.errors import Invalid, NotFound, Unavailable
from mamushka.image import auth
from mamushka.image.auth import NOBODY, Credentials


def config(tmp_path: Path, **body: object) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(body))
    return str(path)


def basic(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_auths(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        auths={
            "localhost:5000": basic("ada:pass:word"),
            "https://index.docker.io/v1/": basic("hub:secret"),
            "https://old.example/v2/": {"username": "u", "password": "p"},
            "token.example": {"identitytoken": "t"},
        },
    )
    assert auth.find(path, "localhost:5000") == Credentials("ada", "pass:word")
    assert auth.find(path, "docker.io") == Credentials("hub", "secret")
    assert auth.find(path, "old.example") == Credentials("u", "p")
    assert auth.find(path, "token.example").identity_token == "t"
    assert auth.find(path, "localhost") == NOBODY
    assert not auth.find(str(tmp_path / "none"), "x")


@pytest.mark.parametrize(
    "entry", [{"auth": "!"}, basic("no colon"), {"auth": 7}, {"auth": base64.b64encode(b"\xff:x").decode()}]
)
def test_broken_auth(tmp_path: Path, entry: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        auth.find(config(tmp_path, auths={"x.example": entry}), "x.example")


def test_broken_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(Invalid):
            auth.find(str(path), "x")
    path.write_text("")
    assert auth.find(str(path), "x") == NOBODY


def test_store_and_erase_keep_the_rest(tmp_path: Path) -> None:
    path = config(tmp_path, auths={"a.example": basic("a:b")}, psFormat="table")
    auth.store(path, "docker.io", Credentials("ada", "secret"))
    assert auth.find(path, "docker.io") == Credentials("ada", "secret")
    assert auth.find(path, "a.example") == Credentials("a", "b")
    assert json.loads(Path(path).read_text())["psFormat"] == "table"
    assert os.stat(path).st_mode & 0o777 == 0o600
    auth.erase(path, "docker.io")
    assert auth.find(path, "docker.io") == NOBODY
    with pytest.raises(NotFound):
        auth.erase(path, "docker.io")


def test_store_makes_a_new_config(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "config.json")
    auth.store(path, "x.example", Credentials("u", "p"))
    assert auth.find(path, "x.example") == Credentials("u", "p")


def test_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, """read server; echo '{"ServerURL":"x","Username":"'$1-$server'","Secret":"s"}'""")
    path = config(tmp_path, credsStore="test", auths={"x.example": basic("not:asked")})
    assert auth.find(path, "x.example") == Credentials("get-x.example", "s")
    assert auth.find(path, "docker.io").username == "get-https://index.docker.io/v1/"


def test_helper_without_an_entry_leaves_it_to_auths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    path = config(tmp_path, credHelpers={"x.example": "test"}, auths={"x.example": basic("a:b")})
    assert auth.find(path, "x.example") == Credentials("a", "b")


def test_helper_with_an_identity_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, """echo '{"Username":"<token>","Secret":"refresh"}'""")
    assert auth.find(config(tmp_path, credsStore="test"), "x").identity_token == "refresh"


def test_helper_stores_and_erases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(
        tmp_path,
        monkeypatch,
        f"""case $1 in
        store) cat > {tmp_path}/kept;;
        get) test -e {tmp_path}/kept && cat {tmp_path}/kept || {{ echo not found; exit 1; }};;
        erase) rm {tmp_path}/kept;;
        esac""",
    )
    path = config(tmp_path, credsStore="test")
    assert auth.store(path, "x.example", Credentials("u", "p")) == "docker-credential-test"
    assert auth.find(path, "x.example") == Credentials("u", "p")
    auth.erase(path, "x.example")
    assert auth.find(path, "x.example") == NOBODY


@pytest.mark.parametrize("script", ["exit 3", "echo '{}'", "echo nonsense"])
def test_helper_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    helper(tmp_path, monkeypatch, script)
    with pytest.raises((Unavailable, Invalid)):
        auth.find(config(tmp_path, credsStore="test"), "x")


@pytest.mark.parametrize(("name", "kind"), [("missing-one", NotFound), ("../../bin/sh", Invalid)])
def test_helper_that_is_none(tmp_path: Path, name: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        auth.find(config(tmp_path, credsStore=name), "x")


def test_secrets_do_not_show() -> None:
    assert "secret" not in repr(Credentials("ada", "secret", "secret"))


def test_config_path() -> None:
    assert auth.config_path({"DOCKER_CONFIG": "/d", "HOME": "/h"}) == "/d/config.json"
    assert auth.config_path({"HOME": "/h"}) == "/h/.docker/config.json"
    assert auth.config_path({}) == ""
