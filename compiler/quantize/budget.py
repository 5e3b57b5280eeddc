"""Mixed precision under a budget: which bits and group each tensor gets, from what its rounding costs the model.

Sensitivity is measured: tensor by tensor (a fused projection counts as one, a tied table as one) the model runs on
held-back text with that tensor alone rounded, and the divergence from the unquantized model is what it costs. To
second order such costs add up, and a tensor's cost grows with the power of its rounding error, so one run per tensor
is enough: other bits and groups are scaled from it. The probe rounds under searched scales; what a calibrated method
leaves of that divergence is a measured share. Which to take is then a knapsack (`knapsack.py`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from artifacts import EdgewrightError, Progress
from compiler.models.base import Model
from compiler.quantize.knapsack import Item, solve, solve_for_cost
from compiler.quantize.rules import Assignment
from compiler.slots import HALF, Scheme, Slot, Weights
from recipes.schema import Budget, Rule

if TYPE_CHECKING:
    from torch import Tensor

_GROUPS = {4: (256, 128, 64, 32, 16), 8: (256, 128, 64, 32)}
_PROBE = Scheme(4, 64)
_HEAD_POSITIONS = 256
# (projections, tables): share of the probe's divergence that is left by a method, on the trained checkpoint at group 32
_LEFT = {"gptq": (0.25, 0.55)}
TOKENS = 2048
"""Calibration tokens that sensitivities are measured on."""


class Chosen(BaseModel):
    """A choice that can be kept: (bits, group) by slot, bytes of all weights, expected divergence, optimality gap."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schemes: dict[str, tuple[int, int]]
    bytes: int
    expected_kl: float
    gap: float


def candidates(slots: Sequence[Slot], symmetric: bool) -> tuple[Scheme, ...]:
    """Ways to store tensors together: every group that divides all their columns, at 4 and 8 bits."""
    return tuple(
        Scheme(bits, group, symmetric)
        for bits, groups in _GROUPS.items()
        for group in groups
        if all(slot.columns % group == 0 for slot in slots)
    )


def units(model: Model, slots: Sequence[Slot]) -> list[list[Slot]]:
    """Slots that get one assignment: fused projections together, every other matrix by itself."""
    by_name = {s.name: s for s in slots if not s.is_vector}
    together = [names for component in model.components for names in component.fused]
    fused = [[by_name.pop(n) for n in names if n in by_name] for names in together]
    return [[slot] for slot in by_name.values()] + [members for members in fused if members]


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

    from compiler.codes import dequantize
    from compiler.quantize.methods import mse

    return dequantize(mse.rounder(mse.MseOptions(candidates=8))(torch.from_numpy(rows), scheme))


def sensitivities(
    model: Model,
    slots: Sequence[Slot],
    table: Weights,
    tokens: NDArray[np.int32],
    symmetric: bool,
    progress: Progress,
    methods: Mapping[str, str],
    allowed: Callable[[Sequence[Slot], Scheme], bool] = lambda members, scheme: True,
    scale_bytes: int = 4,
) -> list[Item]:
    """Items with their costs, measured on tokens [sequences, length]; `table` holds the unquantized weights.

    slots: those to choose for; others stay as they are. methods: what will quantize each slot, by its name.
    allowed: whether every target takes a scheme for some slots.
    scale_bytes: what a stored scale takes (targets with float32 activations keep them in float32).
    """
    import torch

    groups = units(model, slots)
    with torch.no_grad():
        expected = _states(model, table, tokens)
        items = []
        for at, members in enumerate(groups):
            names = tuple(s.name for s in members)
            probe = Scheme(_PROBE.bits, min(_PROBE.group, math.gcd(*(s.columns for s in members))), symmetric)
            rounded = _Rounded(table, names, probe)
            measured = _mean_divergence(model, (table, expected), (rounded, _states(model, rounded, tokens)))
            schemes = tuple(s for s in candidates(members, symmetric) if allowed(members, s))
            if not schemes:
                raise EdgewrightError(f"quantize.budget: no bits and group of {names[0]!r} suit every target")
            power = {scheme: _noise(table, members, scheme) for scheme in {*schemes, probe}}
            measured *= _LEFT.get(methods[names[0]], (1.0, 1.0))[members[0].kind != "linear"]
            costs = tuple(measured * power[s] / max(power[probe], 1e-30) for s in schemes)
            sizes = tuple(sum(s.packed_bytes(m.rows, m.columns, scale_bytes) for m in members) for s in schemes)
            items.append(Item(names, schemes, sizes, costs))
            progress("measuring sensitivity", at + 1, len(groups))
    return items


def _states(model: Model, table: Weights, tokens: NDArray[np.int32]) -> Tensor:
    """Normalized last states, [sequences, length, hidden]."""
    import torch

    from compiler import dialect
    from compiler.golden import last_states

    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    decoder = model.at(tokens.shape[1]).component("decoder")
    with dialect.weights(table):
        return last_states(decoder, {}, torch.from_numpy(tokens).long(), positions)


