"""Lists of images by filter, and how an image was made."""

from __future__ import annotations

from fnmatch import fnmatchcase

from mamushka.engine.catalogue import seconds
from mamushka.engine.pruning import labelled
from mamushka.errors import Invalid
from mamushka.spec import reference as references

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mamushka.engine.catalogue import Catalogue, Present
    from mamushka.engine.summary import ImageSummary

_TRUE, _FALSE = ("1", "t", "true", "True", "TRUE"), ("0", "f", "false", "False", "FALSE")


def matching(
    summaries: list[ImageSummary], filters: Mapping[str, Sequence[str]], get: Callable[[str], ImageSummary]
) -> list[ImageSummary]:
    """Those that pass every filter. Raises Invalid for an unknown one."""
    for key, wanted in filters.items():
        if key == "dangling":
            dangling = [_truth(text) for text in wanted]
            summaries = [image for image in summaries if (not image.names) in dangling]
        elif key == "label":
            summaries = [image for image in summaries if all(labelled(image.labels, text) for text in wanted)]
        elif key == "reference":
            summaries = [image for image in summaries if any(_fits(name, wanted) for name in image.names)]
        elif key == "id":
            summaries = [image for image in summaries if any(_begins(image.id, text) for text in wanted)]
        elif key in ("before", "since"):
            moments = [get(text).created for text in wanted]
            older = key == "before"
            summaries = [
                image
                for image in summaries
                if all((image.created < m) if older else (image.created > m) for m in moments)
            ]
        else:
            raise Invalid(
                f"invalid filter {key!r}", hint="filters are dangling, label, reference, id, before and since"
            )
    return summaries


def history(catalogue: Catalogue, present: Present, summary: ImageSummary) -> list[Mapping[str, object]]:
    """Newest first; a layer's size stands with the line of the history that made it."""
    config = present.config
    sizes = [catalogue.layers.get(diff_id).size for diff_id in config.diff_ids]
    lines: list[Mapping[str, object]] = []
    for line in config.history:
        size = sizes.pop(0) if sizes and not line.empty_layer else 0
        lines.append(_line(seconds(line.created), line.created_by, size, line.comment))
    lines += [_line(0.0, "", size, "") for size in sizes]  # layers that the history does not speak of
    if lines:
        lines[-1] = {**lines[-1], "id": summary.id, "tags": summary.names}
    return lines[::-1]


def _line(created: float, created_by: str, size: int, comment: str) -> Mapping[str, object]:
    return {
        "id": "<missing>",
        "created": created,
        "created_by": created_by,
        "size": size,
        "comment": comment,
        "tags": (),
    }


def _truth(text: str) -> bool:
    if text not in _TRUE + _FALSE:
        raise Invalid(f"invalid filter 'dangling={text}'", hint="write true or false")
    return text in _TRUE


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """A pattern is for the familiar name, with or without its tag; ``*`` stays within a component, as in paths."""
    reference = references.parse(name)
    names = (reference.familiar, reference.familiar_name)
    return any(fnmatchcase(n, pattern) and n.count("/") == pattern.count("/") for pattern in patterns for n in names)


def _begins(id: str, prefix: str) -> bool:
    return id.startswith(prefix) or id.removeprefix("sha256:").startswith(prefix)
