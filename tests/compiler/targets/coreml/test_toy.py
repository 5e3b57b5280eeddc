"""Core ML over a family that it does not know: a package for each component, states, convolutions over slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compiler.slots import HALF, Scheme
from compiler.targets.coreml.options import CoreMLOptions
from tests.compiler.conftest import Jobs, assert_toy_equals_reference


@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(8, 32), HALF], ids=str)
@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-4), (False, 5e-3)])
@pytest.mark.parametrize("options", [{}, {"cache": "explicit"}], ids=["state", "explicit"])
def test_components_with_a_state_equal_the_reference(
    toy: Path, jobs: Jobs, tmp_path: Path, scheme: Scheme, exact: bool, tolerance: float, options: dict[str, Any]
) -> None:
    job = jobs(toy, CoreMLOptions(**options), scheme)
    assert_toy_equals_reference(job, "coreml", tmp_path / "coreml", exact=exact, tolerance=tolerance)


@pytest.mark.parametrize("slot", ["cell.recurrent", "head.last"])
def test_a_flipped_nibble_is_caught(toy: Path, jobs: Jobs, tmp_path: Path, slot: str) -> None:
    job = jobs(toy, CoreMLOptions(), Scheme(4, 32))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_toy_equals_reference(job, "coreml", tmp_path / "coreml", exact=True, tolerance=1e-4, flip=slot)
