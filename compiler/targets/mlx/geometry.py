"""Sizes that MLX's kernels take, and what a recipe's sizes become for them. Imports no MLX."""

from __future__ import annotations

from dataclasses import replace

from compiler.slots import Scheme, Slot

_GROUPS = (32, 64, 128)
_BITS = (4, 8)


def stored(scheme: Scheme, columns: int) -> Scheme:
    """How MLX holds a matrix of this scheme, if `refusal` lets it pass.

    One scale per row, or a group larger than MLX's, becomes the largest of its groups that divides it, with the scale
    repeated: the same values in a few bytes more. Rows of a convolution that none of them divides keep their one scale.
    """
    if scheme.bits == 16:
        return scheme
    return replace(scheme, group=max(_dividing(scheme.group or columns), default=scheme.group))


def in_bytes(scheme: Scheme, columns: int) -> bool:
    """Whether a convolution's matrix lies as bytes, [rows, columns], which MLX's groups do not divide."""
    return (scheme.bits, scheme.group) == (8, 0) and not _dividing(columns)


def refusal(slot: Slot, scheme: Scheme) -> str | None:
    """Why MLX cannot hold a slot in this scheme, and the nearest that it can; None when it can."""
    if scheme.bits == 16:
        return None
    if scheme.bits not in _BITS:
        nearest = min(_BITS, key=lambda bits: abs(bits - scheme.bits))
        return f"{scheme.bits} bits cannot be lowered to MLX; use {nearest}"
    group = scheme.group or slot.columns
    if slot.columns % group == 0 and _dividing(group):
        return None
    if slot.kernel and (scheme.bits, scheme.group) == (8, 0):
        return None  # bytes, see `in_bytes`
    fitting = _dividing(slot.columns)
    if not fitting:
        return f"{slot.columns} columns divide into none of MLX's groups of 32, 64 or 128; keep it at bits: 16"
    nearest = min(fitting, key=lambda size: abs(size - group))
    if slot.columns % group:
        return f"groups of {group} do not divide {slot.columns} columns; use group: {nearest}"
    return f"MLX has no groups of {group}, only groups of 32, 64 and 128; use group: {nearest}"


def kv_group(head_dim: int) -> int | None:
    """The group in which a KV cache is quantized: MLX's default of 64 where it divides the head, else 32."""
    return next((group for group in (64, 32) if head_dim % group == 0), None)


def _dividing(columns: int) -> list[int]:
    return [group for group in _GROUPS if columns % group == 0]
