"""Credentials as Docker keeps them: ``config.json`` and the programs ``docker-credential-*``.

A registry's entry is found by its host. ``credHelpers`` (one registry) goes before ``credsStore`` (all of
them), both before ``auths``, where the password lies in base64. A helper is asked with the server's name on
its standard input and answers JSON; the user name ``<token>`` marks an identity token.
"""

from __future__ import annotations

import os
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

from mamushka import document
from mamushka.errors import Invalid, NotFound, Unavailable
from mamushka.spec.reference import DEFAULT_REGISTRY
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# How Docker Hub is called in config.json, for reasons of history.
_HUB = "https://index.docker.io/v1/"
# A helper may have to unlock a keyring, with the user typing; longer than this nobody waits for a pull.
_HELPER_TIMEOUT = 60.0
_TOKEN_USER = "<token>"


@value
class Credentials:
    """A name and a password, or an identity token that is exchanged for access tokens."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, …)"  # secrets do not belong into traces

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token)

    @property
    def basic(self) -> str:
        """The value of an Authorization header, RFC 7617."""
        return "Basic " + _encode(f"{self.username}:{self.password}")


NOBODY = Credentials()


def config_path(environment: Mapping[str, str]) -> str:
    """Where Docker's configuration is; empty without a home."""
    directory = environment.get("DOCKER_CONFIG") or (environment.get("HOME", "") and environment["HOME"] + "/.docker")
    return directory and f"{directory}/config.json"


def find(path: str, registry: str) -> Credentials:
    """The credentials for a registry ("docker.io", "localhost:5000"), NOBODY where there are none."""
    config = _load(path)
    server = _server(registry)
    helper = _section(config, "credHelpers").get(registry) or _section(config, "credHelpers").get(server)
    helper = helper or config.get("credsStore")
    if isinstance(helper, str) and helper:
        found = _ask(helper, server)
        if found:
            return found
    for name, entry in _section(config, "auths").items():
        if isinstance(entry, dict) and _host(name) == _host(server):
            return _entry(entry, path)
    return NOBODY


def store(path: str, registry: str, credentials: Credentials) -> str:
    """Remember credentials where the configuration says; the place, for the user to know."""
    config = _load(path)
    server = _server(registry)
    helper = _section(config, "credHelpers").get(registry) or config.get("credsStore")
    if isinstance(helper, str) and helper:
        name, secret = credentials.username, credentials.password
        if credentials.identity_token:
            name, secret = _TOKEN_USER, credentials.identity_token
        _run(helper, "store", document.dump({"ServerURL": server, "Username": name, "Secret": secret}))
        return f"docker-credential-{helper}"
    entry = {"auth": _encode(f"{credentials.username}:{credentials.password}")}
    if credentials.identity_token:
        entry["identitytoken"] = credentials.identity_token
    _save(path, {**config, "auths": {**_section(config, "auths"), server: entry}})
    return path


def erase(path: str, registry: str) -> None:
    """Forget a registry's credentials. NotFound where there are none."""
    config = _load(path)
    server = _server(registry)
    if not find(path, registry):
        raise NotFound(f"not logged in to {registry}")
    helper = _section(config, "credHelpers").get(registry) or config.get("credsStore")
    if isinstance(helper, str) and helper:
        _run(helper, "erase", server.encode())
    auths = {name: entry for name, entry in _section(config, "auths").items() if _host(name) != _host(server)}
    if len(auths) != len(_section(config, "auths")):
        _save(path, {**config, "auths": auths})


def _server(registry: str) -> str:
    return _HUB if registry == DEFAULT_REGISTRY else registry


def _host(name: str) -> str:
    """config.json's keys are hosts, or addresses with a path that nobody needs."""
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.partition("/")[0]


def _encode(text: str) -> str:
    return b2a_base64(text.encode(), newline=False).decode()


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            raw = file.read(document.SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    config = document.parse(raw, path) if raw.strip() else {}
    if not isinstance(config, dict):
        raise Invalid(f"{path} is not a JSON object")
    return config


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _entry(entry: Mapping[str, Any], path: str) -> Credentials:
    token = entry.get("identitytoken") or ""
    text = entry.get("auth") or ""
    if not text:
        return Credentials(entry.get("username") or "", entry.get("password") or "", token)
    try:
        name, colon, password = a2b_base64(text).decode().partition(":")
    except (Base64Error, ValueError, TypeError) as error:
        raise Invalid(f"{path} holds an auth that is not base64 of user:password", hint="log in again") from error
    if not colon:
        raise Invalid(f"{path} holds an auth that is not base64 of user:password", hint="log in again")
    return Credentials(name, password.rstrip("\0"), token)


def _save(path: str, config: Mapping[str, Any]) -> None:
    import json

    path = os.path.realpath(path)  # a link into somebody's dotfiles stays one
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    staging = f"{path}.{os.getpid()}.new"
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        json.dump(config, file, indent="\t")  # a file that people edit
    os.rename(staging, path)


def _ask(helper: str, server: str) -> Credentials:
    raw = _run(helper, "get", server.encode(), optional=True)
    if not raw:
        return NOBODY
    answer = document.parse(raw, f"the answer of docker-credential-{helper}")
    name, secret = (answer.get(key) for key in ("Username", "Secret")) if isinstance(answer, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(secret, str):
        raise Invalid(f"the answer of docker-credential-{helper} has no Username and Secret")
    return Credentials(identity_token=secret) if name == _TOKEN_USER else Credentials(name, secret)


def _run(helper: str, verb: str, said: bytes, *, optional: bool = False) -> bytes:
    """A helper's output; with ``optional`` nothing where it does not know the server."""
    import subprocess

    program = f"docker-credential-{helper}"
    if "/" in helper or not helper.isprintable():
        raise Invalid(f"{program!r} is not the name of a program")
    try:
        done = subprocess.run([program, verb], input=said, capture_output=True, timeout=_HELPER_TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise NotFound(f"{program} is not installed", hint="install it, or take it out of config.json") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{program} did not answer within {_HELPER_TIMEOUT:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    text = (done.stdout.strip() or done.stderr.strip()).decode("utf-8", "replace")[:300]
    if optional and "not found" in text:  # the protocol has no other way to say it
        return b""
    raise Unavailable(f"{program} {verb} failed with status {done.returncode}: {text}")
