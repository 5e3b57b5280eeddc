"""The products of the calibrated methods beside float64, with oneDNN and where torch has none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.matmul import add_products, add_squares, linear, mirror

TOLERANCE = 1e-5  # of the largest value; float32 sums of some hundred terms


@pytest.fixture(params=[True, False], ids=["onednn", "without"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether found agrees with expected, which is float64."""
    limit = TOLERANCE * float(expected.abs().max()) if expected.numel() else 0.0
    return found.shape == expected.shape and bool(((found.double() - expected).abs() <= limit).all())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_linear_of_strided_matrices_and_batches(batch: tuple[int, ...]) -> None:
    x, weight = random(*batch, 70, 33), random(33, 130, seed=1).t()
    assert close(linear(x, weight), x.double() @ weight.double().t())
    assert close(
        linear(x.transpose(-1, -2), random(90, 70)), x.double().transpose(-1, -2) @ random(90, 70).double().t()
    )


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5))
def test_linear_of_few_or_no_rows(rows: int, columns: int, inner: int) -> None:
    x, weight = random(rows, inner), random(columns, inner, seed=1)
    assert close(linear(x, weight), x.double() @ weight.double().t())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("columns", [1, 511, 512, 513, 1300])
def test_sums_of_products_over_several_calls(columns: int) -> None:
    squares, products = torch.zeros(columns, columns), torch.zeros(columns, columns)
    parts = [(random(length, columns, seed=length), random(length, columns, seed=100 + length)) for length in (1, 60)]
    for x, other in parts:
        add_squares(squares, x)
        add_products(products, other, x)
    mirror(squares)
    assert close(squares, sum(x.double().t() @ x.double() for x, _ in parts))
    assert close(products, sum(other.double().t() @ x.double() for x, other in parts))
