"""The multiple-choice knapsack: one scheme for each item, the least cost in a size, and how far from optimal it can be.

Dynamic programming over sizes in bins finds the choice; the linear relaxation bounds what any choice could reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from compiler.slots import Scheme

_BINS = 8192


@dataclass(frozen=True)
class Item:
    """Tensors that get one assignment: what each way to store them takes (bytes) and costs (nats of divergence)."""

    slots: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    bytes: tuple[int, ...]
    cost: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """An assignment: the index of each item's scheme, its bytes and divergence, and a bound that no choice beats."""

    picked: tuple[int, ...]
    bytes: int
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the cost can be from the optimum, as a share of it."""
        return 0.0 if self.cost <= self.bound else (self.cost - self.bound) / max(self.bound, 1e-30)


def solve(items: Sequence[Item], limit: int, kept: int = 0) -> Choice:
    """The choice of least cost that takes at most `limit` bytes together with `kept` ones that nothing is chosen for.

    Raises EdgewrightError when nothing fits.
    """
    smallest = sum(min(item.bytes) for item in items) + kept
    if smallest > limit:
        raise EdgewrightError(
            f"quantize.budget.size: {limit} bytes are too few; the smallest choice takes {smallest} bytes"
        )
    limit -= kept
    picked = _exact_in_bins(items, limit)
    size = sum(item.bytes[at] for item, at in zip(items, picked, strict=True))
    cost = sum(item.cost[at] for item, at in zip(items, picked, strict=True))
    return Choice(tuple(picked), size, cost, min(_relaxed(items, limit), cost))


def solve_for_cost(items: Sequence[Item], limit: float) -> Choice:
    """The smallest choice whose cost is at most `limit` nats. Raises EdgewrightError when none is."""
    least = sum(min(item.cost) for item in items)
    if least > limit:
        raise EdgewrightError(
            f"quantize.budget: a divergence of {limit:.3g} nats is out of reach; the best choice has {least:.3g}"
        )
    low, high = sum(min(item.bytes) for item in items), sum(max(item.bytes) for item in items)
    while high - low > max(low >> 14, 1):
        middle = (low + high) // 2
        low, high = (low, middle) if solve(items, middle).cost <= limit else (middle, high)
    return solve(items, high)


def _exact_in_bins(items: Sequence[Item], limit: int) -> list[int]:
    """Dynamic programming over bytes rounded up to bins: optimal but for the rounding, always within the limit."""
    base = sum(min(item.bytes) for item in items)
    unit = max(1, -(-(limit - base) // _BINS))
    room = (limit - base) // unit
    best: NDArray[np.float64] = np.zeros(room + 1)
    taken = []
    for item in items:
        extra = [-(-(size - min(item.bytes)) // unit) for size in item.bytes]
        table = np.full((len(extra), room + 1), np.inf)
        for at, (size, cost) in enumerate(zip(extra, item.cost, strict=True)):
            if size <= room:
                table[at, size:] = best[: room + 1 - size] + cost
        taken.append((table.argmin(0), extra))
        best = table.min(0)
    picked = []
    for choices, extra in reversed(taken):
        at = int(choices[room])
        picked.append(at)
        room -= extra[at]
    return picked[::-1]


def _relaxed(items: Sequence[Item], limit: int) -> float:
    """The cost of the linear relaxation, below which no choice can be: steps along every item's lower convex hull."""
    total, room = 0.0, limit
    steps: list[tuple[float, int]] = []
    for item in items:
        hull = _hull(sorted(zip(item.bytes, item.cost, strict=True)))
        total, room = total + hull[0][1], room - hull[0][0]
        steps += [((a[1] - b[1]) / (b[0] - a[0]), b[0] - a[0]) for a, b in pairwise(hull)]
    for slope, size in sorted(steps, reverse=True):
        used = min(size, room)
        total, room = total - slope * used, room - used
    return total


def _hull(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    hull: list[tuple[int, float]] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue
        while hull and (
            hull[-1][0] == point[0]
            or (
                len(hull) > 1
                and (hull[-2][1] - hull[-1][1]) * (point[0] - hull[-1][0])
                <= (hull[-1][1] - point[1]) * (hull[-1][0] - hull[-2][0])
            )
        ):
            hull.pop()
        hull.append(point)
    return hull
