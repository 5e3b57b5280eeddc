"""Corrections of upstream's PyTorch importer (apache-tvm 0.27), as converters for its `custom_convert_map`.

| op | upstream |
|---|---|
| div of integers | divides as integers; PyTorch gives floats |
| reciprocal of integers | computes 1 / x in integers, silently 0 |
| grid_sampler_2d | hands the grid over as [N, H, W, 2] where the operator wants [N, 2, H, W] |
| grid_sampler_3d | not converted |
| native_group_norm | fails without weights of its own |
| clamp of integers | fails with one bound, the other of which is infinite |

A test for each fails without its converter (`tests/compiler/targets/tvm/test_compat.py`). Knows nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax

Expr = Any

_METHODS = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")


def _floating(importer: Any, x: Expr) -> Expr:
    """x, cast to float32 where it is an integer tensor."""
    if isinstance(x, relax.Expr) and not str(x.ty.dtype).startswith(("float", "bfloat")):
        return importer.block_builder.emit(relax.op.astype(x, "float32"))
    return x


def divide(node: Any, importer: Any) -> Expr:
    """aten.div of tensors and numbers, always in floating point."""
    left, right = (_floating(importer, x) for x in importer.retrieve_args(node)[:2])
    if not isinstance(left, relax.Expr) and not isinstance(right, relax.Expr):
        return left / right
    if not isinstance(left, relax.Expr):
        left = relax.const(float(left), right.ty.dtype)
    if not isinstance(right, relax.Expr):
        right = relax.const(float(right), left.ty.dtype)
    return importer.block_builder.emit(relax.op.divide(left, right))


def reciprocal(node: Any, importer: Any) -> Expr:
    """aten.reciprocal, in floating point."""
    x = _floating(importer, importer.retrieve_args(node)[0])
    return importer.block_builder.emit(relax.op.divide(relax.const(1.0, x.ty.dtype), x))


def _grid_sampler(layout: str, order: list[int]) -> Callable[[Any, Any], Expr]:
    def convert(node: Any, importer: Any) -> Expr:
        x, grid, method, padding, align = importer.retrieve_args(node)
        emit = importer.block_builder.emit
        turned = emit(relax.op.permute_dims(grid, order))
        # an operator, whose kernel comes later: of what is imported only the function is kept
        return emit(
            relax.op.image.grid_sample(
                x, turned, _METHODS[method], layout, padding_mode=_PADDINGS[padding], align_corners=bool(align)
            )
        )

    return convert


def group_norm(node: Any, importer: Any) -> Expr:
    """aten.native_group_norm; without weights as its statistics, of values around their mean."""
    if node.args[1] is not None or node.args[2] is not None:
        return importer._native_group_norm(node)
    x, _, _, batch, _, _, groups, eps = importer.retrieve_args(node)
    emit = importer.block_builder.emit
    rows = emit(relax.op.reshape(x, [batch, groups, -1]))
    around = emit(relax.op.subtract(rows, emit(relax.op.mean(rows, 2, keepdims=True))))
    variance = emit(relax.op.mean(emit(relax.op.multiply(around, around)), 2, keepdims=True))
    factor = emit(relax.op.rsqrt(emit(relax.op.add(variance, relax.const(eps, x.ty.dtype)))))
    return emit(relax.op.reshape(emit(relax.op.multiply(around, factor)), x.ty.shape))


def clamp(node: Any, importer: Any) -> Expr:
    """aten.clamp of integers by the bounds that are given; of floats as upstream has it."""
    x, *bounds = importer.retrieve_args(node)
    if str(x.ty.dtype).startswith(("float", "bfloat")) or node.kwargs:
        return importer._clamp(node)
    for bound, narrowed in zip(bounds, (relax.op.maximum, relax.op.minimum), strict=False):
        if bound is not None:
            x = importer.block_builder.emit(narrowed(x, relax.const(int(bound), x.ty.dtype)))
    return x


CONVERTERS: dict[str, Callable[[Any, Any], Expr]] = {
    "div.Tensor": divide,
    "div.Scalar": divide,
    "reciprocal.default": reciprocal,
    "grid_sampler_2d.default": _grid_sampler("NCHW", [0, 3, 1, 2]),
    "grid_sampler_3d.default": _grid_sampler("NCDHW", [0, 4, 1, 2, 3]),
    "native_group_norm.default": group_norm,
    "clamp.default": clamp,
}
