"""Image names, as the distribution project's reference grammar has them and Docker's users write them.

    reference := name [ ":" tag ] [ "@" digest ]
    name      := [ domain "/" ] component ( "/" component )*
    domain    := host [ ":" port ]          host := dns-label ( "." dns-label )* | "[" IPv6 "]"
    component := [a-z0-9]+ ( ( "." | "_" | "__" | "-"+ ) [a-z0-9]+ )*
    tag       := [A-Za-z0-9_] [A-Za-z0-9_.-]{0,127}

What people write leaves things out: without a domain Docker Hub is meant, and there a single component
lives in ``library/``. The first component is a domain when it has a dot, a colon or a capital, or is
``localhost``. The parser is written by hand because ``re`` costs more than a container's whole start.
"""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.spec import digest as digests
from mamushka.values import replace, value

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_REGISTRY = "index.docker.io"
_OFFICIAL = "library/"
REPOSITORY_MAX = 255  # distribution-spec and every registry's database column
TAG_MAX = 128
# A domain name has at most 253 characters (RFC 1035), an IPv6 host 41; five digits of port and a colon.
_REGISTRY_MAX = 259
TEXT_MAX = _REGISTRY_MAX + 1 + REPOSITORY_MAX + 1 + TAG_MAX + 1 + 7 + 128

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALNUM = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LABEL = _ALNUM | {"-"}
_COMPONENT = _LOWER | frozenset("._-")
_WORD = _ALNUM | {"_"}
_TAG = _WORD | frozenset(".-")
_IPV6 = frozenset("0123456789abcdefABCDEF:")
_DIGITS = frozenset("0123456789")


@value
class Reference:
    """Where an image is found: a registry, a repository in it, and a tag, a digest, both or neither."""

    registry: str  # "docker.io", "localhost:5000", "[::1]:5000"
    repository: str  # "library/alpine"
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar_name(self) -> str:
        """The name as people write it: Docker Hub and ``library/`` go unsaid where that stays unambiguous."""
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        rest = self.repository.removeprefix(_OFFICIAL)
        if "/" not in rest:
            return rest
        return self.name if _is_domain(self.repository.partition("/")[0]) else self.repository

    @property
    def familiar(self) -> str:
        """The whole reference as people write it; ``parse`` gives back an equal value."""
        return self.familiar_name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def selector(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag

    def with_default_tag(self) -> Reference:
        """The same with tag ``latest``, unless it has a tag or a digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """The same repository under another tag, without a digest."""
        _check_tag(tag, tag)
        return Reference(self.registry, self.repository, tag)

    def with_digest(self, digest: str) -> Reference:
        """The same repository by digest alone."""
        return Reference(self.registry, self.repository, digest=digests.parse(digest))

    def __str__(self) -> str:
        return self.name + self._suffix


def parse(text: str) -> Reference:
    """A reference as a user writes it. Raises Invalid."""
    if not text or len(text) > TEXT_MAX:
        raise _invalid(text, f"it has {len(text)} characters" if text else "it is empty")
    if len(text) == 64 and digests.is_hex(text):
        raise _invalid(text, "64 hex digits are an image's id, not a name")
    rest, at, digest = text.partition("@")
    if at:
        digest = digests.parse(digest, f"digest of the reference {text!r}")
    registry, rest = _split_registry(rest)
    # A colon after the last slash starts the tag; ports were split off with the registry.
    repository, colon, tag = rest.partition(":")
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = _OFFICIAL + repository
    _check_repository(text, repository)
    if colon:
        _check_tag(text, tag)
    _check_registry(text, registry)
    return Reference(registry, repository, tag, digest)


def _invalid(text: str, why: str) -> Invalid:
    return Invalid(
        f"invalid reference format: {text[:300]!r}: {why}",
        hint="write [registry[:port]/]repository[:tag][@digest], such as alpine:3.20 or localhost:5000/team/app",
    )


def _is_domain(first: str) -> bool:
    return first == "localhost" or "." in first or ":" in first or first.lower() != first


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash or not _is_domain(first):
        return DEFAULT_REGISTRY, text
    return (DEFAULT_REGISTRY if first == _LEGACY_REGISTRY else first), rest


def _check_registry(text: str, registry: str) -> None:
    host, port = registry, ""
    if registry.startswith("["):
        host, bracket, after = registry[1:].partition("]")
        if not bracket or not host or not _IPV6.issuperset(host):
            raise _invalid(text, f"{registry!r} is not an IPv6 host in brackets")
        colon, port = after[:1], after[1:]
        if after and (colon != ":" or not port):
            raise _invalid(text, f"{after!r} after the host is not a port")
    else:
        host, colon, port = registry.partition(":")
        if colon and not port:
            raise _invalid(text, "the port is empty")
        for label in host.split("."):
            if not label or not _LABEL.issuperset(label) or label[0] == "-" or label[-1] == "-":
                raise _invalid(text, f"{label!r} is not a part of a host name")
    if port and (not _DIGITS.issuperset(port) or len(port) > 5 or int(port) > 65535):
        raise _invalid(text, f"{port!r} is not a port")
    if len(registry) > _REGISTRY_MAX:
        raise _invalid(text, f"the registry has more than {_REGISTRY_MAX} characters")


def _check_repository(text: str, repository: str) -> None:
    if repository.lower() != repository:
        raise _invalid(text, f"repository name ({repository}) must be lowercase")
    if len(repository) > REPOSITORY_MAX:
        raise _invalid(text, f"repository name must not be more than {REPOSITORY_MAX} characters")
    for component in repository.split("/"):
        _check_component(text, component)


def _check_component(text: str, component: str) -> None:
    if not component or not _COMPONENT.issuperset(component):
        raise _invalid(text, f"{component!r} is not a part of a repository name")
    if component[0] not in _LOWER or component[-1] not in _LOWER:
        raise _invalid(text, f"{component!r} must begin and end with a letter or digit")
    separator = ""
    for character in component:
        if character in _LOWER:
            separator = ""
            continue
        separator += character
        if separator not in (".", "_", "__") and separator.strip("-"):
            raise _invalid(text, f"{separator!r} does not separate parts of a repository name")


def _check_tag(text: str, tag: str) -> None:
    if not tag or len(tag) > TAG_MAX or tag[0] not in _WORD or not _TAG.issuperset(tag):
        raise _invalid(text, f"{tag[:200]!r} is not a tag: letters, digits, '_', '.', '-', at most {TAG_MAX}")
