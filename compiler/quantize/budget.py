"""Mixed precision under a budget: which bits and group each tensor gets, from what its rounding costs the model.

Sensitivity is measured: tensor by tensor (a fused projection counts as one, a tied table as one) the model runs on
held-back text with that tensor alone rounded, and the divergence from the unquantized model is what it costs. To
second order such costs add up, and a tensor's cost grows with the power of its rounding error, so one run per tensor
is enough: other bits and groups are scaled from it. Which to take is then a multiple-choice knapsack; its linear
relaxation bounds the optimum, so how far the choice can be from it is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Progress
from compiler.models import decoder
from compiler.models.decoder import DecoderSpec
from compiler.slots import HALF, Scheme, Slot, Weights
from recipes.schema import Rule

if TYPE_CHECKING:
    from torch import Tensor

_GROUPS = {4: (256, 128, 64, 32, 16), 8: (256, 128, 64, 32)}
_PROBE = Scheme(4, 64)
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


def solve(items: Sequence[Item], limit: int) -> Choice:
    """The choice of least cost in at most `limit` bytes. Raises EdgewrightError when nothing fits."""
    smallest = sum(min(item.bytes) for item in items)
    if smallest > limit:
        raise EdgewrightError(
            f"quantize.budget.size: {limit} bytes are too few; the smallest choice takes {smallest} bytes"
        )
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


def candidates(slots: Sequence[Slot], symmetric: bool) -> tuple[Scheme, ...]:
    """Ways to store tensors together: every group that divides all their columns, at 4 and 8 bits."""
    return tuple(
        Scheme(bits, group, symmetric)
        for bits, groups in _GROUPS.items()
        for group in groups
        if all(slot.columns % group == 0 for slot in slots)
    )


def units(spec: DecoderSpec, slots: Sequence[Slot]) -> list[list[Slot]]:
    """Slots that get one assignment: fused projections together, every other matrix by itself."""
    by_name = {s.name: s for s in slots if s.kind != "norm"}
    found = [[by_name.pop(n) for n in names] for names in decoder.fused_projections(spec)]
    return [[slot] for slot in by_name.values()] + found


class _Rounded:
    """The unquantized weights with a few slots rounded."""

    def __init__(self, table: Weights, slots: Sequence[str], scheme: Scheme) -> None:
        self._table, self._slots, self._scheme = table, frozenset(slots), scheme

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        rows = self._table.rows(name, start, stop)
        return round_rows(rows, self._scheme) if name in self._slots else rows


def round_rows(rows: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    """Rows as a scheme would hold them, under searched scales."""
    import torch

    from compiler.quantize import mse
    from compiler.quantize.packed import dequantize

    return dequantize(mse.rounder(mse.MseOptions(candidates=8))(torch.from_numpy(rows), scheme))


def sensitivities(
    spec: DecoderSpec,
    slots: Sequence[Slot],
    table: Weights,
    tokens: NDArray[np.int32],
    symmetric: bool,
    progress: Progress,
    scale_bytes: int = 4,
) -> list[Item]:
    """Items with their costs, measured on tokens [sequences, length]; `table` holds the unquantized weights.

    scale_bytes: what a stored scale takes (targets with float32 activations keep them in float32).
    """
    import torch

    groups = units(spec, slots)
    with torch.no_grad():
        expected = _logits(spec, table, tokens)
        items = []
        for at, members in enumerate(groups):
            names = tuple(s.name for s in members)
            probe = Scheme(_PROBE.bits, min(_PROBE.group, math.gcd(*(s.columns for s in members))), symmetric)
            measured = _mean_divergence(expected, _logits(spec, _Rounded(table, names, probe), tokens))
            schemes = candidates(members, symmetric)
            power = {scheme: _noise(table, members, scheme) for scheme in {*schemes, probe}}
            costs = tuple(measured * power[s] / max(power[probe], 1e-30) for s in schemes)
            sizes = tuple(sum(s.packed_bytes(m.rows, m.columns, scale_bytes) for m in members) for s in schemes)
            items.append(Item(names, schemes, sizes, costs))
            progress("measuring sensitivity", at + 1, len(groups))
    return items


def _logits(spec: DecoderSpec, table: Weights, tokens: NDArray[np.int32]) -> Tensor:
    import torch

    from compiler import dialect

    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    with dialect.weights(table):
        model = decoder.build(spec, {})
        caches = decoder.empty_caches(spec, tokens.shape[1], len(tokens))
        out: Tensor = model(torch.from_numpy(tokens).long(), positions, caches)[0]
    return out


def _mean_divergence(expected: Tensor, found: Tensor) -> float:
    from compiler.quantize.metrics import divergence

    return float(divergence(expected, found).mean())


def _noise(table: Weights, members: Sequence[Slot], scheme: Scheme) -> float:
    """The mean square of the rounding error, from a sample of rows."""
    total = 0.0
    for slot in members:
        rows = table.rows(slot.name, 0, min(slot.rows, 256))
        total += float(np.square(round_rows(rows, scheme) - rows).mean()) * slot.columns * slot.rows
    return total


def rules_of(items: Sequence[Item], choice: Choice, rules: Mapping[str, Rule]) -> list[Rule]:
    """The choice as plain rules, the commonest scheme and method last as the general rule.

    rules: the rule that each slot had, which gives method and options.
    """
    chosen: dict[str, Rule] = {}
    for item, at in zip(items, choice.picked, strict=True):
        scheme = item.schemes[at]
        for slot in item.slots:
            update = {"match": slot, "bits": scheme.bits, "group": scheme.group or "channel"}
            chosen[slot] = rules[slot].model_copy(update=update)
    kinds = [rule.model_copy(update={"match": "*"}) for rule in chosen.values()]
    general = max(kinds, key=kinds.count)
    special = [rule for rule, kind in zip(chosen.values(), kinds, strict=True) if kind != general]
    return [*special, general]


def bits_per_weight(slots: Sequence[Slot], schemes: Mapping[str, Scheme], scale_bytes: int = 2) -> float:
    """Stored bits for each weight of the matrices; scales count as fp16 unless told otherwise."""
    matrices = [s for s in slots if s.kind != "norm"]
    size = sum(schemes.get(s.name, HALF).packed_bytes(s.rows, s.columns, scale_bytes) for s in matrices)
    return 8 * size / sum(s.rows * s.columns for s in matrices)
