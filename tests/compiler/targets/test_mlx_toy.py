"""MLX over a family that it does not know: traced entries, convolutions over slots, states from call to call."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.slots import HALF, Scheme
from compiler.targets.mlx.options import MlxOptions
from tests.compiler.conftest import Jobs, assert_toy_equals_reference


@pytest.mark.parametrize(
    "scheme", [Scheme(4, 32), Scheme(8, 32), Scheme(8, 0), Scheme(4, 32, symmetric=False), HALF], ids=str
)
def test_components_with_a_state_equal_the_reference(toy: Path, jobs: Jobs, tmp_path: Path, scheme: Scheme) -> None:
    """As shipped MLX's CPU kernels sum 768 products in float16, which Metal sums in float32."""
    job = jobs(toy, MlxOptions(), scheme)
    assert_toy_equals_reference(job, "mlx", tmp_path / "mlx", exact=1e-5, shipped=2e-2)


@pytest.mark.parametrize("slot", ["cell.recurrent", "head.last"])
def test_a_flipped_nibble_is_caught(toy: Path, jobs: Jobs, tmp_path: Path, slot: str) -> None:
    job = jobs(toy, MlxOptions(), Scheme(4, 32))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_toy_equals_reference(job, "mlx", tmp_path / "mlx", exact=1e-5, shipped=2e-2, flip=slot)
