"""One registry, as distribution-spec 1.1 has it: manifests, tags, blobs and referrers, read and written.

``exchange`` is the one way out. It finds out whether the registry speaks TLS, answers challenges, follows
redirects (few, never down from TLS, and without credentials to another host), and repeats what failed for
a passing reason, waiting longer each time. All that comes back is bounded, and checked against its digest.
"""

from __future__ import annotations

import random
import time
from urllib.parse import quote, urlencode, urlsplit

from mamushka import document, trace
from mamushka.errors import Denied, Invalid, NotFound, Unavailable
from mamushka.image.auth import NOBODY
from mamushka.image.authorization import Authorizer
from mamushka.image.http import Unreachable, bare, join
from mamushka.spec import digest as digests
from mamushka.spec import distribution
from mamushka.spec.image import ACCEPTED, OCI_INDEX, Descriptor, Index, parse_manifest
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mamushka.image.auth import Credentials
    from mamushka.image.http import Body, Response, Transport
    from mamushka.spec.digest import Digest

AGENT = "mamushka"
# Docker Hub's API lives under another name than its images.
_HOSTS = {"docker.io": "registry-1.docker.io"}
_REDIRECTS_MAX = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# The busiest repositories have some ten thousand tags; one with more than this goes in circles.
_TAGS_MAX = 1_000_000
_PAGE = 1000


@value
class Patience:
    """How often something is tried, and how long is waited in between; seconds."""

    attempts: int = 5
    first: float = 0.3
    longest: float = 20.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, attempt: int, asked: str = "") -> None:
        """Wait before the next attempt; ``asked`` is a Retry-After header, which counts as far as it is bearable."""
        seconds = min(self.longest, self.first * 2**attempt) * random.uniform(0.5, 1.0)
        if asked.isdecimal() and asked.isascii() and len(asked) < 6:
            seconds = min(float(asked), 3 * self.longest)
        self.sleep(seconds)


PATIENT = Patience()


