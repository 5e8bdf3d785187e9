"""From a name to the registries that may have it: mirrors first, each with its trust, proxy and credentials."""

from __future__ import annotations

from mamushka import trace
from mamushka.errors import Denied, Invalid, MamushkaError, NotFound, Unavailable
from mamushka.image import auth, configuration
from mamushka.image.download import Download
from mamushka.image.http import Transport, proxies_of
from mamushka.image.registry import PATIENT, Patience, Registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeVar

    from mamushka.image.auth import Credentials
    from mamushka.spec.image import Descriptor
    from mamushka.spec.reference import Reference

    T = TypeVar("T")


class Remotes:
    """All registries as one user sees them. ``environment`` gives homes, proxies and Docker's configuration."""

    def __init__(self, environment: Mapping[str, str], patience: Patience = PATIENT) -> None:
        self.config_path = auth.config_path(environment)
        self._configuration = configuration.load(configuration.paths(environment))
        self._transport = Transport(self._configuration.trust, proxies_of(environment))
        self._patience = patience

    def registry(self, host: str) -> Registry:
        """The registry itself, for pushing and logging in."""
        return Registry(host, self._transport, lambda: self._credentials(host), self._patience)

    def login(self, host: str, credentials: auth.Credentials) -> None:
        """Try credentials before they are kept. Denied where the registry refuses them."""
        Registry(host, self._transport, lambda: credentials, self._patience).greet()

    def source(self, reference: Reference) -> Source:
        """Where to pull a reference from."""
        mirrors = self._configuration.mirrors.get(reference.registry, ())
        registries = [
            Registry(mirror, self._transport, lambda mirror=mirror: self._credentials(_host(mirror)), self._patience)  # type: ignore[misc]
            for mirror in mirrors
        ]
        return Source(reference.repository, [*registries, self.registry(reference.registry)])

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _credentials(self, host: str) -> Credentials:
        return auth.find(self.config_path, host) if self.config_path else auth.NOBODY


class Source:
    """One repository in the places where it may be; the first that has something is asked first from then on."""

    def __init__(self, repository: str, registries: list[Registry]) -> None:
        self.repository = repository
        self._registries = registries

    def manifest(self, selector: str) -> tuple[Descriptor, bytes]:
        """A manifest or index by tag or digest."""
        return self._first(lambda registry: registry.manifest(self.repository, selector))

    def resolve(self, selector: str) -> Descriptor:
        """What a tag points to."""
        return self._first(lambda registry: registry.resolve(self.repository, selector))

    def tags(self) -> list[str]:
        """All tags of the repository."""
        return self._first(lambda registry: list(registry.tags(self.repository)))

    def blob(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """A blob's bytes from ``offset`` on; where one place fails, the next goes on from the same byte."""
        for number, registry in enumerate(self._registries):
            download = Download(registry, self.repository, descriptor.digest, descriptor.size)
            try:
                for piece in download.pieces(offset):
                    offset += len(piece)
                    yield piece
                return
            except (Denied, Invalid, NotFound, Unavailable) as error:
                if number + 1 == len(self._registries):
                    raise
                trace.event("mirror.failed", host=registry.host, reason=str(error))

    def _first(self, ask: Callable[[Registry], T]) -> T:
        for number, registry in enumerate(self._registries):
            try:
                answer = ask(registry)
            except MamushkaError as error:
                if number + 1 == len(self._registries):
                    raise
                trace.event("mirror.failed", host=registry.host, reason=str(error))
                continue
            self._registries.insert(0, self._registries.pop(number))
            return answer
        raise AssertionError("there is always one registry, and the last answers or raises")


def _host(mirror: str) -> str:
    return mirror.partition("://")[2].partition("/")[0]
