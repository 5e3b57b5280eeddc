"""Arithmetic, comparisons, logic and activations, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime_tests.mil.ops import Operation, number


def _unary(function: Callable[[Tensor], Tensor]) -> Operation:
    return lambda x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda x, y: function(x, y)


def _real_div(x: Tensor, y: Tensor) -> Tensor:
    """Division; of integers, rounded towards minus infinity as coremltools' numpy does."""
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "floor")


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(1, -1, *[1] * (x.ndim - 2))


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _clip(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    return torch.clamp(x, number(alpha), number(beta))


def _prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * _per_channel(alpha, x))


def _softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return _per_channel(alpha, x) * F.softplus(_per_channel(beta, x) * x)


def _cast(x: Tensor, dtype: str) -> Tensor:
    """To another type; floats to integers towards zero. `program` wraps what the target cannot hold."""
    if dtype == "bool":
        return x != 0
    if dtype.startswith(("int", "uint")) and x.is_floating_point():
        return torch.trunc(x).to(torch.int64)
    return x.to(torch.int64) if dtype.startswith(("int", "uint")) else x.to(torch.float32)


def _select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


OPS: dict[str, Operation] = {
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "real_div": _real_div,
    "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "mod": _binary(torch.remainder),
    "pow": _binary(torch.pow),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "logical_not": _unary(torch.logical_not),
    "select": _select,
    "cast": _cast,
    "identity": _unary(lambda x: x),
    "abs": _unary(torch.abs),
    "acos": _unary(torch.acos),
    "asin": _unary(torch.asin),
    "atan": _unary(torch.atan),
    "atanh": _unary(torch.atanh),
    "ceil": _unary(torch.ceil),
    "cos": _unary(torch.cos),
    "cosh": _unary(torch.cosh),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "round": _unary(torch.round),
    "sign": _unary(torch.sign),
    "sin": _unary(torch.sin),
    "sinh": _unary(torch.sinh),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "tan": _unary(torch.tan),
    "tanh": _unary(torch.tanh),
    "threshold": lambda x, alpha: torch.clamp(x, min=number(alpha)),
    "clip": _clip,
    "log": lambda x, epsilon=1e-45: torch.log(x + number(epsilon)),
    "rsqrt": lambda x, epsilon=1e-12: 1 / torch.sqrt(x + number(epsilon)),
    "inverse": lambda x, epsilon=1e-4: 1 / (x + number(epsilon)),
    "relu": _unary(F.relu),
    "relu6": _unary(F.relu6),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, number(alpha)),
    "clamped_relu": lambda x, alpha, beta: torch.clamp(F.leaky_relu(x, number(alpha)), max=number(beta)),
    "thresholded_relu": lambda x, alpha: torch.where(x >= number(alpha), x, 0),
    "elu": lambda x, alpha: F.elu(x, number(alpha)),
    "prelu": _prelu,
    "gelu": _gelu,
    "silu": _unary(F.silu),
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": lambda x, alpha, beta: torch.clamp(number(alpha) * x + number(beta), 0, 1),
    "scaled_tanh": lambda x, alpha, beta: number(alpha) * torch.tanh(number(beta) * x),
    "softplus": _unary(F.softplus),
    "softplus_parametric": _softplus_parametric,
    "softsign": _unary(F.softsign),
    "linear_activation": lambda x, alpha, beta: number(alpha) * x + number(beta),
    "softmax": lambda x, axis=-1: torch.softmax(x, int(axis)),
}
