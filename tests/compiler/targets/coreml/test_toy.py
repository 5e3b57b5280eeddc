"""Core ML over a family that it does not know: a package for each component, states, convolutions over slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compiler.slots import HALF, Scheme
from compiler.targets.coreml.options import CoreMLOptions
from tests.compiler.conftest import Jobs, assert_toy_equals_reference


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("scheme", "options"),
    [(Scheme(4, 32), {}), (Scheme(8, 32), {"cache": "explicit"}), (HALF, {})],
    ids=["INT4", "INT8 explicit", "half"],
)
def test_components_with_a_state_equal_the_reference(
    toy: Path, jobs: Jobs, tmp_path: Path, scheme: Scheme, options: dict[str, Any]
) -> None:
    job = jobs(toy, CoreMLOptions(**options), scheme)
    assert_toy_equals_reference(job, "coreml", tmp_path / "coreml", exact=1e-4, shipped=5e-3)


@pytest.mark.usefixtures("here")
def test_a_flipped_nibble_is_caught(toy: Path, jobs: Jobs, tmp_path: Path) -> None:
    job = jobs(toy, CoreMLOptions(), Scheme(4, 32))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_toy_equals_reference(job, "coreml", tmp_path / "coreml", exact=1e-4, shipped=5e-3, flip="head.last")
