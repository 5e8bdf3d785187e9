"""The arithmetic of capabilities, and what of it the kernel's structs hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.container.privileges import DEFAULT_CAPABILITIES, capability_set
from mamushka.errors import Invalid
from mamushka.linux import capabilities

sets = st.integers(0, 2**64 - 1)


@given(sets, sets, sets)
def test_the_three_sets_survive_the_kernels_layout(effective: int, permitted: int, inheritable: int) -> None:
    packed = capabilities.pack(effective, permitted, inheritable)
    assert capabilities.unpack(packed) == (effective, permitted, inheritable)


@given(sets)
def test_a_set_is_its_members(bits: int) -> None:
    assert sum(1 << number for number in capabilities.members(bits)) == bits


def test_the_arithmetic_of_capabilities() -> None:
    assert set(capability_set()) == set(DEFAULT_CAPABILITIES)
    assert capability_set(drop=["all"]) == ()
    assert capability_set(add=["kill", "CAP_NET_ADMIN"], drop=["ALL"]) == ("CAP_KILL", "CAP_NET_ADMIN")
    assert set(capability_set(add=["NET_ADMIN"], drop=["chown"])) == {*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN"} - {
        "CAP_CHOWN"
    }
    assert "CAP_SYS_ADMIN" not in capability_set(add=["ALL"], drop=["SYS_ADMIN"])
    assert len(capability_set(add=["ALL"], drop=["SYS_ADMIN"])) == len(capabilities.NAMES) - 1
    with pytest.raises(Invalid, match="'FLY'"):
        capability_set(add=["FLY"])
