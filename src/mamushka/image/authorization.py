"""Answering a registry's challenge: a bearer token from its token server, or name and password.

Tokens are kept per scope and asked for anew shortly before they end. distribution: token and oauth2
specifications.
"""

from __future__ import annotations

import time
from _thread import allocate_lock
from urllib.parse import urlencode

from mamushka.errors import Denied, Invalid
from mamushka.image.auth import NOBODY
from mamushka.spec import distribution

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mamushka.image.auth import Credentials
    from mamushka.image.http import Transport
    from mamushka.spec.distribution import Challenge

    Scopes = tuple[str, ...]

_CLIENT = "mamushka"
# A token is used no longer than this fraction of its life: it must not end while a request is on its way.
_USED = 0.8


class Authorizer:
    """What stands in the Authorization header for one registry. Safe to use from several threads."""

    def __init__(self, transport: Transport, credentials: Callable[[], Credentials]) -> None:
        self._transport, self._find = transport, credentials
        self._lock = allocate_lock()
        self._credentials: Credentials | None = None
        self._challenge: Challenge | None = None
        self._plain = False  # the registry is spoken to without TLS, so its token server may be too
        self._tokens: dict[Scopes, tuple[str, float]] = {}

    def header(self, scopes: Scopes) -> str:
        """What is known to be wanted, empty before the first challenge."""
        with self._lock:
            if self._challenge is None:
                return ""
            return self._answer(self._challenge, scopes)

    def learn(self, header: str, scopes: Scopes, refused: str, *, plain: bool) -> str:
        """The answer to a challenge after ``refused`` was not enough. Denied where there is none to give."""
        challenges = distribution.parse_challenges(header)
        with self._lock:
            chosen = _choose(challenges)
            if scopes in self._tokens and f"Bearer {self._tokens[scopes][0]}" == refused:
                del self._tokens[scopes]  # it ended early, or does not reach far enough
            self._challenge, self._plain = chosen, plain
            answer = self._answer(chosen, scopes)
        if answer == refused:
            raise Denied("the registry refuses the credentials", hint="log in again")
        return answer

    def _answer(self, challenge: Challenge, scopes: Scopes) -> str:
        """Lock held: one thread asks for a token, the others wait for it."""
        if challenge.scheme == "basic":
            credentials = self._known()
            if not credentials.username:
                raise Denied("the registry wants a name and a password", hint="log in to this registry")
            return credentials.basic
        text, until = self._tokens.get(scopes, ("", 0.0))
        if time.monotonic() >= until:
            asked = time.monotonic()
            token = self._ask(challenge, scopes)
            text = token.text
            self._tokens[scopes] = (text, asked + token.life * _USED)
        return f"Bearer {text}"

    def _known(self) -> Credentials:
        if self._credentials is None:
            self._credentials = self._find()
        return self._credentials

    def _ask(self, challenge: Challenge, scopes: Scopes) -> distribution.Token:
        realm = challenge.parameters.get("realm", "")
        if not realm.startswith(("https://", "http://")):
            raise Invalid(f"the token server {realm[:200]!r} is not an HTTP address")
        credentials = self._known() or NOBODY
        scopes = scopes or tuple(filter(None, (challenge.parameters.get("scope"),)))
        fields = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        headers = {"Accept": "application/json", "User-Agent": _CLIENT}
        if credentials.identity_token:
            fields += [("grant_type", "refresh_token"), ("refresh_token", credentials.identity_token)]
            fields += [("client_id", _CLIENT), ("scope", " ".join(scopes))]
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._transport.request("POST", realm, headers, urlencode(fields).encode(), insecure=self._plain)
        else:
            fields += [("scope", scope) for scope in scopes]
            if credentials:
                fields.append(("account", credentials.username))
                headers["Authorization"] = credentials.basic
            join = "&" if "?" in realm else "?"
            answer = self._transport.request("GET", f"{realm}{join}{urlencode(fields)}", headers, insecure=self._plain)
        with answer:
            raw = answer.read(distribution.ERROR_BODY_MAX, "the token server's answer")
        if answer.status != 200:
            raise distribution.failure(answer.status, raw, "cannot get a token")
        return distribution.parse_token(raw)


def _choose(challenges: Sequence[Challenge]) -> Challenge:
    """Bearer goes before Basic: the password then travels to one server only."""
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    offered = ", ".join(distribution.plain(challenge.scheme, 30) for challenge in challenges[:5])
    raise Denied(f"the registry asks for an authentication that is not known here: {offered or 'none at all'}")
