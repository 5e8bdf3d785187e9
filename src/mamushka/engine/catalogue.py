"""What images are here: from the store's names to whole images, and from a user's word to one of them.

A name points to a manifest or to an index of several platforms, of which usually one is here. An image is
present when its manifest and config are in the store and all its layers are unpacked; its id is the config's
digest. Nothing is cached: the documents are small and the files are the truth.
"""

from __future__ import annotations

from mamushka.engine.summary import ImageSummary
from mamushka.errors import Conflict, Invalid, NotFound, Unsupported
from mamushka.spec import platform as platforms
from mamushka.spec import reference as references
from mamushka.spec.digest import Digest, is_hex
from mamushka.spec.image import Index, parse_config
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mamushka.image.store import Entry, ImageStore
    from mamushka.spec.image import Descriptor, ImageConfig, Manifest
    from mamushka.spec.platform import Platform
    from mamushka.spec.reference import Reference
    from mamushka.storage.layers import LayerStore

# An index may point to indexes; deeper than this nobody goes, and a circle cannot be made of digests.
_DEPTH_MAX = 3


@value
class Present:
    """An image that is here: what names it (``top``), the manifest of its platform, and its config."""

    top: Descriptor
    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig

    @property
    def id(self) -> Digest:
        """The config's digest."""
        return self.manifest.config.digest


class Catalogue:
    """Read-only views of a store and its unpacked layers."""

    def __init__(self, store: ImageStore, layers: LayerStore) -> None:
        self.store, self.layers = store, layers

    def manifests(self, top: Descriptor, depth: int = 0) -> Iterator[tuple[Descriptor, Manifest]]:
        """Every manifest below a descriptor that is in the store."""
        try:
            found = self.store.manifest(top)
        except (NotFound, Invalid, Unsupported):
            return
        if not isinstance(found, Index):
            yield top, found
        elif depth < _DEPTH_MAX:
            for entry in found.manifests:
                if self.store.has(entry.digest, entry.size):
                    yield from self.manifests(entry, depth + 1)

    def present(self, top: Descriptor) -> Iterator[Present]:
        """The whole images below a descriptor."""
        for descriptor, manifest in self.manifests(top):
            try:
                config = parse_config(self.store.read(manifest.config.digest))
            except (NotFound, Invalid):
                continue
            if config.diff_ids and all(self.layers.has(diff_id) for diff_id in config.diff_ids):
                yield Present(top, descriptor, manifest, config)

    def choose(self, top: Descriptor, platform: str, name: str) -> Present:
        """The image for a platform, or for this machine; where that is missing but another is here, that one."""
        candidates = list(self.present(top))
        wanted = [platforms.parse(platform)] if platform else list(platforms.compatible(platforms.host()))
        for exact in wanted:
            for candidate in candidates:
                if platforms.same(_platform(candidate), exact):
                    return candidate
        if candidates and not platform:
            return candidates[0]
        raise absent(name, platform, [str(_platform(candidate)) for candidate in candidates])

    def find(self, name: str, platform: str = "") -> Present:
        """By name, name@digest, id or unique prefix of an id. NotFound otherwise, Conflict for several."""
        entries = self.store.entries()
        top = _named(entries, name)
        if top is not None:
            return self.choose(top, platform, name)
        prefix = name.removeprefix("sha256:")
        if not prefix or len(prefix) > 64 or not is_hex(prefix):
            raise absent(name, platform, [])
        found = {present.id: present for present in self.all(entries) if present.id.encoded.startswith(prefix)}
        if len(found) > 1:
            raise Conflict(f"{name} begins the ids of {len(found)} images", hint="give more digits")
        for present in found.values():
            return present
        raise absent(name, platform, [])

    def all(self, entries: tuple[Entry, ...]) -> Iterator[Present]:
        """Every image here, once for each manifest or index that leads to it."""
        for top in {entry.descriptor.digest: entry.descriptor for entry in entries}.values():
            yield from self.present(top)

    def summary(self, present: Present, entries: tuple[Entry, ...], tops: set[Digest]) -> ImageSummary:
        """All that is told about an image; ``tops`` are the digests by which its names are found."""
        names = [references.parse(entry.name) for entry in entries if entry.name and entry.descriptor.digest in tops]
        config = present.config
        return ImageSummary(
            id=str(present.id),
            digest=str(present.top.digest),
            names=tuple(sorted(name.familiar for name in names if name.tag)),
            digests=tuple(sorted(name.familiar for name in names if name.digest)),
            created=seconds(config.created),
            size=sum(self.layers.get(diff_id).size for diff_id in config.diff_ids),
            platform=str(_platform(present)),
            layers=tuple(map(str, config.diff_ids)),
            labels=config.config.labels,
            config=config.document,
        )

    def summaries(self) -> list[ImageSummary]:
        """Every image here, once for each id, newest first."""
        entries = self.store.entries()
        tops: dict[Digest, set[Digest]] = {}
        found: dict[Digest, Present] = {}
        for present in self.all(entries):
            tops.setdefault(present.id, set()).add(present.top.digest)
            found.setdefault(present.id, present)
        summaries = [self.summary(present, entries, tops[id]) for id, present in found.items()]
        return sorted(summaries, key=lambda summary: summary.created, reverse=True)

    def reachable(self) -> tuple[set[Digest], set[Digest]]:
        """Blobs and diff_ids that a name, or a nameless image, leads to."""
        blobs: set[Digest] = set()
        diff_ids: set[Digest] = set()
        for entry in self.store.entries():
            blobs.add(entry.descriptor.digest)
            self._indexes(entry.descriptor, blobs)
            for descriptor, manifest in self.manifests(entry.descriptor):
                blobs |= {descriptor.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)}
                try:
                    diff_ids.update(parse_config(self.store.read(manifest.config.digest)).diff_ids)
                except (NotFound, Invalid):
                    continue
        return blobs, diff_ids

    def _indexes(self, top: Descriptor, blobs: set[Digest], depth: int = 0) -> None:
        """The documents between a name and its manifests."""
        if not top.is_index or depth > _DEPTH_MAX or not self.store.has(top.digest):
            return
        blobs.add(top.digest)
        found = self.store.manifest(top)
        for entry in found.manifests if isinstance(found, Index) else ():
            self._indexes(entry, blobs, depth + 1)


