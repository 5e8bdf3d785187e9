"""What several tests of the engine need."""

from __future__ import annotations

import pytest

from tests import host


@pytest.fixture
def criu() -> None:
    """criu works with this kernel."""
    lacking = host.lacks_criu()
    if lacking:
        pytest.skip(lacking)
