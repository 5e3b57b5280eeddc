"""Every method at both widths, every group, both symmetries: valid codes, and errors in the order that they promise."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.codes import SMALLEST_SCALE, Codes, dequantize
from compiler.quantize.interface import Inputs, Rounder
from compiler.quantize.methods import awq, gptq, hqq, method_options, mse, rtn
from compiler.slots import Scheme

SCHEMES = [
    Scheme(bits, group, symmetric)
    for bits, group, symmetric in itertools.product((4, 8), (16, 32, 64, 128, 256, 0), (True, False))
]


def correlated(columns: int = 256, tokens: int = 2048) -> torch.Tensor:
    """The Hessian of inputs that are correlated and of unequal size, as hidden states are."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator)[:, None]
    x = torch.randn(tokens, columns, generator=generator) @ mix
    return x.t() @ x / tokens


def weights(rows: int = 32, columns: int = 256) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) * 0.05


def made(name: str, inputs: Inputs, **options: Any) -> Rounder:
    module = {"rtn": rtn, "mse": mse, "hqq": hqq, "gptq": gptq, "awq": awq}[name]
    rounder: Rounder = module.rounder(module.OPTIONS(**options), inputs)
    return rounder


def error(rows: torch.Tensor, codes: Codes, hessian: torch.Tensor | None = None) -> float:
    wrong = rows - torch.from_numpy(dequantize(codes))
    return float((wrong.square() if hessian is None else (wrong @ hessian) * wrong).sum())


def test_recipes_know_every_method() -> None:
    assert set(method_options()) >= {"rtn", "mse", "hqq", "awq", "gptq"}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", ["mse", "hqq", "gptq", "awq"])
def test_codes_and_scales_are_valid(name: str, scheme: Scheme) -> None:
    rows, half = weights(), 1 << (scheme.bits - 1)
    codes = made(name, Inputs(correlated()))(rows, scheme)
    assert codes.codes.shape == rows.shape and codes.scales.shape == (32, scheme.groups(256))
    assert codes.codes.min() >= -half and codes.codes.max() < half
    assert (codes.zeros is None) == scheme.symmetric
    assert np.array_equal(codes.scales, codes.scales.astype(np.float16).astype(np.float32))
    assert np.abs(codes.scales).min() >= SMALLEST_SCALE
    # no method may be worse than rounding to nearest at what it minimizes
    nearest = rtn.quantize(rows, scheme)
    if name == "mse":
        assert error(rows, codes) <= error(rows, nearest) * 1.0001
    if name in ("gptq", "awq"):
        assert error(rows, codes, correlated()) <= error(rows, nearest, correlated()) * 1.01


def test_gptq_is_far_better_than_nearest_and_refinement_improves_it() -> None:
    rows, hessian = weights(), correlated()
    for group in (32, 128):
        scheme = Scheme(4, group)
        nearest = error(rows, rtn.quantize(rows, scheme), hessian)
        plain = error(rows, made("gptq", Inputs(hessian.clone()), refinements=0)(rows, scheme), hessian)
        refined = error(rows, made("gptq", Inputs(hessian.clone()))(rows, scheme), hessian)
        assert plain < 0.5 * nearest
        assert refined < 0.9 * plain


def test_gptq_rows_do_not_depend_on_their_block() -> None:
    rows, rounder = weights(), made("gptq", Inputs(correlated()))
    whole = rounder(rows, Scheme(4, 64)).codes
    parts = np.concatenate([rounder(rows[i : i + 8], Scheme(4, 64)).codes for i in range(0, 32, 8)])
    assert (whole == parts).mean() > 0.999  # matmuls of another shape may round a tie differently


