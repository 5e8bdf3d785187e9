"""Names of images: what loses its last name stays without one, and what has a name is not nameless."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.engine import names
from mamushka.engine.catalogue import seconds
from mamushka.engine.images import Images
from mamushka.engine.pruning import labelled, moment, split
from mamushka.errors import Conflict, Invalid
from mamushka.image.store import ImageStore
from mamushka.spec.digest import sha256
from mamushka.spec.image import OCI_MANIFEST, Descriptor


def image(number: int) -> Descriptor:
    content = b"%d" % number
    return Descriptor(OCI_MANIFEST, sha256(content), len(content))


def seen(store: ImageStore) -> set[tuple[str, int]]:
    """Names, and which image each one has."""
    numbers = {image(number).digest: number for number in range(4)}
    return {(entry.name, numbers[entry.descriptor.digest]) for entry in store.entries()}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path))


def test_a_name_that_moves_leaves_a_nameless_image(store: ImageStore) -> None:
    names.assign(store, {"docker.io/library/a:b": image(1)})
    names.assign(store, {"docker.io/library/a:b": image(2)})
    assert seen(store) == {("docker.io/library/a:b", 2), ("", 1)}
    names.assign(store, {"docker.io/library/a:old": image(1)})
    assert seen(store) == {("docker.io/library/a:b", 2), ("docker.io/library/a:old", 1)}


def test_a_name_that_moves_leaves_other_names(store: ImageStore) -> None:
    names.assign(store, {"x:1": image(1), "x:2": image(1)})
    names.assign(store, {"x:1": image(2)})
    assert seen(store) == {("x:1", 2), ("x:2", 1)}


def test_dropped_with_its_last_name_unless_kept(store: ImageStore) -> None:
    names.assign(store, {"x:1": image(1), "x:2": image(2)}, nameless=[image(3)])
    names.drop(store, ["x:1"])
    names.drop(store, ["x:2"], keep=[image(2)])
    assert seen(store) == {("", 2), ("", 3)}
    names.forget(store, {image(2).digest, image(3).digest})
    assert seen(store) == set()


_steps = st.lists(
    st.tuples(st.sampled_from(["assign", "drop", "forget"]), st.integers(0, 3), st.integers(0, 3)), max_size=12
)


@settings(max_examples=30)
@given(_steps)
def test_no_image_is_both_named_and_nameless(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    store = ImageStore(str(tmp_path_factory.mktemp("s")))
    for what, name, number in steps:
        if what == "assign":
            names.assign(store, {f"x:{name}": image(number)})
        elif what == "drop":
            names.drop(store, [f"x:{name}"], keep=[image(number)])
        else:
            names.forget(store, {image(number).digest})
        entries = store.entries()
        named = {entry.descriptor.digest for entry in entries if entry.name}
        nameless = [entry.descriptor.digest for entry in entries if not entry.name]
        assert not named & set(nameless)
        assert len(nameless) == len(set(nameless))


def test_host_is_always_there_and_never_changes(tmp_path: Path) -> None:
    images = Images(str(tmp_path), environment={})
    assert images.get("host").names == ("host",)
    assert [step.status for step in images.pull("host")] == ["Status: Image is up to date for host"]
    assert images.history("host") == []
    for refused in (
        lambda: images.tag("host", "x"),
        lambda: images.tag("x", "host"),
        lambda: images.remove("host"),
        lambda: list(images.push("host")),
        lambda: list(images.save(["host"])),
    ):
        with pytest.raises(Conflict):
            refused()
    assert list(tmp_path.iterdir()) == []


@given(
    st.datetimes(min_value=datetime.datetime(1, 1, 3), max_value=datetime.datetime(9999, 12, 28)),
    st.integers(-14 * 60, 14 * 60),
)
def test_times_are_those_of_datetime(moment: datetime.datetime, offset: int) -> None:
    zoned = moment.replace(tzinfo=datetime.timezone(datetime.timedelta(minutes=offset)))
    assert seconds(zoned.isoformat()) == pytest.approx(zoned.timestamp(), abs=1e-3)


@given(st.text(max_size=40))
def test_any_other_text_is_no_time(text: str) -> None:
    assert isinstance(seconds(text), float)


def test_nanoseconds_and_utc() -> None:
    assert seconds("1970-01-01T00:00:01.500000000Z") == 1.5
    assert seconds("0001-01-01T00:00:00Z") < 0
    assert seconds("") == seconds("yesterday") == seconds("2024-01-01T00:00:00") == 0.0


def test_labels() -> None:
    assert labelled({"a": "b"}, "a") and labelled({"a": "b"}, "a=b")
    assert not labelled({"a": "b"}, "a=c") and not labelled({}, "a")


def test_moments_of_filters() -> None:
    assert moment("12.5") == 12.5 and moment("1970-01-02T00:00:00Z") == 86400
    assert abs(time.time() - 5400 - moment("1h30m")) < 60
    for text in ("", "h", "1h3", "1.2.3s", "a-b", "yesterday", "1970-01-99", "\u0661h"):
        with pytest.raises(Invalid):
            moment(text)


def test_what_prune_chooses_by() -> None:
    fits, rest = split({"until": ["100"], "label!": ["keep"], "label": ["x"]})
    assert rest == {"label": ["x"]}
    assert fits(99.0, {}) and not fits(100.0, {}) and not fits(1.0, {"keep": "1"})
