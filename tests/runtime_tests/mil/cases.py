"""Every operation of the executor with inputs to try it on, and what tells that its answer is right.

`VALUE`: coremltools' own numpy value inference. A function: the definition in `naive.py`, where coremltools has none.
The table in `runtime_tests/mil/README.md` is made from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.runtime_tests.mil import naive

VALUE = "value inference"
_RNG = np.random.default_rng(7)


@dataclass(frozen=True)
class Case:
    """One call: the operation's inputs by name, and its oracle."""

    operation: str
    inputs: dict[str, Any]
    oracle: str | Callable[..., Any] = VALUE
    note: str = ""

    @property
    def label(self) -> str:
        return f"{self.operation}{'-' + self.note if self.note else ''}"


def f(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray[Any, Any]:
    return _RNG.uniform(low, high, shape).astype(np.float32)


def i(*shape: int, low: int = -5, high: int = 6) -> np.ndarray[Any, Any]:
    return _RNG.integers(low, high, shape).astype(np.int32)


def case(operation: str, oracle: str | Callable[..., Any] = VALUE, note: str = "", **inputs: Any) -> Case:
    return Case(operation, inputs, oracle, note)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.asarray(values, np.int32)


def bools(*values: int) -> np.ndarray[Any, Any]:
    return np.asarray(values, bool)


X = f(2, 3, 4)
POSITIVE = f(2, 3, 4, low=0.1, high=3)
IMAGE = f(2, 4, 6, 7)
WEIGHTS = f(6, 8)

_UNARY = [
    "abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "identity", "relu", "relu6", "round",
    "sigmoid", "sign", "sin", "sinh", "softplus", "softsign", "square", "tan", "tanh",
]  # fmt: skip
_BINARY = ["add", "sub", "mul", "maximum", "minimum"]
_COMPARISONS = ["equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]

ELEMENTWISE = [
    *[case(name, x=X) for name in _UNARY],
    *[case(name, x=f(2, 3, low=-0.9, high=0.9)) for name in ("acos", "asin", "atanh")],
    *[case(name, x=X, y=f(3, 1)) for name in _BINARY],
    *[case(name, note="int", x=i(2, 3), y=i(3)) for name in _BINARY],
    *[case(name, x=i(2, 5), y=i(2, 5)) for name in _COMPARISONS],
    *[case(name, note="float", x=X, y=X[:, ::-1].copy()) for name in _COMPARISONS],
    *[case(name, x=bools(1, 0, 1, 0), y=bools(1, 1, 0, 0)) for name in ("logical_and", "logical_or", "logical_xor")],
    case("logical_not", x=bools(1, 0)),
    case("real_div", x=X, y=POSITIVE),
    case("floor_div", x=X, y=POSITIVE),
    case("floor_div", note="int", x=i(9, low=-9, high=9), y=ints(1, 2, 3, -1, -2, -3, 4, 5, 6)),
    case("mod", x=i(9, low=-9, high=9), y=ints(1, 2, 3, -1, -2, -3, 4, 5, 6)),
    case("mod", note="float", x=X, y=POSITIVE),
    case("pow", x=POSITIVE, y=f(4)),
    case("select", cond=X > 0, a=X, b=-X),
    case("sqrt", x=POSITIVE),
    case("log", x=POSITIVE, epsilon=np.float32(1e-3)),
    case("rsqrt", x=POSITIVE, epsilon=np.float32(1e-3)),
    case("inverse", x=POSITIVE, epsilon=np.float32(1e-3)),
    case("clip", x=X, alpha=np.float32(-1), beta=np.float32(0.5)),
    case("threshold", x=X, alpha=np.float32(0.3)),
    case("thresholded_relu", x=X, alpha=np.float32(0.3)),
    case("leaky_relu", x=X, alpha=np.float32(0.2)),
    case("clamped_relu", x=X, alpha=np.float32(0.2), beta=np.float32(0.7)),
    case("elu", x=X, alpha=np.float32(0.7)),
    case("linear_activation", x=X, alpha=np.float32(0.7), beta=np.float32(0.2)),
    case("scaled_tanh", x=X, alpha=np.float32(0.7), beta=np.float32(0.2)),
    case("sigmoid_hard", x=X, alpha=np.float32(0.7), beta=np.float32(0.2)),
    case("prelu", x=IMAGE, alpha=f(4)),
    case("softplus_parametric", x=IMAGE, alpha=f(4, low=0.1), beta=f(4, low=0.1)),
    case("softmax", x=X, axis=1),
    case("softmax", note="last", x=X),
    *[case("gelu", note=mode, x=X, mode=mode) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")],
    case("silu", naive.silu, x=X),
    *[case("cast", note=dtype, x=f(9, low=-9, high=9), dtype=dtype) for dtype in ("int32", "bool", "fp16", "fp32")],
    case("cast", note="from int", x=i(9), dtype="fp32"),
]

REDUCTIONS = [
    *[
        case(name, x=POSITIVE, axes=ints(0, -1), keep_dims=keep, note=f"keep={keep}")
        for name in [
            "reduce_sum",
            "reduce_mean",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_l1_norm",
            "reduce_l2_norm",
            "reduce_sum_square",
            "reduce_log_sum",
            "reduce_log_sum_exp",
        ]
        for keep in (False, True)
    ],
    case("reduce_sum", note="all axes", x=X),
    case("reduce_argmax", x=X, axis=1, keep_dims=False),
    case("reduce_argmin", x=X, axis=-1, keep_dims=True),
    *[case("cumsum", note=f"reverse={r}", x=X, axis=1, reverse=r) for r in (False, True)],
    # coremltools' inference of exclusive sums fails on its own arguments
    *[
        case("cumsum", naive.exclusive_sum, f"exclusive reverse={r}", x=X, axis=1, exclusive=True, reverse=r)
        for r in (False, True)
    ],
]

MATRICES = [
    case("linear", x=f(2, 3, 8), weight=WEIGHTS, bias=f(6)),
    case("linear", note="no bias", x=f(3, 8), weight=WEIGHTS),
    case("matmul", x=f(2, 3, 4), y=f(4, 5)),
    case("matmul", note="transposed", x=f(2, 4, 3), y=f(2, 5, 4), transpose_x=True, transpose_y=True),
    case("einsum", values=(f(2, 3, 4), f(4, 3, 5)), equation="chw,whr->chr"),
    case("einsum", note="rank 4", values=(f(2, 2, 3, 4), f(2, 4, 3, 5)), equation="nchw,nwhu->nchu"),
    case("scaled_dot_product_attention", query=f(2, 2, 3, 4), key=f(2, 2, 5, 4), value=f(2, 2, 5, 6)),
    case(
        "scaled_dot_product_attention",
        note="float mask",
        query=f(2, 3, 4),
        key=f(2, 5, 4),
        value=f(2, 5, 6),
        attn_mask=f(3, 5),
    ),
    case(
        "scaled_dot_product_attention",
        note="bool mask",
        query=f(2, 3, 4),
        key=f(2, 5, 4),
        value=f(2, 5, 6),
        attn_mask=np.tri(3, 5, 1).astype(bool),
    ),
]

SHAPES = [
    case("shape", x=X),
    case("reshape", x=X, shape=ints(0, -1, 2)),
    case("reshape_like", naive.reshape_like, x=f(6, 4), ref_tensors=(f(2, 9), f(3, 4)), begins=ints(0, 0),
         ends=ints(1, 2), end_masks=bools(0, 0)),
    case("transpose", x=X, perm=ints(2, 0, 1)),
    case("expand_dims", x=X, axes=ints(0, -1)),
    case("squeeze", x=f(1, 3, 1, 2), axes=ints(0, 2)),
    case("squeeze", note="all", x=f(1, 3, 1, 2)),
    case("flatten2d", x=X, axis=2),
    case("flatten2d", note="negative", x=X, axis=-1),
    case("concat", values=(X, f(2, 5, 4)), axis=1),
    # coremltools' inference joins without interleaving
    case("concat", naive.interleave, "interleave", values=(f(2, 3, 4, 4), f(2, 3, 4, 4)), axis=-3, interleave=True),
    case("stack", values=(X, X + 1), axis=1),
    case("split", x=f(2, 6), num_splits=3, axis=1),
    case("split", note="sizes", x=f(2, 6), split_sizes=ints(1, 5), axis=-1),
    case("tile", x=X, reps=ints(1, 2, 3)),
    case("reverse", x=X, axes=ints(0, 2)),
    # coremltools' inference raises NotImplementedError
    case("reverse_sequence", naive.reverse_sequence, x=f(3, 4), lengths=ints(1, 3, 4), seq_axis=1, batch_axis=0),
    case("pad", x=X, pad=ints(1, 2, 0, 3), mode="constant", constant_val=np.float32(0.5)),
    case("pad", note="reflect", x=IMAGE, pad=ints(2, 1, 1, 3), mode="reflect"),
    case("pad", note="replicate", x=IMAGE, pad=ints(2, 1, 1, 3), mode="replicate"),
    case("crop", naive.crop, x=IMAGE, crop_height=ints(1, 2), crop_width=ints(0, 3)),
    case("range_1d", start=np.int32(1), end=np.int32(9), step=np.int32(3)),
    case("range_1d", note="float", start=np.float32(0.5), end=np.float32(3), step=np.float32(0.5)),
    case("fill", shape=ints(2, 3), value=np.float32(1.5)),
    case("fill_like", ref_tensor=ints(2, 3), value=np.float32(1.5)),
    case("band_part", x=f(5, 6), lower=1, upper=2),
    case("band_part", note="upper", x=f(5, 6), lower=0, upper=-1),
    case("one_hot", naive.one_hot, indices=ints(2, 0, 1), one_hot_vector_size=4, axis=-1, on_value=np.float32(2),
         off_value=np.float32(-1)),
    case("pixel_shuffle", naive.pixel_shuffle, x=f(1, 8, 2, 3), upscale_factor=2),
    case("pixel_unshuffle", naive.pixel_unshuffle, x=f(1, 2, 4, 6), downscale_factor=2),
    case("depth_to_space", naive.depth_to_space, x=f(1, 8, 2, 3), block_size=2),
    case("space_to_depth", naive.space_to_depth, x=f(1, 2, 4, 6), block_size=2),
    case("space_to_batch", naive.space_to_batch, x=f(2, 3, 3, 5), block_shape=ints(2, 3),
         paddings=np.asarray([[1, 0], [0, 1]], np.int32)),
    case("batch_to_space", naive.batch_to_space, x=f(12, 3, 2, 2), block_shape=ints(2, 3),
         crops=np.asarray([[1, 0], [0, 2]], np.int32)),
    case("sliding_windows", naive.sliding_windows, x=f(2, 7, 3), axis=1, size=3, stride=2),
]  # fmt: skip

INDEXING = [
    case("slice_by_index", x=f(5, 6, 7), begin=ints(1, -4, 0), end=ints(4, -1, 7), stride=ints(2, 1, 3)),
    case("slice_by_index", note="masks", x=f(5, 6, 7), begin=ints(1, 2, 0), end=ints(4, 3, 5),
         begin_mask=bools(1, 0, 0), end_mask=bools(0, 0, 1), squeeze_mask=bools(0, 1, 0)),
    case("slice_by_index", note="backwards", x=f(5, 6), begin=ints(4, 5), end=ints(0, 1), stride=ints(-1, -2)),
    case("slice_by_size", x=f(5, 6), begin=ints(1, 2), size=ints(3, -1)),
    case("slice_update", x=f(5, 6), update=f(3, 2), begin=ints(1, 0), end=ints(4, 6), stride=ints(1, 3)),
    case("slice_update", note="masks", x=f(5, 6), update=f(6), begin=ints(2, 0), end=ints(3, 0),
         end_mask=bools(0, 1), squeeze_mask=bools(1, 0)),
    case("gather", x=f(5, 6), indices=ints(3, 0, 4), axis=0),
    case("gather", note="negative", x=f(5, 6), indices=np.asarray([[1, -1], [-6, 2]], np.int32), axis=-1),
    case("gather", note="batch", x=f(2, 5, 3), indices=np.asarray([[1, 2], [4, 0]], np.int32), axis=1, batch_dims=1),
    case("gather_along_axis", x=f(3, 4), indices=i(3, 2, low=0, high=4), axis=1),
    case("gather_nd", naive.gather_nd, x=f(3, 4, 5), indices=i(6, 2, low=0, high=3)),
    case("gather_nd", naive.gather_nd, "batch", x=f(3, 4, 5), indices=i(3, 2, 1, low=0, high=4), batch_dims=1),
    *[
        case("scatter", naive.scatter, mode, data=f(5, 4), indices=ints(3, 0, 3), updates=f(5, 3), axis=1, mode=mode)
        for mode in ("add", "mul", "max", "update")
    ],
    case("scatter_along_axis", data=f(3, 4), indices=np.asarray([[1], [3], [0]], np.int32), updates=f(3, 1), axis=1,
         mode="update"),
    # coremltools' inference overwrites, whatever the mode
    case("scatter_along_axis", naive.add_along_axis, "add", data=f(3, 4), indices=np.asarray([[1], [3], [0]], np.int32),
         updates=f(3, 1), axis=1, mode="add"),
    *[
        case("scatter_nd", naive.scatter_nd, mode, data=f(4, 5), indices=np.asarray([[1], [3]], np.int32),
             updates=f(2, 5), mode=mode)
        for mode in ("add", "sub", "update")
    ],
    case("topk", x=f(3, 6), k=2, axis=1, ascending=False),
    case("topk", note="ascending", x=f(3, 6), k=3, axis=0, ascending=True),
    case("argsort", x=f(3, 6), axis=1, ascending=True),
    case("argsort", note="descending", x=f(3, 6), axis=0, ascending=False),
    case("non_zero", x=i(3, 4, low=0, high=2)),
]  # fmt: skip

CONVOLUTIONS = [
    case("conv", naive.conv, "1-D", x=f(2, 4, 9), weight=f(6, 4, 3), bias=f(6), strides=ints(2), pad_type="custom",
         pad=ints(1, 2), dilations=ints(2), groups=1),
    case("conv", naive.conv, "2-D grouped", x=f(1, 4, 6, 7), weight=f(6, 2, 3, 2), bias=f(6), strides=ints(1, 2),
         pad_type="same", dilations=ints(1, 1), groups=2),
    case("conv", naive.conv, "same_lower", x=f(1, 2, 6, 7), weight=f(3, 2, 2, 4), strides=ints(1, 2),
         pad_type="same_lower"),
    case("conv", naive.conv, "depthwise", x=f(1, 4, 5, 5), weight=f(4, 1, 3, 3), pad_type="valid", groups=4),
    case("conv", naive.conv, "3-D", x=f(1, 2, 4, 5, 4), weight=f(3, 2, 2, 3, 2), bias=f(3), pad_type="custom",
         pad=ints(1, 0, 0, 1, 1, 1)),
    case("conv_transpose", naive.conv_transpose, "1-D", x=f(1, 3, 5), weight=f(3, 2, 4), bias=f(2), strides=ints(2),
         pad_type="custom", pad=ints(1, 1)),
    case("conv_transpose", naive.conv_transpose, "2-D", x=f(1, 4, 3, 4), weight=f(4, 3, 3, 3), bias=f(6),
         strides=ints(2, 2), pad_type="custom", pad=ints(1, 1, 1, 1), groups=2),
    case("conv_transpose", naive.conv_transpose, "output_shape", x=f(1, 2, 3, 4), weight=f(2, 3, 3, 3), bias=f(3),
         strides=ints(2, 2), pad_type="custom", pad=ints(1, 1, 1, 1), output_shape=ints(1, 3, 6, 8)),
    case("conv_transpose", naive.conv_transpose, "valid dilated", x=f(1, 2, 3), weight=f(2, 2, 3), strides=ints(2),
         pad_type="valid", dilations=ints(2)),
    *[
        case(f"{kind}_pool", function, note, x=IMAGE, kernel_sizes=ints(3, 2), strides=ints(2, 2), **rest)
        for kind, function in (("max", naive.max_pool), ("avg", naive.avg_pool))
        for note, rest in (
            ("valid", {"pad_type": "valid"}),
            ("custom", {"pad_type": "custom", "pad": ints(1, 1, 0, 1)}),
            ("same", {"pad_type": "same"}),
            ("ceil", {"pad_type": "valid", "ceil_mode": True}),
        )
    ],
    case("avg_pool", naive.avg_pool, "exclude padding", x=IMAGE, kernel_sizes=ints(3, 2), strides=ints(2, 2),
         pad_type="custom", pad=ints(1, 1, 0, 1), exclude_padding_from_average=True),
    case("max_pool", naive.max_pool, "1-D", x=f(1, 2, 9), kernel_sizes=ints(3), strides=ints(2), pad_type="valid"),
    case("l2_pool", naive.l2_pool, x=IMAGE, kernel_sizes=ints(2, 2), strides=ints(1, 2), pad_type="valid"),
]  # fmt: skip

NORMS = [
    case("layer_norm", x=X, axes=ints(1, 2), gamma=f(3, 4), beta=f(3, 4), epsilon=np.float32(1e-3)),
    case("layer_norm", note="last", x=X, axes=ints(-1), gamma=f(4), beta=f(4), epsilon=np.float32(1e-3)),
    case("layer_norm", note="plain", x=X, axes=ints(-1)),
    case("l2_norm", x=IMAGE, epsilon=np.float32(1e-3)),
    case("batch_norm", naive.batch_norm, x=IMAGE, mean=f(4), variance=f(4, low=0.5), gamma=f(4), beta=f(4),
         epsilon=np.float32(1e-3)),
    case("instance_norm", naive.instance_norm, x=IMAGE, gamma=f(4), beta=f(4), epsilon=np.float32(1e-3)),
    case("local_response_norm", naive.local_response_norm, x=IMAGE, size=3, alpha=np.float32(0.1),
         beta=np.float32(0.6), k=np.float32(1.5)),
]  # fmt: skip

GRID = f(2, 3, 5, 2, low=-1.3, high=1.3)
IMAGES = [
    *[
        case("resample", lambda x, coordinates, sampling_mode, padding_mode, align_corners, **_: naive.resample(
            x, coordinates, padding_mode, bool(align_corners), sampling_mode),
            f"{padding} corners={corners} {mode}", x=IMAGE, coordinates=GRID, sampling_mode=mode, padding_mode=padding,
            padding_value=np.float32(0), coordinates_mode="normalized_minus_one_to_one", align_corners=corners)
        for padding in ("constant", "border")
        for corners in (False, True)
        for mode in ("bilinear",)
    ],
    case("upsample_nearest_neighbor", lambda x, **_: naive.resize_nearest(x, 12, 21), x=IMAGE, scale_factor_height=2,
         scale_factor_width=3),
    case("resize_nearest_neighbor", lambda x, **_: naive.resize_nearest(x, 9, 14), x=IMAGE, target_size_height=9,
         target_size_width=14),
    case("upsample_bilinear", lambda x, **_: naive.resize_bilinear(x, 12, 14, "STRICT_ALIGN_CORNERS"), "corners",
         x=IMAGE, scale_factor_height=2, scale_factor_width=2, align_corners=True),
    case("upsample_bilinear", lambda x, **_: naive.resize_bilinear(x, 12, 14, "UNALIGN_CORNERS"), "half pixel",
         x=IMAGE, scale_factor_height=2, scale_factor_width=2, align_corners=False),
    *[
        case("resize_bilinear", lambda x, sampling_mode, **_: naive.resize_bilinear(x, 9, 5, sampling_mode), mode,
             x=IMAGE, target_size_height=9, target_size_width=5, sampling_mode=mode)
        for mode in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS")
    ],
]  # fmt: skip

CASES = [*ELEMENTWISE, *REDUCTIONS, *MATRICES, *SHAPES, *INDEXING, *CONVOLUTIONS, *NORMS, *IMAGES]
