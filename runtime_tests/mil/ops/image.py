"""Resizing and resampling of images [batch, channels, height, width]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime_tests.mil.ops import Operation, number


def _scales(height: Any, width: Any) -> tuple[float, float]:
    return float(number(height)), float(number(width))


def _upsample_nearest(x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> Tensor:
    return F.interpolate(x, scale_factor=_scales(scale_factor_height, scale_factor_width), mode="nearest")


def _resize_nearest(x: Tensor, target_size_height: Any, target_size_width: Any) -> Tensor:
    return F.interpolate(x, size=(int(target_size_height), int(target_size_width)), mode="nearest")


def _upsample_bilinear(
    x: Tensor,
    scale_factor_height: Any = 1,
    scale_factor_width: Any = 1,
    align_corners: Any = True,
    half_pixel_centers: Any = None,
) -> Tensor:
    corners = bool(align_corners)
    if half_pixel_centers is not None and bool(half_pixel_centers) == corners:
        raise NotImplementedError("upsample_bilinear with neither corners aligned nor half-pixel centers")
    scales = _scales(scale_factor_height, scale_factor_width)
    if not corners:
        return F.interpolate(x, scale_factor=scales, mode="bilinear", align_corners=False)
    size = [int(side * scale) for side, scale in zip(x.shape[2:], scales, strict=True)]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _resize_bilinear(
    x: Tensor, target_size_height: Any = 1, target_size_width: Any = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Sampling positions by mode, as the operation's page defines them; beyond the border its pixel counts."""
    height = _positions(x.shape[2], int(target_size_height), sampling_mode)
    width = _positions(x.shape[3], int(target_size_width), sampling_mode)
    return _lerp(_lerp(x, height, 2), width, 3)


def _positions(size: int, wanted: int, mode: str) -> Tensor:
    at = torch.arange(wanted, dtype=torch.float32)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT"):
        if wanted == 1 and mode == "STRICT_ALIGN_CORNERS":
            return torch.zeros(1)
        step = (size - 1) / (wanted - 1) if wanted > 1 else 0.0
        if mode == "DEFAULT":
            step = (size - size / wanted) / (wanted - 1) if wanted > 1 else 0.0
        offset = (size - 1) / 2 if wanted == 1 and mode == "ALIGN_CORNERS" else 0.0
        return at * step + offset
    if mode == "UNALIGN_CORNERS":
        return ((at + 0.5) * (size / wanted) - 0.5).clamp(0, size - 1)
    if mode == "OFFSET_CORNERS":
        return ((at + 0.5) * (size / wanted) - 0.5).clamp(0, size - 1)
    raise NotImplementedError(f"resize_bilinear with sampling_mode {mode!r}")


def _lerp(x: Tensor, at: Tensor, axis: int) -> Tensor:
    low = at.floor().long().clamp(0, x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    weight = (at - low).reshape(shape)
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight


_BORDERS = {"constant": "zeros", "border": "border", "reflection": "reflection"}


def _resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Any,
    coordinates_mode: str,
    align_corners: Any,
) -> Tensor:
    if coordinates_mode != "normalized_minus_one_to_one":
        raise NotImplementedError(f"resample with coordinates_mode {coordinates_mode!r}")
    if padding_mode == "constant" and number(padding_value) != 0:
        raise NotImplementedError("resample with a padding value other than zero")
    if padding_mode not in _BORDERS:
        raise NotImplementedError(f"resample with padding_mode {padding_mode!r}")
    return F.grid_sample(
        x, coordinates, mode=sampling_mode, padding_mode=_BORDERS[padding_mode], align_corners=bool(align_corners)
    )


OPS: dict[str, Operation] = {
    "upsample_nearest_neighbor": _upsample_nearest,
    "resize_nearest_neighbor": _resize_nearest,
    "upsample_bilinear": _upsample_bilinear,
    "resize_bilinear": _resize_bilinear,
    "resample": _resample,
}
