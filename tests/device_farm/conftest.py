"""What the tests of device_farm share: the child to run, and files to map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device_farm.sandbox_acceptance import CHILD, make_weights


@pytest.fixture
def child() -> Callable[..., list[str]]:
    """The command of a child that behaves in the given way (see child.py)."""
    return lambda *arguments: [*CHILD, *map(str, arguments)]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 300 MB on disk."""
    return make_weights(tmp_path_factory.mktemp("weights"))
