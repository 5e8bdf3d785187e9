"""Images as the engine offers them: what travels (image/) and what is mountable (storage/) brought together."""

from __future__ import annotations

from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Users = Callable[[str], Sequence[str]]
    Tell = Callable[[str, str, Mapping[str, str]], None]


@value
class ImageSummary:
    """One image present here."""

    id: str  # digest of the config, "sha256:…"
    digest: str  # digest of the manifest or index it was pulled by
    names: tuple[str, ...]  # familiar names with tags: "alpine:latest", "localhost:5000/x:1"
    digests: tuple[str, ...]  # "alpine@sha256:…"
    created: float
    size: int  # bytes of all unpacked layers
    platform: str
    layers: tuple[str, ...]  # diff_ids
    labels: Mapping[str, str] = EMPTY
    config: Mapping[str, object] = EMPTY  # the whole config document as parsed
    parent: str = ""


@value
class Progress:
    """Something moved. ``layer`` is a short id, empty for lines about the whole."""

    status: str  # Docker's words: Pulling fs layer, Downloading, Extracting, Pull complete, Already exists, …
    layer: str = ""
    current: int = 0
    total: int = 0


def _nobody(_image_id: str) -> Sequence[str]:
    return ()


def _silence(_action: str, _id: str, _attributes: Mapping[str, str]) -> None:
    pass


class Images:
    """All that is done with images on this host.

    ``users`` answers which workloads use an image id; ``tell`` hears of what happened: an action (pull push
    tag untag delete load save), the image's id, and attributes such as ``name``.
    """

    def __init__(self, data_root: str, *, users: Users = _nobody, tell: Tell = _silence) -> None:
        raise NotImplementedError

    def pull(self, name: str, *, platform: str = "", all_tags: bool = False) -> Iterator[Progress]:
        """Fetch an image with its layers, unpacked and ready to run; consume the iterator to do it."""
        raise NotImplementedError

    def push(self, name: str, *, all_tags: bool = False) -> Iterator[Progress]:
        """Upload; blobs that the registry has are mounted or skipped."""
        raise NotImplementedError

    def get(self, name: str, *, platform: str = "") -> ImageSummary:
        """By name, name@digest, id or unique prefix of an id. NotFound otherwise. ``host`` is always there."""
        raise NotImplementedError

    def images(self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None) -> list[ImageSummary]:
        """Newest first."""
        raise NotImplementedError

    def tag(self, source: str, target: str) -> None:
        """Give an image one more name."""
        raise NotImplementedError

    def remove(self, name: str, *, force: bool = False, prune: bool = True) -> list[tuple[str, str]]:
        """("untagged" | "deleted", what) in order. Conflict while a workload uses it, unless forced."""
        raise NotImplementedError

    def history(self, name: str) -> list[Mapping[str, object]]:
        """Newest first: id, created, created_by, size, comment, tags."""
        raise NotImplementedError

    def save(self, names: Sequence[str], *, format: str = "docker") -> Iterator[bytes]:
        """A tar stream: docker (docker-archive, also readable as OCI layout) or oci."""
        raise NotImplementedError

    def save_directory(self, names: Sequence[str], path: str) -> None:
        """An OCI layout in a directory."""
        raise NotImplementedError

    def load(self, archive: Iterable[bytes]) -> list[str]:
        """Names (or ids) of the images in a docker archive or OCI layout tar, gzip or zstd allowed."""
        raise NotImplementedError

    def load_directory(self, path: str) -> list[str]:
        """The same from an OCI layout directory."""
        raise NotImplementedError

    def prune(
        self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None
    ) -> tuple[list[tuple[str, str]], int]:
        """Remove dangling (or all unused) images: what was removed, and the bytes freed."""
        raise NotImplementedError
