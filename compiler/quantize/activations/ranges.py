"""What the codes of one value stand for: from how its elements are spread over calibration samples.

The ends of a range are cut where that makes the squared error least: of rounding, which a narrower range makes finer,
and of what lies beyond it. Both ends are cut by the same share, and zero is always a code of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from compiler.activations import Affine

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.graph import Node

_BINS = 4096  # from -limit to limit
_SHARES = 0.95 ** np.arange(32)  # of the whole range, to a fifth of it


class Histograms:
    """How the elements of each of `nodes` are spread, between limits that are powers of two and grow as values do."""

    def __init__(self, nodes: Collection[Node]) -> None:
        self._limits = dict.fromkeys(nodes, 2.0**-20)
        self._extremes: dict[Node, tuple[float, float]] = {}
        self._counts = {node: np.zeros(_BINS) for node in nodes}

    def see(self, node: Node, value: Tensor) -> Tensor:
        """Count a value, which stays as it is. Raises EdgewrightError where it is beyond float32."""
        if node not in self._limits:
            return value
        least, most = (float(v) for v in value.aminmax())
        if not np.isfinite([least, most]).all():
            raise EdgewrightError(
                f"calibration: {node.name} is NaN or too large for float32; the checkpoint's weights are damaged, or "
                "config.json does not belong to them"
            )
        low, high = self._extremes.get(node, (0.0, 0.0))
        self._extremes[node] = min(low, least), max(high, most)
        while self._limits[node] < max(-least, most):
            self._limits[node] *= 2
            pairs = self._counts[node].reshape(-1, 2).sum(1)
            self._counts[node] = np.pad(pairs, _BINS // 4)
        limit = self._limits[node]
        self._counts[node] += value.flatten().histc(_BINS, -limit, limit).double().numpy()
        return value

    def affine(self, node: Node) -> Affine:
        """The affine that fits a value best."""
        return fitted(*self._extremes[node], self._limits[node], self._counts[node])


def fitted(low: float, high: float, limit: float, counts: NDArray[np.float64]) -> Affine:
    """The affine of least squared error for elements between `low` and `high`, counted in bins of equal width between
    -limit and limit."""
    if low == high:
        return Affine(scale=1.0, zero=0)
    centres = limit * (2 * (np.arange(len(counts)) + 0.5) / len(counts) - 1)
    found = [affine_of(low * share, high * share) for share in _SHARES]
    errors = []
    for affine in found:
        codes = np.clip(np.round(centres / affine.scale) + affine.zero, 0, 255)
        beyond = (centres < -affine.zero * affine.scale) | (centres > (255 - affine.zero) * affine.scale)
        # within a bin elements lie anywhere: what rounding costs them is what it costs on average
        wrong = np.where(beyond, ((codes - affine.zero) * affine.scale - centres) ** 2, affine.scale**2 / 12)
        errors.append(float(counts @ wrong))
    return found[int(np.argmin(errors))]


def affine_of(low: float, high: float) -> Affine:
    """Codes over a range that holds zero."""
    scale = max(float(np.float32((high - low) / 255)), float(np.finfo(np.float32).tiny))
    return Affine(scale=scale, zero=int(np.clip(np.round(-low / scale), 0, 255)))