def test_gptq_corrects_the_drift_of_its_inputs() -> None:
    """Fitted to what the unquantized model computes (x') from what the layer gets (x)."""
    generator = torch.Generator().manual_seed(3)
    full = torch.randn(4096, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    x = full @ (torch.eye(64) + 0.05 * torch.randn(64, 64, generator=generator))
    rows = weights(16, 64)
    inputs = Inputs(x.t() @ x / len(x), x.t() @ (full - x) / len(x))

    def wrong(correction: float) -> float:
        codes = made("gptq", inputs.copy(), correction=correction)(rows, Scheme(8, 32))
        return float((full @ rows.t() - x @ torch.from_numpy(dequantize(codes)).t()).square().mean())

    assert wrong(1.0) < 0.05 * wrong(0.0)


def test_awq_protects_channels_with_large_inputs() -> None:
    rows = weights(64, 128)
    scale = torch.ones(128)
    scale[::32] = 16
    x = torch.randn(2048, 128, generator=torch.Generator().manual_seed(4)) * scale
    rows = rows / scale
    hessian, scheme = x.t() @ x / len(x), Scheme(4, 32)
    factors = awq.fold_factors([(rows, scheme)], hessian, torch.arange(128), powers=20)
    assert factors[::32].min() > 4 * factors[1:32].max()

    def lost(factors: torch.Tensor) -> float:
        codes = rtn.quantize(rows * factors, scheme)
        wrong = torch.from_numpy(dequantize(codes)) / factors - rows
        return float(((wrong @ hessian) * wrong).sum())

    assert lost(factors) < 0.5 * lost(torch.ones(128))


@pytest.mark.parametrize("name", ["rtn", "mse", "hqq", "gptq", "awq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_constants(name: str, symmetric: bool) -> None:
    """A tensor of zeros stays zeros; a constant row comes back to within a step."""
    rounder = made(name, Inputs(correlated(64)))
    scheme = Scheme(4, 32, symmetric)
    assert not dequantize(rounder(torch.zeros(4, 64), scheme)).any()
    constant = dequantize(rounder(torch.full((4, 64), 0.75), scheme))
    assert np.abs(constant - 0.75).max() < (0.11 if name in ("gptq", "hqq") else 0.06)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    hessian = correlated(64)
    hessian[5] = hessian[:, 5] = 0
    rows = weights(8, 64)
    codes = made("gptq", Inputs(hessian))(rows, Scheme(4, 32))
    assert np.isfinite(dequantize(codes)).all()
    assert not made("gptq", Inputs(torch.zeros(64, 64)))(torch.zeros(8, 64), Scheme(4, 32)).codes.any()


def test_a_hessian_that_is_not_positive_definite_is_damped_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    hessian = correlated(64) - 3 * torch.eye(64) * correlated(64).diagonal().mean()
    with caplog.at_level(logging.WARNING):
        order = hessian.diagonal().argsort()
        inputs = Inputs(hessian.clone())
        inverse = gptq.invert(inputs, 0.01, order)
    assert "not positive definite" in caplog.text
    assert torch.linalg.eigvalsh(inputs.hessian).min() > 0
    assert torch.allclose(inputs.hessian[order][:, order] @ inverse, torch.eye(64), atol=1e-2)
    rows = weights(4, 64)
    assert inputs.power(rows) == pytest.approx(Inputs(hessian).power(rows), rel=1e-4)  # damping is no loss
    with pytest.raises(ValueError, match="NaN"):
        gptq.invert(Inputs(torch.full((4, 4), torch.nan)), 0.01, torch.arange(4))


@given(st.integers(0, 2**31), st.sampled_from([Scheme(4, 32), Scheme(4, 0, False), Scheme(8, 16)]))
def test_quantizing_the_quantized_changes_nothing(seed: int, scheme: Scheme) -> None:
    """Requantization to the same scheme keeps every value: all of them are on its grid, extremes included."""
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    once = dequantize(rtn.quantize(rows, scheme))
    again = dequantize(mse.rounder(mse.MseOptions(candidates=2))(torch.from_numpy(once), scheme))
    assert np.abs(again - once).max() <= np.abs(once).max() * 2e-3
