"""Fitting of few positive parameters, robust and the same everywhere: no step of it is random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SOFT = 0.05  # errors well beyond it count by their size, not its square: a bad row pulls no more than a good one
_PRIOR = 0.02


def fitted(
    residuals: Callable[[Floats], Floats], start: Sequence[float], prior: float | Sequence[float] = _PRIOR
) -> Floats:
    """Parameters that make residuals (logarithms of ratios) small, by Levenberg and Marquardt.

    start: also where a parameter stays that no row says anything about, held by `prior`.
    """
    begin, held = np.asarray(start, np.float64), np.asarray(prior, np.float64)

    def all_residuals(x: Floats) -> Floats:
        return np.concatenate([residuals(x), held * (x - begin)])

    def cost(r: Floats) -> float:
        return float(np.sum(np.sqrt(r * r + _SOFT**2)))

    x, damping = begin.copy(), 1e-2
    r = all_residuals(x)
    best = cost(r)
    for _ in range(200):
        steps = 1e-5 * np.eye(len(x))
        jacobian = np.stack([(all_residuals(x + step) - r) / 1e-5 for step in steps], 1)
        weight = 1 / np.sqrt(r * r + _SOFT**2)
        normal, slope = jacobian.T @ (jacobian * weight[:, None]), -jacobian.T @ (weight * r)
        gained = 0.0
        for _ in range(12):
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), slope)
            tried = all_residuals(x + move)
            if (found := cost(tried)) < best:
                gained, x, r, best, damping = best - found, x + move, tried, found, max(damping / 5, 1e-9)
                break
            damping *= 4
        if gained < 1e-9 * best:
            break
    return x


def errors(logs: Sequence[float], figure: Literal["rate", "time"] = "rate") -> dict[str, float]:
    """Median and 90th percentile of the relative error of a figure, from logarithms of predicted time over measured."""
    relative = np.abs(np.exp(np.asarray(logs) * (-1 if figure == "rate" else 1)) - 1)
    return {"rows": len(relative), "median": _round(np.median(relative)), "p90": _round(np.quantile(relative, 0.9))}


def half_width(logs: Sequence[float], level: float = 0.95) -> float:
    """The logarithm by which a band must reach to either side to hold this share of rows that were left out, counted
    as if one more had missed."""
    sizes = np.sort(np.abs(np.asarray(logs)))
    return float(sizes[min(len(sizes) - 1, int(np.ceil(level * (len(sizes) + 1))) - 1)])


def _round(value: float | np.floating) -> float:
    return round(float(value), 4)