def _mean_divergence(model: Model, original: tuple[Weights, Tensor], found: tuple[Weights, Tensor]) -> float:
    """Of two tables with their last states; logits exist for a few positions at a time."""
    from compiler import dialect
    from compiler.quantize.metrics import divergence

    decoder = model.component("decoder")
    slot = next(slot for slot in decoder.slots if slot.name == decoder.head)
    head = [[slot.name], [slot.rows], slot.columns, 16, 0, True]
    total = 0.0
    parts = [states.flatten(0, 1).split(_HEAD_POSITIONS) for _, states in (original, found)]
    for expected, other in zip(*parts, strict=True):
        with dialect.weights(original[0]):
            p = dialect.edge.linear(expected, *head)
        with dialect.weights(found[0]):
            q = dialect.edge.linear(other, *head)
        total += float(divergence(p, q).sum())
    return total / sum(len(part) for part in parts[0])


def _noise(table: Weights, members: Sequence[Slot], scheme: Scheme) -> float:
    """The mean square of the rounding error, from a sample of rows."""
    total = 0.0
    for slot in members:
        rows = table.rows(slot.name, 0, min(slot.rows, 256))
        total += float(np.square(round_rows(rows, scheme) - rows).mean()) * slot.columns * slot.rows
    return total


def choose(
    budget: Budget,
    assignment: Assignment,
    model: Model,
    table: Weights,
    tokens: NDArray[np.int32],
    allowed: Callable[[Sequence[Slot], Scheme], bool],
    progress: Progress,
) -> Chosen:
    """Bits and groups within a budget, and what they are expected to cost.

    Rules give method and symmetry; their bits and groups are replaced, but a tensor that they keep at 16 bits stays.
    A size counts all weights as the packed checkpoint stores them. The increase in perplexity that a divergence of d
    nats can bring is exp(d) - 1. Raises EdgewrightError when the budget is out of reach.
    """
    slots = model.slots
    free = [s for s in slots if s.name in assignment.rules]
    kept = sum(s.rows * s.columns * 2 for s in slots if s.name not in assignment.rules)
    if not free:
        raise EdgewrightError("quantize.budget: the rules keep every tensor at 16 bits; there is nothing to choose")
    symmetric = {rule.symmetric for rule in assignment.rules.values()}
    if len(symmetric) > 1:
        raise EdgewrightError("quantize.budget: rules that are symmetric and rules that are not cannot share a budget")
    methods = {name: rule.method for name, rule in assignment.rules.items()}
    items = sensitivities(model, free, table, tokens, symmetric.pop(), progress, methods, allowed)
    if budget.size is not None:
        choice = solve(items, budget.size, kept)
    else:
        assert budget.max_perplexity_increase is not None
        choice = solve_for_cost(items, math.log1p(budget.max_perplexity_increase))
    schemes = {s: item.schemes[at] for item, at in zip(items, choice.picked, strict=True) for s in item.slots}
    pairs = {slot: (scheme.bits, scheme.group) for slot, scheme in schemes.items()}
    return Chosen(schemes=pairs, bytes=choice.bytes + kept, expected_kl=choice.cost, gap=choice.gap)


def save(file: Path, chosen: Chosen) -> None:
    partial = file.with_suffix(f".partial-{os.getpid()}")
    partial.write_text(chosen.model_dump_json(), encoding="utf-8")
    partial.rename(file)


def load(file: Path) -> Chosen | None:
    """What `save` wrote; None when there is none, or when it is damaged."""
    try:
        return Chosen.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def rules_of(chosen: Chosen, assignment: Assignment) -> tuple[Rule, ...]:
    """The choice as plain rules, the commonest last as the general rule; slots that were not chosen for keep theirs."""
    found = {}
    for slot, rule in assignment.every.items():
        update: dict[str, Any] = {"match": "*"}
        if slot in chosen.schemes:
            bits, group = chosen.schemes[slot]
            update |= {"bits": bits, "group": group or "channel"}
        found[slot] = rule.model_copy(update=update)
    kinds = list(found.values())
    general = max(kinds, key=kinds.count)
    special = [rule.model_copy(update={"match": slot}) for slot, rule in found.items() if rule != general]
    return (*special, general)


def write_rules(folder: Path, rules: Sequence[Rule], chosen: Chosen) -> None:
    """`rules.yaml`: with these rules in the recipe instead of the budget, the search is not needed again."""
    import yaml

    heading = (
        f"# {chosen.bytes} bytes of weights, a divergence of {chosen.expected_kl:.3g} nats expected, "
        f"at most {100 * chosen.gap:.2g} % from the optimum\n"
    )
    lines = [rule.model_dump(exclude_defaults=True) | {"group": rule.group} for rule in rules]
    text = yaml.safe_dump({"rules": lines}, sort_keys=False, default_flow_style=None)
    (folder / "rules.yaml").write_text(heading + text, encoding="utf-8")


def bits_per_weight(slots: Sequence[Slot], schemes: Mapping[str, Scheme], scale_bytes: int = 2) -> float:
    """Stored bits for each weight of the matrices; scales count as fp16 unless told otherwise."""
    matrices = [s for s in slots if not s.is_vector]
    size = sum(schemes.get(s.name, HALF).packed_bytes(s.rows, s.columns, scale_bytes) for s in matrices)
    return 8 * size / sum(s.rows * s.columns for s in matrices)
