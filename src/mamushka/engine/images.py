"""Images as the engine offers them: what travels (image/) and what is mountable (storage/) brought together.

This file is the door; what a verb does stands in a file of its own, imported when it is used: catalogue,
pull, push, removal, archive, load.
"""

from __future__ import annotations

import os

from mamushka.engine.summary import ImageSummary, Progress
from mamushka.errors import Conflict, Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from mamushka.engine.catalogue import Catalogue
    from mamushka.engine.intake import Intake
    from mamushka.engine.untag import Removal
    from mamushka.image.remote import Remotes
    from mamushka.image.store import ImageStore
    from mamushka.linux.flock import Lock
    from mamushka.storage.layers import LayerStore

    Users = Callable[[str], Sequence[str]]
    Tell = Callable[[str, str, Mapping[str, str]], None]

__all__ = ["ImageSummary", "Images", "Progress"]

HOST = "host"


def _nobody(_image_id: str) -> Sequence[str]:
    return ()


def _silence(_action: str, _id: str, _attributes: Mapping[str, str]) -> None:
    pass


class Images:
    """All that is done with images on this host.

    ``users`` answers which workloads use an image id; ``tell`` hears of what happened: an action (pull push
    tag untag delete load save), the image's id, and attributes such as ``name``. ``environment`` stands for
    the process's: homes, proxies, DOCKER_CONFIG.
    """

    def __init__(
        self,
        data_root: str,
        *,
        users: Users = _nobody,
        tell: Tell = _silence,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._root = data_root
        self._users, self._tell = users, tell
        self._environment = os.environ if environment is None else environment
        self._catalogue_made: Catalogue | None = None
        self._remotes_made: Remotes | None = None

    @property
    def store(self) -> ImageStore:
        """The content store, an OCI image layout."""
        return self._catalogue.store

    @property
    def layers(self) -> LayerStore:
        """The unpacked layers, by diff_id."""
        return self._catalogue.layers

    def lease(self) -> Lock:
        """While it is held, no layer or blob is deleted: for who has chosen an image and not yet recorded its use."""
        return self.store.lease()

    # what is here

    def get(self, name: str, *, platform: str = "") -> ImageSummary:
        """By name, name@digest, id or unique prefix of an id. NotFound otherwise. ``host`` is always there."""
        if name == HOST:
            from mamushka.engine import host

            return host.image(platform)
        if name.startswith("rootfs:/"):
            from mamushka.engine import directory

            return directory.image(directory.path_of(name))
        catalogue = self._catalogue
        present = catalogue.find(name, platform)
        return catalogue.summary(present, catalogue.store.entries(), {present.top.digest})

    def images(self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None) -> list[ImageSummary]:
        """Newest first. ``all`` adds nothing: there are no intermediate images. Filters are Docker's: dangling,
        label, reference, before, since, id."""
        summaries = self._catalogue.summaries()
        if not filters:
            return summaries
        from mamushka.engine.listing import matching

        return matching(summaries, filters, self.get)

    def history(self, name: str) -> list[Mapping[str, object]]:
        """Newest first: id, created, created_by, size, comment, tags."""
        from mamushka.engine.listing import history

        if name == HOST:
            return []
        return history(self._catalogue, self._catalogue.find(name), self.get(name))

    # what travels

    def pull(self, name: str, *, platform: str = "", all_tags: bool = False) -> Iterator[Progress]:
        """Fetch an image with its layers, unpacked and ready to run; consume the iterator to do it."""
        if name == HOST:
            yield Progress("Status: Image is up to date for host")
            return
        from mamushka.engine.catalogue import stored
        from mamushka.engine.names import assign
        from mamushka.engine.pull import Pull
        from mamushka.spec import reference as references

        asked = references.parse(name)
        if all_tags and (asked.tag or asked.digest):
            raise Invalid(f"{name} has a tag or digest, and all tags are asked for", hint="give the name alone")
        source = self._remotes.source(asked)
        with self._intake(f"cannot pull {name}"):
            wanted = [asked.with_tag(tag) for tag in source.tags()] if all_tags else [stored(asked)]
            for reference in wanted:
                pull = Pull(self._catalogue, source, reference, platform)
                yield from pull.run()
                assert pull.top is not None
                assign(self.store, {str(reference): pull.top, str(reference.with_digest(pull.top.digest)): pull.top})
                self._tell("pull", str(pull.id), {"name": reference.familiar})
                yield Progress(
                    f"Status: Downloaded newer image for {reference.familiar}"
                    if pull.fetched
                    else f"Status: Image is up to date for {reference.familiar}"
                )

    def push(self, name: str, *, all_tags: bool = False) -> Iterator[Progress]:
        """Upload; blobs that the registry has are mounted or skipped."""
        _not_host(name, "pushed")
        from mamushka.engine.push import Push
        from mamushka.spec import reference as references

        asked = references.parse(name)
        if asked.digest:
            raise Invalid(f"cannot push {name}: a digest is not pushed to", hint="give it a tag")
        with self.lease():
            if all_tags:
                tags = [references.parse(entry.name) for entry in self.store.entries() if entry.name]
                wanted = [reference for reference in tags if reference.tag and reference.name == asked.name]
            else:
                wanted = [asked.with_default_tag()]
            for reference in wanted:
                present = self._catalogue.find(str(reference))
                yield from Push(self._catalogue, self._remotes.registry(reference.registry), reference).run(present.top)
                self._tell("push", str(present.id), {"name": reference.familiar})

    # names

    def tag(self, source: str, target: str) -> None:
        """Give an image one more name."""
        _not_host(source, "tagged")
        _not_host(target, "a tag of another image")
        from mamushka.engine.names import assign
        from mamushka.spec import reference as references

        reference = references.parse(target)
        if reference.digest:
            raise Invalid(f"cannot tag {source} as {target}: a digest belongs to its content", hint="leave it out")
        reference = reference.with_default_tag()
        with self.lease():
            present = self._catalogue.find(source)
            assign(self.store, {str(reference): present.top})
        self._tell("tag", str(present.id), {"name": reference.familiar})

    def remove(self, name: str, *, force: bool = False, prune: bool = True) -> list[tuple[str, str]]:
        """("untagged" | "deleted", what) in order. Conflict while a workload uses it, unless forced; then it
        keeps its layers, without a name, until the workload is gone and images are pruned."""
        _not_host(name, "removed")
        image = self.get(name)
        removed = self._removal.remove(name, force=force, prune=prune)
        self._tell_removed(removed, {image.id})
        return removed

    def prune(
        self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None
    ) -> tuple[list[tuple[str, str]], int]:
        """Remove dangling (or all unused) images: what was removed, and the bytes freed."""
        known = {image.id for image in self._catalogue.summaries()}
        removed, freed = self._removal.prune(all=all, filters=filters or {})
        self._tell_removed(removed, known)
        return removed, freed

    # archives

    def save(self, names: Sequence[str], *, format: str = "docker") -> Iterator[bytes]:
        """A tar stream: docker (docker-archive, also readable as OCI layout) or oci."""
        from mamushka.engine.archive import save

        for name in names:
            _not_host(name, "saved")
        if format not in ("docker", "oci"):
            raise Invalid(f"{format!r} is not an archive's format", hint="choose docker or oci")
        with self.lease():
            yield from save(self._catalogue, names, docker=format == "docker")
        for name in names:
            self._tell("save", self._catalogue.find(name).id, {"name": name})

    def save_directory(self, names: Sequence[str], path: str) -> None:
        """An OCI layout in a directory, added to what is there."""
        from mamushka.engine.archive import save_directory

        for name in names:
            _not_host(name, "saved")
        with self.lease():
            save_directory(self._catalogue, names, path)

    def load(self, archive: Iterable[bytes]) -> list[str]:
        """Names (or ids) of the images in a docker archive or OCI layout tar, gzip or zstd allowed."""
        from mamushka.engine.load import load

        with self._intake("cannot load the archive"):
            return self._loaded(load(self._catalogue, archive))

    def load_directory(self, path: str) -> list[str]:
        """The same from an OCI layout directory."""
        from mamushka.engine.load import load_directory

        with self._intake(f"cannot load {path}"):
            return self._loaded(load_directory(self._catalogue, path))

    def _loaded(self, names: list[str]) -> list[str]:
        for name in names:
            self._tell("load", self.get(name).id, {"name": name})
        return names

    def _tell_removed(self, removed: Iterable[tuple[str, str]], images: Collection[str]) -> None:
        id = next(iter(images)) if len(images) == 1 else ""
        for action, what in removed:
            if action == "untagged":
                self._tell("untag", id, {"name": what})
            elif what in images:
                self._tell("delete", what, {})

    def _intake(self, what: str) -> Intake:
        from mamushka.engine.intake import Intake

        return Intake(self.store, self._removal, what)

    # made when first used

    @property
    def _catalogue(self) -> Catalogue:
        if self._catalogue_made is None:
            from mamushka.engine.catalogue import Catalogue
            from mamushka.image.store import ImageStore
            from mamushka.storage.layers import LayerStore

            self._catalogue_made = Catalogue(ImageStore(f"{self._root}/images"), LayerStore(f"{self._root}/layers"))
        return self._catalogue_made

    @property
    def _removal(self) -> Removal:
        from mamushka.engine.untag import Removal

        return Removal(self._catalogue, self._users)

    @property
    def _remotes(self) -> Remotes:
        if self._remotes_made is None:
            from mamushka.image.remote import Remotes

            self._remotes_made = Remotes(self._environment)
        return self._remotes_made


def _not_host(name: str, done: str) -> None:
    if name == HOST:
        raise Conflict("the image host is this machine itself and cannot be " + done)