def absent(name: str, platform: str, offered: list[str]) -> NotFound:
    """The error for an image that is not here."""
    if platform and offered:
        return NotFound(
            f"image {name} is here for {', '.join(offered)}, not for {platform}",
            hint=f"pull it with: mamushka pull --platform {platform} {name}",
        )
    return NotFound(f"No such image: {name}", hint=f"pull it with: mamushka pull {name}")


def _platform(present: Present) -> Platform:
    """What the index said it is for, or what the config says."""
    return present.descriptor.platform or present.config.platform


def _named(entries: tuple[Entry, ...], name: str) -> Descriptor | None:
    """What a name as users write it points to; a digest counts more than a tag beside it."""
    try:
        reference = references.parse(name)
    except Invalid:
        return None
    wanted = str(stored(reference))
    for entry in entries:
        if entry.name == wanted:
            return entry.descriptor
    return None


def stored(reference: Reference) -> Reference:
    """As the store names it: a digest counts more than the tag beside it, and no tag is ``latest``."""
    return reference.with_digest(reference.digest) if reference.digest else reference.with_default_tag()


def seconds(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 time, 0 for what is none; ``datetime`` costs too much at start."""
    date, _, rest = stamp.partition("T")
    clock, offset = _split_zone(rest)
    whole, _, fraction = clock.partition(".")
    numbers = [*date.split("-"), *whole.split(":"), *offset[1:].split(":")]
    if len(numbers) != 8 or not all(number.isascii() and number.isdecimal() and len(number) < 5 for number in numbers):
        return 0.0
    year, month, day, hour, minute, second, off_hour, off_minute = map(int, numbers)
    shifted = year - (month < 3)  # years that begin in March put the leap day last
    days = 365 * shifted + shifted // 4 - shifted // 100 + shifted // 400 + (153 * ((month + 9) % 12) + 2) // 5 + day
    offset_seconds = (off_hour * 60 + off_minute) * 60 * (-1 if offset[0] == "-" else 1)
    moment = (days - 719469) * 86400 + hour * 3600 + minute * 60 + second - offset_seconds
    return moment + (float(f"0.{fraction}") if fraction.isascii() and fraction.isdecimal() else 0.0)


def _split_zone(clock: str) -> tuple[str, str]:
    if clock.endswith(("Z", "z")):
        return clock[:-1], "+00:00"
    if len(clock) > 6 and clock[-6] in "+-":
        return clock[:-6], clock[-6:]
    return clock, "+"
