import copy
import pickle

import pytest

from mamushka.values import asdict, replace, value


@value
class Point:
    """A place."""

    x: int
    y: int = 0


def test_a_value_compares_hashes_prints_and_copies_by_its_fields() -> None:
    assert Point(1) == Point(x=1, y=0) != Point(1, 2)
    assert len({Point(1), Point(1, 0)}) == 1
    assert repr(Point(1, 2)) == "Point(x=1, y=2)"
    assert replace(Point(1), y=5) == Point(1, 5)
    assert asdict(Point(1)) == {"x": 1, "y": 0}
    assert copy.deepcopy(Point(1)) == pickle.loads(pickle.dumps(Point(1))) == Point(1)


def test_a_value_is_frozen_and_has_no_other_fields() -> None:
    with pytest.raises(AttributeError, match="is a value"):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        object.__setattr__(Point(1), "z", 3)


@pytest.mark.parametrize("arguments", [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_missing_twice_given_and_unknown_fields_are_errors(
    arguments: tuple[tuple[int, ...], dict[str, int]],
) -> None:
    args, kwargs = arguments
    with pytest.raises(TypeError):
        Point(*args, **kwargs)


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError, match="mutable default"):

        @value
        class Bad:
            items: list[int] = []
