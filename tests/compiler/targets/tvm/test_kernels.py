"""Every kernel alone, on every variant that this machine runs, against NumPy over the same packed bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.codes import Codes, dequantize, pack, unpack
from compiler.targets.tvm.geometry import Heads
from compiler.targets.tvm.isa import AVX2, AVX512_VNNI, NEON_DOTPROD, NEON_I8MM
from compiler.targets.tvm.kernels import attention, dot, exact, pointwise
from tests.compiler.targets.tvm.conftest import host_variants, tensor

Array = np.ndarray[Any, Any]
Compiler = Callable[..., Any]
VARIANTS = {v.name: v for v in host_variants()}
SHAPES = [(64, 32), (96, 32), (256, 64), (576, 32), (576, 0), (768, 128)]
# groups and rows that no integer kernel takes
NARROW = [(48, 16), (80, 16), (40, 0), (24, 0)]


def matrix(rows: int, columns: int, bits: int, group: int) -> tuple[Array, Array, Array]:
    """Packed bytes, float16 scales and the float32 values that they stand for."""
    rng = np.random.default_rng(columns + bits)
    codes = rng.integers(-(1 << bits - 1), 1 << bits - 1, (rows, columns)).astype(np.int8)
    scales = rng.uniform(-0.01, 0.01, (rows, columns // group)).astype(np.float16)
    return pack(codes, bits), scales, dequantize(Codes(codes, scales.astype(np.float32)))


def rounded(x: Array, group: int) -> Array:
    """Activations as `quantize` leaves them: int8 codes times a scale for each token and group."""
    grouped = x.reshape(len(x), -1, group)
    scales = (np.abs(grouped).max(-1, keepdims=True) * np.float32(1 / 127)).astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return (np.rint(grouped * inverse) * scales).reshape(x.shape)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "group"), SHAPES)
def test_integer_matmul_is_the_product_of_codes(
    compiled: Compiler, variant: str, bits: int, columns: int, group: int
) -> None:
    isa, rows, group = VARIANTS[variant].isa, 12, group or columns
    layout = dot.layout(columns, bits, group, isa)
    assert layout is not None
    module = compiled(
        VARIANTS[variant],
        {
            "quantize_one": dot.quantize("quantize_one", 1, layout),
            "quantize": dot.quantize("quantize", None, layout),
            "gemv": dot.matmul("gemv", 1, rows, layout, isa, (4, 1), "float16"),
            "gemm": dot.matmul("gemm", None, rows, layout, isa, (2, 4), "float16"),
        },
    )
    weights, scales, values = matrix(rows, columns, bits, group)
    for tokens, (quantize, matmul) in {1: ("quantize_one", "gemv"), 7: ("quantize", "gemm")}.items():
        x = np.random.default_rng(1).standard_normal((tokens, columns)).astype(np.float32)
        x[0, :group] = 0  # a group of zeros has scale 0 and takes no part
        codes = tensor(np.empty((tokens, columns), np.int8))
        xscales = tensor(np.empty((tokens, columns // group), np.float32))
        starts = [tensor(np.empty((tokens, layout.units, layout.lanes), np.int32))] if layout.starts else []
        y = tensor(np.empty((1, tokens, rows), np.float32))
        module[quantize](tensor(x[None]), codes, xscales, *starts)
        module[matmul](tensor(weights), tensor(scales), codes, xscales, *starts, y)
        np.testing.assert_allclose(y.numpy()[0], rounded(x, group) @ values.T, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "group"), SHAPES + NARROW)
def test_exact_matmul_is_the_product_of_values(
    compiled: Compiler, variant: str, bits: int, columns: int, group: int
) -> None:
    isa, rows, group = VARIANTS[variant].isa, 12, group or columns
    lanes = exact.float_lanes(columns, bits, group, isa.float_lanes)
    functions = {"matmul": exact.matmul("matmul", None, rows, columns, bits, group, lanes, (4, 2), "float16")}
    if bits == 4:
        functions["arrange"] = exact.arrange("arrange", None, columns, lanes)
    module = compiled(VARIANTS[variant], functions)
    weights, scales, values = matrix(rows, columns, bits, group)
    x = np.random.default_rng(2).standard_normal((5, columns)).astype(np.float32)
    given_x = tensor(x[None])
    if bits == 4:
        given_x = tensor(np.empty_like(x))
        module["arrange"](tensor(x[None]), given_x)
    y = tensor(np.empty((1, 5, rows), np.float32))
    module["matmul"](tensor(weights), tensor(scales), given_x, y)
    np.testing.assert_allclose(y.numpy()[0], x @ values.T, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("columns", [64, 36, 18, 7])
def test_half_precision_weights_are_read_as_they_are(compiled: Compiler, kind: str, columns: int) -> None:
    variant = host_variants()[0]
    lanes = exact.float_lanes(columns, 16, columns, variant.isa.float_lanes)
    values = np.random.default_rng(3).standard_normal((8, columns)).astype(np.float32)
    if kind == "bfloat16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = values.astype(np.float16)
        values = stored.astype(np.float32)
    module = compiled(variant, {"matmul": exact.matmul("matmul", 1, 8, columns, 16, columns, lanes, (2, 1), kind)})
    x = np.random.default_rng(4).standard_normal((1, columns)).astype(np.float32)
    y = tensor(np.empty((1, 1, 8), np.float32))
    module["matmul"](tensor(stored), tensor(x[None]), y)
    np.testing.assert_allclose(y.numpy()[0], x @ values.T, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "group"), [(96, 32), (48, 16), (40, 40)])
def test_embedding_gives_the_rows_bit_for_bit(compiled: Compiler, bits: int, columns: int, group: int) -> None:
    table, scales, values = matrix(20, columns, bits, group)
    function = pointwise.embedding("embedding", None, 20, columns, bits, group, "float16")
    ids = np.array([[3, 0, 19]], np.int64)
    out = tensor(np.empty((1, 3, columns), np.float32))
    whole = pointwise.dequantize("whole", 20, columns, bits, group, "float16")
    module = compiled(host_variants()[0], {"embedding": function, "whole": whole})
    module["embedding"](tensor(ids), tensor(table), tensor(scales), out)
    np.testing.assert_array_equal(out.numpy()[0], values[ids[0]])
    every = tensor(np.empty((20, columns), np.float32))
    module["whole"](tensor(table), tensor(scales), every)
    np.testing.assert_array_equal(every.numpy(), values)


@pytest.mark.parametrize("columns", [64, 48, 20, 7])
def test_norms_and_the_last_token_of_any_width(compiled: Compiler, columns: int) -> None:
    functions = {
        "norm": pointwise.rms_norm("norm", None, columns, 1e-5, True),
        "last": pointwise.last_token("last", None, columns),
    }
    module = compiled(host_variants()[0], functions)
    x, residual = np.random.default_rng(6).standard_normal((2, 1, 3, columns)).astype(np.float32)
    gain = np.random.default_rng(7).uniform(0.5, 2, columns).astype(np.float32)
    out, summed = (tensor(np.empty_like(x)) for _ in range(2))
    module["norm"](tensor(x), tensor(residual), tensor(gain), out, summed)
    total = x + residual
    expected = total / np.sqrt(np.square(total, dtype=np.float64).mean(-1, keepdims=True) + 1e-5) * gain
    np.testing.assert_array_equal(summed.numpy(), total)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5)
    last = tensor(np.empty((1, 1, columns), np.float32))
    module["last"](tensor(x), last)
    np.testing.assert_array_equal(last.numpy(), x[:, -1:])


@pytest.mark.parametrize("columns", [256, 24, 10])
def test_gated_silu_over_the_whole_range(compiled: Compiler, columns: int) -> None:
    half = columns // 2
    gate = np.concatenate([np.linspace(-100, 100, half), np.linspace(-2, 2, half)]).astype(np.float32)
    x = np.concatenate([gate, np.ones_like(gate)])[None, None]
    out = tensor(np.empty((1, 1, columns), np.float32))
    module = compiled(host_variants()[0], {"silu": pointwise.gated_silu("silu", None, columns)})
    module["silu"](tensor(x), out)
    expected = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64)))
    np.testing.assert_allclose(out.numpy()[0, 0], expected, rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dim", [24, 18])
def test_attention_sees_the_past_and_nothing_later(compiled: Compiler, variant: str, dim: int) -> None:
    at, half = Heads(heads=6, kv_heads=2, head_dim=dim, max_tokens=48, scale=0.2), dim // 2
    names = ("append", "attend")
    made = (
        attention.append("append", None, at),
        attention.attend("attend", None, at, True, VARIANTS[variant].isa),
    )
    module = compiled(VARIANTS[variant], dict(zip(names, made, strict=True)))
    rng = np.random.default_rng(5)
    keys = tensor(rng.standard_normal(at.key_shape).astype(np.float32))  # what an earlier text left behind
    values = tensor(rng.standard_normal(at.value_shape).astype(np.float32))
    factors = rng.uniform(0.5, 2, at.max_tokens).astype(np.float32)
    qkv = rng.standard_normal((1, 37, at.width)).astype(np.float32)
    angle = rng.uniform(-3, 3, (1, 37, half)).astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    found = []
    for start, stop in ((0, 20), (20, 36), (36, 37)):
        rows = slice(start, stop)
        position = np.arange(start, stop, dtype=np.int64)[None]
        shared = [tensor(np.ascontiguousarray(a[:, rows])) for a in (qkv, cos, sin)]
        out = tensor(np.empty((1, stop - start, 6 * dim), np.float32))
        module["append"](*shared, tensor(position), keys, values)
        module["attend"](*shared, tensor(position), tensor(factors), keys, values, out)
        found.append(out.numpy()[0])

    heads = qkv[0].reshape(37, 10, dim)
    c, s = cos[0][:, None], sin[0][:, None]
    turned = np.concatenate(
        [heads[..., :half] * c - heads[..., half:] * s, heads[..., half:] * c + heads[..., :half] * s], -1
    )
    q = turned[:, :6] * factors[:37, None, None] * 0.2
    k, v = turned[:, 6:8].repeat(3, 1), heads[:, 8:].repeat(3, 1)
    scores = np.einsum("qhd,khd->hqk", q, k)
    scores[:, ~np.tri(37, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(37, -1)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)


@given(
    st.sampled_from([AVX512_VNNI, AVX2, NEON_DOTPROD, NEON_I8MM]),
    st.sampled_from([4, 8]),
    st.integers(1, 80).map(lambda n: 32 * n),
    st.sampled_from([0, 32, 64, 128, 256]),
)
def test_every_admitted_shape_has_a_layout(isa: Any, bits: int, columns: int, group: int) -> None:
    group = group or columns
    if columns % group:
        return
    layout = dot.layout(columns, bits, group, isa)
    assert layout is not None, "target.refusals admits it"
    assert layout.units * layout.blocks * layout.codes == columns
    assert layout.units * layout.groups * group == columns


@given(st.integers(0, 2**32 - 1))
def test_kernels_read_what_packing_writes(seed: int) -> None:
    """Low nibble first, offset 8; one byte, offset 128: the order that the kernels' comments rely on."""
    packed = np.random.default_rng(seed).integers(0, 256, (2, 16), np.uint8)
    four = unpack(packed, 4)
    np.testing.assert_array_equal(four[:, 0::2], (packed & 15).astype(np.int8) - 8)
    np.testing.assert_array_equal(four[:, 1::2], (packed >> 4).astype(np.int8) - 8)
    np.testing.assert_array_equal(unpack(packed, 8), packed.astype(np.int16) - 128)
