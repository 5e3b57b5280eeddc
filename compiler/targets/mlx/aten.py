"""ATen operators in MLX operations: each entry takes an operator's own arguments, tensors as MLX arrays.

Shapes keep PyTorch's channels-first order between entries; a convolution or pooling turns around its own operands.
Between a convolution, activations and the next one the turns cancel: they are strides, and element-wise operations
keep them. Convolution weights arrive in MLX's layout (`conv_layout`). What an entry does not cover raises
NotImplementedError; it must never compute something else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.activations import gelu as exact_gelu
from mlx.nn.layers.activations import gelu_approx, hardswish, relu, silu

from compiler.targets.mlx.sampling import (
    avg_pool2d,
    channels_first,
    channels_last,
    each,
    grid_sampler,
    max_pool2d,
    pixel_shuffle,
    upsample_linear,
    upsample_nearest,
)

Array = mx.array
_ALL = 1 << 31  # PyTorch's "to the end" is the largest of 64 bits, MLX's slices take 32


def _per_channel(vector: Array | None, x: Array) -> Array:
    """A vector over the channels of x [N, C, ...], shaped to multiply it."""
    assert vector is not None
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _scaled(x: Array, weight: Array | None, bias: Array | None) -> Array:
    x = x if weight is None else x * _per_channel(weight, x)
    return x if bias is None else x + _per_channel(bias, x)


# -- convolution and linear -------------------------------------------------------------------------------------


def conv_layout(weight: Array, transposed: bool, groups: int) -> Array:
    """A convolution weight from PyTorch's layout, [out, in / groups, …], transposed [in, out / groups, …], to MLX's,
    [out, …, in / groups]."""
    if not transposed:
        return mx.contiguous(channels_last(weight))
    inner, outer, *kernel = weight.shape
    grouped = weight.reshape(groups, inner // groups, outer, *kernel)
    moved = mx.moveaxis(grouped, 1, -1)
    return mx.contiguous(moved.reshape(groups * outer, *kernel, inner // groups))


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Array:
    dims = x.ndim - 2
    if isinstance(padding, str):
        raise NotImplementedError(f"mlx: convolution with padding {padding!r}; give it in numbers")
    out = mx.conv_general(
        channels_last(x),
        weight,
        stride=each(stride, dims),
        padding=each(padding, dims),
        kernel_dilation=each(dilation, dims),
        groups=groups,
    )
    return channels_first(out if bias is None else out + bias)


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Array:
    dims = x.ndim - 2
    kernel: Callable[..., Array] = (mx.conv_transpose1d, mx.conv_transpose2d, mx.conv_transpose3d)[dims - 1]
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": output_padding}
    given = {key: value[0] if dims == 1 else tuple(each(value, dims)) for key, value in settings.items()}
    out = kernel(channels_last(x), weight, **given, groups=groups)
    return channels_first(out if bias is None else out + bias)


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    out = x @ weight.T
    return out if bias is None else out + bias


def addmm(bias: Array, x: Array, y: Array) -> Array:
    return bias + x @ y


# -- normalization ----------------------------------------------------------------------------------------------


def layer_norm(
    x: Array, shape: Sequence[int], weight: Array | None, bias: Array | None, eps: float = 1e-5, _: bool = True
) -> Array:
    if len(shape) != 1:
        raise NotImplementedError(f"mlx: layer_norm over {len(shape)} dimensions")
    return mx.fast.layer_norm(x, weight, bias, eps)


def group_norm(
    x: Array, groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5, _: bool = True
) -> Array:
    rows = mx.fast.layer_norm(x.reshape(x.shape[0], groups, -1), None, None, eps)
    return _scaled(rows.reshape(x.shape), weight, bias)


def instance_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    variance: Array | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    _: bool,
) -> Array:
    if not use_input_stats:
        raise NotImplementedError("mlx: instance_norm with running statistics")
    return group_norm(x, x.shape[1], weight, bias, eps)


def batch_norm(
    x: Array, weight: Array | None, bias: Array | None, mean: Array, variance: Array, momentum: float, eps: float
) -> tuple[Array]:
    normed = (x - _per_channel(mean, x)) * _per_channel(mx.rsqrt(variance + eps), x)
    return (_scaled(normed, weight, bias),)


# -- attention, activation, arithmetic --------------------------------------------------------------------------


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    used = "causal" if is_causal else mask
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale or q.shape[-1] ** -0.5, mask=used)


def gelu(x: Array, approximate: str = "none") -> Array:
    return gelu_approx(x) if approximate == "tanh" else exact_gelu(x)


def prelu(x: Array, weight: Array) -> Array:
    return mx.where(x >= 0, x, x * (_per_channel(weight, x) if x.ndim > 1 else weight))


def leaky_relu(x: Array, slope: float = 0.01) -> Array:
    return mx.where(x >= 0, x, x * slope)


def clamp(x: Array, low: float | None = None, high: float | None = None) -> Array:
    return mx.clip(x, low, high)


def add(x: Array, y: Any, *, alpha: float = 1) -> Array:
    total: Array = x + (y if alpha == 1 else y * alpha)
    return total


def subtract(x: Array, y: Any, *, alpha: float = 1) -> Array:
    difference: Array = x - (y if alpha == 1 else y * alpha)
    return difference


def divide(x: Array, y: Any) -> Array:
    quotient: Array = x / y
    return quotient


def mean(x: Array, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    return mx.mean(x, None if dims is None else tuple(dims), keepdims=keepdim)


def sum_over(x: Array, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    return mx.sum(x, None if dims is None else tuple(dims), keepdims=keepdim)


def softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    return mx.softmax(x, axis=dim, precise=True)


def matmul(x: Array, y: Array) -> Array:
    """In the narrower dtype of both: float32 beside float16 is a table or coordinates, and their product is values."""
    product: Array = x @ y
    return product.astype(min(x.dtype, y.dtype, key=lambda dtype: dtype.size))


# -- shapes and constants ---------------------------------------------------------------------------------------


def split(x: Any, size: int, dim: int = 0) -> Sequence[Array]:
    """Equal pieces; the parts of a fused linear are handed through where they are those pieces."""
    parts = getattr(x, "arrays", None)
    if parts is not None:
        if dim == -1 and all(part.shape[-1] == size for part in parts):
            return list(parts)
        x = x.joined()
    return list(mx.split(x, list(range(size, x.shape[dim], size)), axis=dim))


def split_sizes(x: Array, sizes: Sequence[int], dim: int = 0) -> Sequence[Array]:
    return list(mx.split(x, list(itertools.accumulate(sizes))[:-1], axis=dim))


def unbind(x: Array, dim: int = 0) -> Sequence[Array]:
    return [mx.squeeze(part, dim) for part in mx.split(x, x.shape[dim], axis=dim)]


def slice_along(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    index = [slice(None)] * x.ndim
    index[dim] = slice(start, None if end is not None and end >= _ALL else end, step)
    return x[tuple(index)]


def expand(x: Array, shape: Sequence[int]) -> Array:
    lead = len(shape) - x.ndim
    return mx.broadcast_to(x, [x.shape[i - lead] if n == -1 else n for i, n in enumerate(shape)])


def pad(x: Array, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    if mode != "constant" or min(widths) < 0:
        raise NotImplementedError(f"mlx: pad in mode {mode!r} or by negative widths")
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2)
    pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
    return mx.pad(x, pairs, constant_values=value or 0)


def meshgrid(axes: Sequence[Array], indexing: str = "ij") -> Sequence[Array]:
    return mx.meshgrid(*axes, indexing=indexing)


def arange(end: int, *, dtype: Any = None, **_: Any) -> Array:
    floating = isinstance(end, float) if dtype is None else dtype.is_floating_point
    return mx.arange(end, dtype=mx.float32 if floating else mx.int32)


def linspace(start: float, end: float, steps: int, **_: Any) -> Array:
    return mx.linspace(start, end, steps)


def _same(x: Array, *_: Any, **__: Any) -> Array:
    return x


def _shaped(x: Array, shape: Sequence[int]) -> Array:
    return x.reshape(shape)


ATEN: dict[str, Callable[..., Any]] = {
    "aten.conv1d.default": conv,
    "aten.conv2d.default": conv,
    "aten.conv3d.default": conv,
    "aten.conv_transpose1d.default": conv_transpose,
    "aten.conv_transpose2d.input": conv_transpose,
    "aten.conv_transpose3d.input": conv_transpose,
    "aten.linear.default": linear,
    "aten.addmm.default": addmm,
    "aten.matmul.default": matmul,
    "aten.bmm.default": lambda x, y: x @ y,
    "aten.embedding.default": lambda weight, ids, *_: weight[ids],
    "aten.layer_norm.default": layer_norm,
    "aten.group_norm.default": group_norm,
    "aten.instance_norm.default": instance_norm,
    "aten._native_batch_norm_legit_no_training.default": batch_norm,
    "aten.scaled_dot_product_attention.default": attention,
    "aten.gelu.default": gelu,
    "aten.silu.default": silu,
    "aten.relu.default": relu,
    "aten.prelu.default": prelu,
    "aten.leaky_relu.default": leaky_relu,
    "aten.hardswish.default": hardswish,
    "aten.hardtanh.default": lambda x, low=-1.0, high=1.0: mx.clip(x, low, high),
    "aten.clamp.default": clamp,
    "aten.sigmoid.default": mx.sigmoid,
    "aten.tanh.default": mx.tanh,
    "aten.softmax.int": softmax,
    "aten.exp.default": mx.exp,
    "aten.log.default": mx.log,
    "aten.sqrt.default": mx.sqrt,
    "aten.rsqrt.default": mx.rsqrt,
    "aten.sin.default": mx.sin,
    "aten.cos.default": mx.cos,
    "aten.abs.default": mx.abs,
    "aten.neg.default": mx.negative,
    "aten.add.Tensor": add,
    "aten.sub.Tensor": subtract,
    "aten.rsub.Scalar": lambda x, y, alpha=1: y - x * alpha,
    "aten.mul.Tensor": lambda x, y: x * y,
    "aten.div.Tensor": divide,
    "aten.eq.Tensor": mx.equal,
    "aten.pow.Tensor_Scalar": lambda x, y: x**y,
    "aten.mean.dim": mean,
    "aten.sum.dim_IntList": sum_over,
    "aten.max_pool2d.default": max_pool2d,
    "aten.avg_pool2d.default": avg_pool2d,
    "aten.upsample_nearest2d.vec": upsample_nearest,
    "aten.upsample_linear1d.vec": upsample_linear,
    "aten.upsample_bilinear2d.vec": upsample_linear,
    "aten.grid_sampler.default": grid_sampler,
    "aten.pixel_shuffle.default": pixel_shuffle,
    "aten.view.default": _shaped,
    "aten._unsafe_view.default": _shaped,
    "aten.reshape.default": _shaped,
    "aten.transpose.int": mx.swapaxes,
    "aten.permute.default": mx.transpose,
    "aten.flatten.using_ints": lambda x, start=0, end=-1: mx.flatten(x, start, end),
    "aten.unsqueeze.default": mx.expand_dims,
    "aten.squeeze.dim": mx.squeeze,
    "aten.expand.default": expand,
    "aten.cat.default": lambda parts, dim=0: mx.concatenate(parts, axis=dim),
    "aten.stack.default": lambda parts, dim=0: mx.stack(parts, axis=dim),
    "aten.split.Tensor": split,
    "aten.split_with_sizes.default": split_sizes,
    "aten.unbind.int": unbind,
    "aten.slice.Tensor": slice_along,
    "aten.select.int": lambda x, dim, index: mx.take(x, index % x.shape[dim], axis=dim),
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": lambda x, widths, value=0: pad(x, widths, value=value),
    "aten.meshgrid.indexing": meshgrid,
    "aten.arange.default": arange,
    "aten.linspace.default": linspace,
    "aten.clone.default": _same,
    "aten.contiguous.default": _same,
    "aten.alias.default": _same,
    "aten.detach.default": _same,
    "aten.dropout.default": _same,
}
