"""Normalizations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime_tests.mil.ops import Operation, integers, number


def _layer_norm(
    x: Tensor, axes: Any = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Any = 1e-5
) -> Tensor:
    dims = sorted(a % x.ndim for a in (range(x.ndim) if axes is None else integers(axes)))
    mean = x.mean(dims, keepdim=True)
    variance = (x - mean).square().mean(dims, keepdim=True)
    unit = (x - mean) / torch.sqrt(variance + number(epsilon))
    shape = [x.shape[i] if i in dims else 1 for i in range(x.ndim)]
    unit = unit if gamma is None else unit * gamma.reshape(shape)
    return unit if beta is None else unit + beta.reshape(shape)


def _instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Any = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=gamma, bias=beta, eps=number(epsilon))


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Any = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=number(epsilon))


def _l2_norm(x: Tensor, epsilon: Any = 1e-6) -> Tensor:
    """Over the last three axes."""
    dims = list(range(x.ndim - 3, x.ndim))
    return x / torch.sqrt(x.square().sum(dims, keepdim=True) + number(epsilon))


def _local_response(x: Tensor, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0) -> Tensor:
    return F.local_response_norm(x, int(size), number(alpha), number(beta), number(k))


OPS: dict[str, Operation] = {
    "layer_norm": _layer_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "l2_norm": _l2_norm,
    "local_response_norm": _local_response,
}
