"""MLX over a family that it does not know: traced entries, convolutions over slots, states from call to call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts import Progress
from compiler.models.base import Model
from compiler.slots import HALF, Scheme
from compiler.targets.mlx import generic
from compiler.targets.mlx.options import MlxOptions
from tests.compiler.conftest import Jobs, assert_toy_equals_reference, travelled


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


def test_traces_of_a_wide_model_are_made_elsewhere(
    toy: Path, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[str] = []

    def apart(function: Callable[..., Any], *arguments: Any, progress: Progress) -> Any:
        went.append(function.__name__)
        return travelled(function, *arguments, progress=progress)

    monkeypatch.setattr(generic, "apart", apart)
    monkeypatch.setattr(Model, "wide", True)
    job = jobs(toy, MlxOptions(), Scheme(4, 32))
    assert_toy_equals_reference(job, "mlx", tmp_path / "mlx", exact=1e-5, shipped=2e-2)
    assert went == ["_check", "_traced"]