class Registry:
    """The registry ``host`` ("docker.io", "localhost:5000", or an address of a mirror "https://…")."""

    def __init__(
        self,
        host: str,
        transport: Transport,
        credentials: Callable[[], Credentials] = lambda: NOBODY,
        patience: Patience = PATIENT,
    ) -> None:
        self.host = host
        self.patience = patience
        self._transport = transport
        self._authorizer = Authorizer(transport, credentials)
        self._base = host if "://" in host else ""

    def greet(self) -> None:
        """Ask whether the registry is one, and takes the credentials. Denied where it does not."""
        with self.exchange("GET", "", f"cannot log in to {self.host}", ""):
            pass

    # manifests and tags

    def manifest(self, repository: str, selector: str) -> tuple[Descriptor, bytes]:
        """A manifest or index by tag or digest: what it is, and its bytes as they came."""
        what = f"cannot get {self.host}/{repository}:{selector}"
        headers = {"Accept": ", ".join(ACCEPTED)}
        with self.exchange("GET", f"{repository}/manifests/{selector}", what, repository, headers=headers) as answer:
            raw = answer.read(document.SIZE_MAX, f"the manifest of {self.host}/{repository}")
            return self._manifest_descriptor(answer, selector, raw), raw

    def resolve(self, repository: str, selector: str) -> Descriptor:
        """What a tag points to now, by HEAD; registries that do not say it there are asked for the whole."""
        what = f"cannot find {self.host}/{repository}:{selector}"
        headers = {"Accept": ", ".join(ACCEPTED)}
        with self.exchange("HEAD", f"{repository}/manifests/{selector}", what, repository, headers=headers) as answer:
            named, length = answer.header("Docker-Content-Digest"), answer.header("Content-Length")
            kind = answer.header("Content-Type").partition(";")[0].strip()
        if not named or not length.isdecimal() or len(length) > 9 or kind not in ACCEPTED:
            return self.manifest(repository, selector)[0]
        return Descriptor(kind, digests.parse(named, "registry's digest"), int(length))

    def _manifest_descriptor(self, answer: Response, selector: str, raw: bytes) -> Descriptor:
        named = selector if ":" in selector else answer.header("Docker-Content-Digest")
        digest = digests.parse(named, "manifest's digest") if named else digests.sha256(raw)
        digest.verify(raw, f"the manifest of {self.host}")
        media_type = parse_manifest(raw, answer.header("Content-Type")).media_type
        return Descriptor(media_type, digest, len(raw))

    def tags(self, repository: str) -> Iterator[str]:
        """All tags of a repository, page by page."""
        what = f"cannot list the tags of {self.host}/{repository}"
        path, seen, count = f"{repository}/tags/list?n={_PAGE}", set(), 0
        while count <= _TAGS_MAX:
            with self.exchange("GET", path, what, repository) as answer:
                tags = distribution.parse_tags(answer.read(document.SIZE_MAX, "the list of tags"))
                yield from tags
                count += max(1, len(tags))  # so that empty pages come to an end, too
                following = distribution.next_page(answer.header("Link"))
                path = self._same_host(answer.url, following) if following else ""
            if not path or path in seen:
                return
            seen.add(path)
        raise Invalid(f"{what}: there are more than {_TAGS_MAX}")

    def put_manifest(self, repository: str, selector: str, raw: bytes, media_type: str) -> None:
        """Upload a manifest under a tag or its digest."""
        what = f"cannot push {self.host}/{repository}:{selector}"
        headers = {"Content-Type": media_type}
        path = f"{repository}/manifests/{selector}"
        with self.exchange("PUT", path, what, repository, push=True, headers=headers, body=raw) as answer:
            answer.read(distribution.ERROR_BODY_MAX, "the registry's answer")

    def delete(self, repository: str, kind: str, selector: str) -> None:
        """Delete a manifest or tag (``manifests``) or a blob (``blobs``); registries may refuse."""
        what = f"cannot delete {self.host}/{repository}:{selector}"
        with self.exchange("DELETE", f"{repository}/{kind}/{selector}", what, repository, push=True, delete=True):
            pass

    def referrers(self, repository: str, digest: Digest, artifact_type: str = "") -> list[Descriptor]:
        """What says that it belongs to a manifest: by the referrers API, or by the tag that stands in for it."""
        what = f"cannot list what refers to {digest}"
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        try:
            with self.exchange("GET", f"{repository}/referrers/{digest}{query}", what, repository) as answer:
                raw = answer.read(document.SIZE_MAX, "the list of referrers")
        except NotFound:
            try:
                raw = self.manifest(repository, f"{digest.algorithm}-{digest.encoded}"[:128])[1]
            except NotFound:
                return []
        index = parse_manifest(raw, OCI_INDEX)
        if not isinstance(index, Index):
            raise Invalid("the list of referrers is not an index")
        return [entry for entry in index.manifests if artifact_type in ("", entry.artifact_type)]

    # blobs

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the repository has a blob."""
        try:
            with self.exchange("HEAD", f"{repository}/blobs/{digest}", "", repository, push=True):
                return True
        except NotFound:
            return False

    def open_blob(self, repository: str, digest: Digest, first: int = 0, last: int = -1) -> Response:
        """A blob's bytes from ``first`` to ``last`` (-1: the end), not verified: the caller knows the digest.

        The answer is 206 for a part; a registry that cannot do that answers 200 with everything.
        """
        headers = {}
        if first or last >= 0:
            headers["Range"] = f"bytes={first}-{last if last >= 0 else ''}"
        path = f"{repository}/blobs/{digest}"
        return self.exchange("GET", path, f"cannot download {digest}", repository, headers=headers)

    # the one way out

    def exchange(
        self,
        method: str,
        path: str,
        what: str,
        repository: str,
        *,
        push: bool = False,
        delete: bool = False,
        headers: Mapping[str, str] = EMPTY,
        body: Body = None,
        mount_from: str = "",
    ) -> Response:
        """A successful answer (2xx) to a request for ``path``: below /v2/, or a whole address.

        ``what`` begins the message of the error otherwise. Requests whose body can be sent only once are not
        repeated; the caller must do that.
        """
        actions = "pull,push" if push else "pull"
        scopes: tuple[str, ...] = ()
        if repository:
            scopes = (f"repository:{repository}:{'delete' if delete else actions}",)
        if mount_from:
            scopes = (*scopes, f"repository:{mount_from}:pull")
        repeatable = body is None or isinstance(body, bytes)
        for attempt in range(self.patience.attempts if repeatable else 1):
            try:
                answer = self._authorized(method, path, scopes, headers, body, what)
            except Unreachable:
                raise
            except Unavailable:
                if attempt + 1 >= self.patience.attempts or not repeatable:
                    raise
                self.patience.wait(attempt)
                continue
            if 200 <= answer.status < 300:
                return answer
            with answer:
                raw = b"" if method == "HEAD" else _excuse(answer)
            if answer.status not in distribution.RETRIED or not repeatable or attempt + 1 >= self.patience.attempts:
                raise distribution.failure(answer.status, raw, what or f"cannot {method} {path}")
            trace.event("registry.retry", host=self.host, status=answer.status, attempt=attempt)
            self.patience.wait(attempt, answer.header("Retry-After"))
        raise AssertionError("the last attempt returns or raises")

    def _authorized(
        self, method: str, path: str, scopes: tuple[str, ...], headers: Mapping[str, str], body: Body, what: str
    ) -> Response:
        """One attempt: with what authorization is known, and once more after a challenge."""
        url = path if "://" in path else f"{self.base()}/v2/{path}"
        # An upload's address may lie on another host, which has no business with our credentials.
        ours = urlsplit(url).netloc == urlsplit(self.base()).netloc
        authorization = self._authorizer.header(scopes) if ours else ""
        answer = self._follow(method, url, authorization, headers, body)
        challenge = answer.header("WWW-Authenticate") if answer.status == 401 and ours else ""
        if not challenge:
            return answer
        with answer:
            _excuse(answer)
        if body is not None and not isinstance(body, bytes):
            raise Unavailable(f"{what}: the registry asked for credentials in the middle")
        try:
            authorization = self._authorizer.learn(
                challenge, scopes, authorization, plain=self.base().startswith("http:")
            )
        except Denied as error:
            raise Denied(f"{what or 'cannot ask'}: {error}", hint=error.hint) from error
        return self._follow(method, url, authorization, headers, body)

    def _follow(self, method: str, url: str, authorization: str, headers: Mapping[str, str], body: Body) -> Response:
        """Send, and go where a redirect points."""
        insecure = url.startswith("http:")
        sent = {"User-Agent": AGENT, **headers}
        if authorization:
            sent["Authorization"] = authorization
        for _ in range(_REDIRECTS_MAX + 1):
            answer = self._transport.request(method, url, sent, body, insecure=insecure)
            target = answer.header("Location") if answer.status in _REDIRECTS else ""
            if not target or method not in ("GET", "HEAD"):
                return answer
            with answer:
                _excuse(answer)
            there = join(url, target)
            if urlsplit(there).netloc != urlsplit(url).netloc:
                sent.pop("Authorization", None)
            if there.startswith("http:") and url.startswith("https:"):
                raise Denied(f"{self.host} redirects from HTTPS to plain HTTP: {bare(there)}")
            url = there
        raise Unavailable(f"{self.host} redirects more than {_REDIRECTS_MAX} times, at last to {bare(url)}")

    def base(self) -> str:
        """The registry's address; the first call finds out whether it speaks TLS, where it need not."""
        if not self._base:
            at = urlsplit(f"//{_HOSTS.get(self.host, self.host)}")
            host, port = at.hostname or "", at.port or 443
            scheme = "https"
            if self._transport.trust(host, port).plain and not self._transport.speaks_tls(host, port):
                scheme = "http"
            self._base = f"{scheme}://{quote(at.netloc, safe='[]:.-')}"
        return self._base

    def _same_host(self, url: str, target: str) -> str:
        """A link's target, which must stay on the registry."""
        there = join(url, target)
        if urlsplit(there).netloc != urlsplit(url).netloc:
            raise Invalid(f"{self.host} links to another host: {bare(there)}")
        return there


def _excuse(answer: Response) -> bytes:
    """The body of a refusal, as far as it is of use; what cannot be read explains nothing."""
    try:
        return answer.read(distribution.ERROR_BODY_MAX, "the registry's error")
    except (Invalid, Unavailable):
        return b""
