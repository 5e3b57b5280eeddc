"""Finding the first operation that differs, and counting memory from the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime_tests.mil.bisect import compare, plain_name, relative_rms
from runtime_tests.mil.memory import account
from runtime_tests.mil.package import Package
from runtime_tests.mil.program import Function
from tests.runtime_tests.mil.conftest import save

X = np.random.default_rng(1).uniform(-1, 1, (2, 8)).astype(np.float32)
WEIGHT = np.random.default_rng(0).uniform(-1, 1, (5, 8)).astype(np.float32)


def reference() -> dict[str, torch.Tensor]:
    hidden = torch.from_numpy(X @ WEIGHT.T)
    return {"hidden": hidden, "active": hidden.relu(), "y": hidden.relu() + 1}


def test_agreement_is_counted(small: Path) -> None:
    found = compare(Function(Package(small)), {"x": X}, reference(), 1e-5)
    assert (found.compared, found.divergence) == (3, None)


def test_the_first_operation_that_differs_is_named(small_half: Path) -> None:
    wrong = reference()
    wrong["active"] = torch.nn.functional.gelu(wrong["hidden"])
    wrong["y"] = wrong["active"] + 1
    found = compare(Function(Package(small_half), exact=True), {"x": X}, wrong, 1e-3).divergence
    assert found is not None
    assert (found.operation, plain_name(found.name)) == ("relu", "active")
    assert found.after is not None and plain_name(found.after) == "hidden"
    assert "operation relu" in str(found)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("linear_3_cast_fp16", "linear_3"),
        ("float32_rms_norm_to_fp16", "rms_norm"),
        ("gelu", "gelu"),
        ("arange_cast_int32_to_uint16", "arange"),
    ],
)
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_a_value_that_is_not_finite_differs_infinitely() -> None:
    assert relative_rms(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    assert relative_rms(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])) == pytest.approx(2**0.5)


def test_memory_is_counted_from_the_program(small: Path) -> None:
    """hidden (40 bytes) and active (40) live together, then active and y: 80 at the worst moment."""
    memory = account(Package(small), "main", {"x": torch.from_numpy(X)})
    assert memory.activations == 80
    assert memory.interface == X.nbytes + 2 * 5 * 4
    assert memory.states == 0
    assert memory.band[0] <= memory.dirty <= memory.band[1]
    assert memory.weights == (small / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size


def test_memory_of_weights_that_are_decoded_when_used(tmp_path: Path) -> None:
    """A float16 matrix of more than a page, as a tied embedding at 16 bits is: the last row gathered is multiplied."""
    table = np.random.default_rng(0).uniform(-1, 1, (200, 40)).astype(np.float32)

    def tied(mb: Any) -> Any:
        import coremltools as ct

        ids = [mb.TensorSpec(shape=(1, 3), dtype=ct.converters.mil.mil.types.int32)]

        @mb.program(input_specs=ids, opset_version=ct.target.iOS18)
        def program(x: Any) -> Any:
            rows = mb.gather(x=table, indices=x, axis=0)
            last = mb.slice_by_index(x=rows, begin=[0, 2, 0], end=[1, 3, 40])
            return mb.linear(x=last, weight=table, bias=table[:, 0], name="y")

        return program

    path = save(tmp_path / "tied.mlpackage", tied, half=True)
    memory = account(Package(path), "main", {"x": torch.zeros(1, 3)})
    assert memory.largest_weight == table.size * 2
    assert memory.activations >= (3 * 40 + 40) * 2


def test_a_scale_decides_a_shape_where_memory_is_counted(tmp_path: Path) -> None:
    def resizing(mb: Any) -> Any:
        import coremltools as ct

        @mb.program(input_specs=[mb.TensorSpec(shape=(1, 2, 6, 4))], opset_version=ct.target.iOS18)
        def program(x: Any) -> Any:
            return mb.upsample_bilinear(x=x, scale_factor_height=0.5, scale_factor_width=2.0, align_corners=True)

        return program

    for half in (False, True):
        path = save(tmp_path / f"{half}.mlpackage", resizing, half=half)
        memory = account(Package(path), "main", {"x": torch.zeros(1, 2, 6, 4)})
        assert memory.interface == 4 * 2 * (6 * 4 + 3 * 8)
