"""TVM over a family that it does not know: states that come and go, convolutions over slots, ops of PyTorch's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.slots import HALF, Scheme
from compiler.targets.tvm.options import TvmOptions
from tests.compiler.conftest import Jobs, assert_toy_equals_reference

HERE = TvmOptions(triples=())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "scheme", [Scheme(4, 32), pytest.param(Scheme(8, 32), marks=pytest.mark.nightly), HALF], ids=str
)
def test_components_with_a_state_equal_the_reference(toy: Path, jobs: Jobs, tmp_path: Path, scheme: Scheme) -> None:
    """As shipped, activations of matrix products are rounded to int8."""
    assert_toy_equals_reference(jobs(toy, HERE, scheme), "tvm", tmp_path / "tvm", exact=1e-5, shipped=2e-2)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("slot", [pytest.param("cell.recurrent", marks=pytest.mark.nightly), "head.last"])
def test_a_flipped_nibble_is_caught(toy: Path, jobs: Jobs, tmp_path: Path, slot: str) -> None:
    job = jobs(toy, HERE, Scheme(4, 32))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_toy_equals_reference(job, "tvm", tmp_path / "tvm", exact=1e-5, shipped=2e-2, flip=slot)
