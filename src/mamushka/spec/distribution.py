"""The registry's words: challenges, tokens, errors, ranges and pages of distribution-spec 1.1. No I/O.

Everything here comes from a server that may be hostile or broken: each parser answers a value or raises
Invalid, and texts meant for people lose their control characters and are cut.
"""

from __future__ import annotations

from mamushka import document
from mamushka.errors import Denied, Invalid, MamushkaError, NotFound, Unavailable
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# A header larger than this is none of a registry's: real challenges and links have a few hundred characters.
HEADER_MAX = 16 << 10
MESSAGE_MAX = 400
ERROR_BODY_MAX = 64 << 10
# Tokens are signed claims of 1-8 KiB; a request header over 16 KiB is refused by common servers anyway.
TOKEN_MAX = 16 << 10
# What a token without expires_in is good for (distribution: token specification), in seconds.
TOKEN_LIFE = 60.0
_TOKEN68 = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~+/")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~")
RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))


@value
class Challenge:
    """One way to authenticate, as WWW-Authenticate offers it. RFC 9110, section 11."""

    scheme: str  # lower case: "bearer", "basic"
    parameters: Mapping[str, str] = EMPTY


@value
class Token:
    """A bearer token; ``life`` in seconds from when it was asked for."""

    text: str
    life: float = TOKEN_LIFE


def plain(text: str, length: int = MESSAGE_MAX) -> str:
    """A stranger's text made fit for a terminal: one line, nothing that controls it, cut to ``length``."""
    shown = "".join(character if character.isprintable() else " " for character in text[: length * 4])
    shown = " ".join(shown.split())
    return shown if len(shown) <= length else shown[:length] + "…"


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of one WWW-Authenticate field, in order. Raises Invalid."""
    if len(header) > HEADER_MAX:
        raise Invalid(f"a WWW-Authenticate header of {len(header)} characters")
    challenges: list[Challenge] = []
    parameters: dict[str, str] = {}
    at = 0
    while True:
        at = _skip(header, at, " \t,")
        if at == len(header):
            return challenges
        word, at = _word(header, at)
        after = _skip(header, at, " \t")
        if challenges and header[after : after + 1] == "=":
            text, at = _parameter(header, _skip(header, after + 1, " \t"))
            parameters.setdefault(word.lower(), text)
        else:
            parameters = {}
            challenges.append(Challenge(word.lower(), parameters))
            at = _skip_token68(header, after)


def _skip(text: str, at: int, of: str) -> int:
    while at < len(text) and text[at] in of:
        at += 1
    return at


def _word(text: str, at: int) -> tuple[str, int]:
    start = at
    while at < len(text) and text[at] in _WORD:
        at += 1
    if at == start:
        raise Invalid(f"unexpected {text[at]!r} in a WWW-Authenticate header")
    return text[start:at], at


def _skip_token68(text: str, at: int) -> int:
    """Past the base64 that may follow a scheme (Negotiate …) instead of parameters."""
    end = at
    while end < len(text) and text[end] in _TOKEN68:
        end += 1
    end = _skip(text, end, "=")
    after = _skip(text, end, " \t")
    return end if end > at and (after == len(text) or text[after] == ",") else at


def _parameter(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != '"':
        start = at
        while at < len(text) and text[at] not in " \t,":
            at += 1
        return text[start:at], at
    pieces: list[str] = []
    at += 1
    while at < len(text):
        character = text[at]
        if character == '"':
            return "".join(pieces), at + 1
        if character == "\\" and at + 1 < len(text):
            at += 1
            character = text[at]
        pieces.append(character)
        at += 1
    raise Invalid("a quoted string in a WWW-Authenticate header does not end")


def parse_token(raw: bytes) -> Token:
    """A token server's answer: ``token`` or ``access_token``, with ``expires_in`` seconds. Raises Invalid."""
    body = document.parse(raw, "the token server's answer")
    text = (body.get("token") or body.get("access_token")) if isinstance(body, dict) else None
    if not isinstance(text, str) or not text:
        raise Invalid("the token server's answer has no token")
    if len(text) > TOKEN_MAX or not text.isascii() or not text.isprintable():
        raise Invalid("the token server's token cannot stand in a header")
    life = body.get("expires_in")
    if not isinstance(life, int | float) or life <= TOKEN_LIFE:
        return Token(text)
    return Token(text, min(float(life), 86400.0))


def parse_tags(raw: bytes) -> list[str]:
    """The tags on one page of a repository's list."""
    body = document.parse(raw, "the list of tags")
    tags = body.get("tags") if isinstance(body, dict) else None
    if tags is None:
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise Invalid("the list of tags is not a list of strings")
    return tags


def next_page(link: str) -> str:
    """The target of the ``rel="next"`` entry of a Link header, or nothing. RFC 8288."""
    for entry in link[:HEADER_MAX].split(",") if link else ():
        target, _, rest = entry.strip().partition(">")
        relations = [part.strip().lower() for part in rest.split(";")]
        if target.startswith("<") and ('rel="next"' in relations or "rel=next" in relations):
            return target[1:]
    return ""


def content_range(header: str) -> tuple[int, int, int]:
    """``bytes first-last/total`` as (first, last, total), total -1 where it is unknown. Raises Invalid."""
    unit, _, rest = header.strip().partition(" ")
    span, slash, total = rest.partition("/")
    first, dash, last = span.partition("-")
    numbers = (first, last, "0" if total == "*" else total)
    if (
        unit != "bytes"
        or not slash
        or not dash
        or not all(n.isdecimal() and n.isascii() and len(n) < 20 for n in numbers)
    ):
        raise Invalid(f"not a Content-Range: {plain(header, 100)!r}")
    return int(first), int(last), -1 if total == "*" else int(total)


def upload_offset(header: str) -> int:
    """How many bytes an upload has, from its Range header (``0-1023``; absent: none)."""
    last = header.removeprefix("bytes=").partition("-")[2]
    if not header or header in ("0-0", "bytes=0-0"):
        # Registries say 0-0 for an empty upload; a single byte, which would look the same, is never sent alone.
        return 0
    if not (last.isdecimal() and last.isascii() and len(last) < 20):
        raise Invalid(f"not the Range of an upload: {plain(header, 100)!r}")
    return int(last) + 1


def failure(status: int, raw: bytes, what: str) -> MamushkaError:
    """The error that a registry's refusal amounts to; ``what`` could not be done."""
    said = _messages(raw)
    text = f"{what}: the registry answered {status}" + (f": {said}" if said else "")
    if status in (401, 403, 407):
        return Denied(text, hint="log in to this registry, and check that the name is right and you may do this")
    if status in (404, 410):
        return NotFound(text, hint="check the name and the tag")
    if status in RETRIED or status >= 500:
        return Unavailable(text, hint="the registry is overloaded or limits you: try again later, or log in")
    return Invalid(text)


def _messages(raw: bytes) -> str:
    """What an error document says to people; for a page of something else, nothing."""
    try:
        body = document.parse(raw, "the error", size_max=ERROR_BODY_MAX)
    except Invalid:
        return ""
    errors = body.get("errors") if isinstance(body, dict) else None
    if not isinstance(errors, list):
        details = body.get("details") or body.get("message") if isinstance(body, dict) else ""
        return plain(details) if isinstance(details, str) else ""
    said = []
    for error in errors[:3]:
        if isinstance(error, dict):
            code, message = error.get("code"), error.get("message")
            said.append(": ".join(part for part in (code, message) if isinstance(part, str) and part))
    return plain("; ".join(said))
