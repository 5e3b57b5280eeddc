"""Convolutions: the kernels alone, on every variant that this machine runs, and what is taken into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from compiler.targets.tvm import schedules
from compiler.targets.tvm.kernels.convolution import Convolution, convolution_of, convolve, lay_out
from tests.compiler.targets.tvm.conftest import host_variants, tensor

VARIANTS = {variant.name: variant for variant in host_variants()}
Compiler = Callable[..., Any]


def computed(compiled: Compiler, variant: str, x: Any, weights: Any, bias: Any, relu: bool, **how: Any) -> Any:
    """A convolution by our kernels; the arguments are those of `torch.nn.functional`."""
    flat = weights.reshape(len(weights), -1)
    args = (how.get(key, one) for key, one in (("stride", 1), ("padding", 0), ("dilation", 1)))
    spread = [(value,) * (x.ndim - 2) if isinstance(value, int) else value for value in args]
    planned = convolution_of(x.shape, weights.shape, *spread, how.get("groups", 1))
    at = Convolution(**{**planned.__dict__, "bias": bias is not None, "relu": relu})
    given, out = x.shape if at.flat else at.laid_out, (1, at.rows, *at.out[4 - x.ndim :])
    isa = VARIANTS[variant].isa
    functions = {"run": convolve("run", given, out, at, isa.float_lanes, schedules.CONVOLUTION[isa.name])}
    if not at.flat:
        functions["lay_out"] = lay_out("lay_out", x.shape, at)
    module = compiled(VARIANTS[variant], functions)
    image, found = tensor(x), tensor(np.full(out, np.nan, np.float32))
    if not at.flat:
        laid = tensor(np.full(at.laid_out, np.nan, np.float32))
        module["lay_out"](image, laid)
        image = laid
    module["run"](image, tensor(flat), *([tensor(bias)] if at.bias else []), found)
    return found.numpy()


def expected(x: Any, weights: Any, bias: Any, relu: bool, **how: Any) -> Any:
    function = {3: F.conv1d, 4: F.conv2d}[x.ndim]
    values = function(*(None if v is None else torch.from_numpy(v).double() for v in (x, weights, bias)), **how)
    return (values.relu() if relu else values).numpy()


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_convolution_is_pytorchs(compiled: Compiler, variant: str, data: Any) -> None:
    small = st.integers(1, 4)
    groups, inside, beside = data.draw(st.tuples(st.integers(1, 3), small, small))
    two = data.draw(st.booleans())
    pair = st.tuples(*[small] * (1 + two))
    kernel, stride, dilation = data.draw(pair), data.draw(pair), data.draw(st.tuples(*[st.integers(1, 2)] * (1 + two)))
    padding = data.draw(st.tuples(*[st.integers(0, 3)] * (1 + two)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = [data.draw(st.integers(low, low + 40)) for low in least]
    x, weights = drawn(1, groups * inside, *size), drawn(groups * beside, inside, *kernel, seed=1)
    bias = drawn(groups * beside, seed=2) if data.draw(st.booleans()) else None
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    relu = data.draw(st.booleans())
    found = computed(compiled, variant, x, weights, bias, relu, **how)
    np.testing.assert_allclose(found, expected(x, weights, bias, relu, **how), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("channels", "rows", "kernel", "size", "how"),
    [
        (40, 24, (1, 1), (10, 10), {}),  # flat, whose last tile begins earlier
        (48, 48, (3, 3), (20, 20), {"padding": 1, "groups": 48}),
        (8, 12, (3, 3), (160, 33), {"padding": 1, "stride": 2}),
        (1, 16, (10,), (403,), {"stride": 5}),
    ],
    ids=["pointwise", "depthwise", "strided", "of a waveform"],
)
def test_the_convolutions_of_networks(
    compiled: Compiler, variant: str, channels: int, rows: int, kernel: Any, size: Any, how: dict[str, Any]
) -> None:
    weights = drawn(rows, channels // how.get("groups", 1), *kernel, seed=1)
    x, bias = drawn(1, channels, *size), drawn(rows, seed=2)
    found = computed(compiled, variant, x, weights, bias, True, **how)
    np.testing.assert_allclose(found, expected(x, weights, bias, True, **how), atol=1e-4, rtol=1e-5)
