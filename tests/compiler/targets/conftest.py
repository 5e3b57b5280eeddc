"""What tests of several targets share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compiler.conftest import building_here


@pytest.fixture
def here() -> Iterator[None]:
    """No processes of their own for conversions, and of TVM's libraries none but the one that runs."""
    with building_here():
        yield
