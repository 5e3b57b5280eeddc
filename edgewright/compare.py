"""Sides against the first of them: every figure, its difference with an interval, and what may explain it.

What lives here: rows and differences. What must not: how a figure was obtained, and how rows look
(`compare_command.py`).

An interval is one of three, and says which: "paired" differences of the same tokens, "rounds" that ran side by side, or
"combined" from both sides' own intervals as if their samples were independent, which is wider than need be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from artifacts import Check, Figure
from edgewright.ci.baseline import reasons
from edgewright.compare_sides import HOST, ONE, QUALITY, SIZE, Key, Side, figure_check
from runtime_tests.metrics import Float64, mean_interval
from runtime_tests.scores import Scores, difference, ratio, weights_scores

Method = Literal["paired", "rounds", "combined"]
_RELATIVE = ("bytes", "s", "tok/s", "perplexity", "rounds/s")
_PARITY = "parity"
_WEIGHTS = " of the weights alone"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Against(_Frozen):
    """A side's figure against the first side's: relative (0.02 is 2 % more) or in the figure's unit. interval: 95 %."""

    value: float
    relative: bool
    interval: tuple[float, float] | None = None
    method: Method | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the interval, where there is one, leaves out zero."""
        return self.value != 0 and (self.interval is None or not self.interval[0] <= 0 <= self.interval[1])


class Row(_Frozen):
    """One figure of all sides, None where a side has none; against: of each but the first."""

    group: str
    label: str
    cells: tuple[Check | None, ...]
    against: tuple[Against | None, ...]

    @property
    def same(self) -> bool:
        """Whether nothing tells the sides apart. Of parity, with a target's own checks and limits, verdicts count."""
        if self.group == _PARITY:
            return len({cell.verdict for cell in self.cells if cell}) == 1
        return len({(cell.verdict, cell.value) if cell else None for cell in self.cells}) == 1

    @property
    def unsure(self) -> bool:
        """Whether the sides differ by no more than their intervals."""
        verdicts = {cell.verdict if cell else "" for cell in self.cells}
        known = [item for item in self.against if item is not None]
        return not self.same and len(verdicts) == 1 and bool(known) and not any(item.told_apart for item in known)


class Compared(_Frozen):
    """rows: in the order of reading. reasons: by side's letter, what may explain its differences to the first."""

    rows: tuple[Row, ...]
    reasons: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


class Measured(_Frozen):
    """What was measured of a side for the comparison. rounds: by name of a speed, one value for each round."""

    scores: Scores | None = None
    rounds: dict[str, list[float]] = {}


def compared(sides: Sequence[Side], measured: Sequence[Measured] = ()) -> Compared:
    """The sides, and what was measured of each now."""
    notes = [f"{side.letter}: {note}" for side in sides for note in side.notes]
    checkpoints = list(dict.fromkeys(side.identity for side in sides if side.identity))
    if len(checkpoints) > 1:
        for side in sides:
            side.drop(*QUALITY)
        which = ", ".join(f"{side.letter} {side.checkpoint}" for side in sides if side.identity)
        notes.append(f"different checkpoints ({which}): size, memory and speed are compared, quality is not")
    found = list(measured) or [Measured() for _ in sides]
    if len(checkpoints) <= 1 and not any(item.scores for item in found):
        found = _of_weights(sides)
    for side, item in zip(sides, found, strict=True):
        side.put(_quality_checks(item.scores) if item.scores else [])
    return Compared(
        rows=tuple(_rows(sides, found)),
        reasons={side.letter: tuple(_reasons(sides[0], side)) for side in sides[1:]},
        notes=tuple(notes),
    )


def _of_weights(sides: Sequence[Side]) -> list[Measured]:
    """What golden vectors say of the quantized weights, where all that hold some hold them of the same tokens."""
    found = [side.golden for side in sides]
    known = [item for item in found if item is not None]
    alike = all(np.array_equal(a.tokens, b.tokens) for a, b in pairwise(known))
    if len(known) < 2 or not alike:
        return [Measured() for _ in sides]
    return [Measured(scores=weights_scores(item) if item else None) for item in found]


def _quality_checks(scores: Scores) -> list[Check]:
    """Three figures by the formulas of `runtime_tests.quality`, each with its interval; two of weights alone."""
    weights = scores.kl is None
    obtained = "declared" if weights else "emulated" if scores.stand_in else "measured"
    wanted = [
        ("lost", "perplexity_increase", "perplexity, change", "change"),
        ("same", "top1_agreement", "same token as unquantized", "fraction"),
        ("kl", "mean_kl", "mean KL to unquantized, lower bound", "nat"),
    ]
    checks = []
    for field, name, label, unit in wanted:
        values = scores.values(field)
        if values is None:
            continue
        value, around = float(values.mean()), mean_interval(values)
        if unit == "change":
            value, around = math.expm1(value), around and (math.expm1(around[0]), math.expm1(around[1]))
        figure = Figure(
            name=f"weights_{name}" if weights else name,
            value=value,
            unit=unit,
            obtained=obtained,
            stand_in=scores.stand_in,
            interval=around,
        )
        checks.append(figure_check(figure, "quality", label + (_WEIGHTS if weights else "")))
    return checks


def _rows(sides: Sequence[Side], measured: Sequence[Measured]) -> Iterator[Row]:
    keys = dict.fromkeys(key for side in sides for key in side.checks)
    groups = list(dict.fromkeys(key[0] for key in keys))
    rank = {"quality": 0, "task": 1, SIZE: 2, HOST: 4, _PARITY: 5}
    loaded = {key[:2] for key in keys if key[2]}
    for key in sorted(keys, key=lambda key: (rank.get(key[0], 3), groups.index(key[0]))):
        anywhere = (*key[:2], "")  # what is not for a platform is so under any load
        if key == anywhere and key[:2] in loaded:
            continue
        cells = [side.checks.get(key, side.checks.get(anywhere)) for side in sides]
        against = [_against(key, cells[0], cell, measured[0], item) for cell, item in zip(cells, measured, strict=True)]
        label = next(cell.label for cell in cells if cell is not None)
        yield Row(group=key[0], label=label, cells=tuple(cells), against=tuple(against[1:]))


def _against(key: Key, first: Check | None, second: Check | None, a: Measured, b: Measured) -> Against | None:
    if first is None or second is None or first.value is None or second.value is None or first.unit == "boolean":
        return None
    name = key[1].removeprefix("weights_")
    fields = {"perplexity_increase": "lost", "top1_agreement": "same", "mean_kl": "kl"}
    if key[0] == "quality" and a.scores and b.scores and name in fields:
        pair = (a.scores.values(fields[name]), b.scores.values(fields[name]))
        if pair[0] is not None and pair[1] is not None and (key[1] != name) == (a.scores.kl is None):
            return _paired(name, pair[0], pair[1], first.value)
    if key[0] == HOST and key[1] in a.rounds and key[1] in b.rounds:
        value, around = ratio(a.rounds[key[1]], b.rounds[key[1]])
        return Against(value=value, relative=True, interval=around, method="rounds")
    relative = first.unit in _RELATIVE and first.value > 0
    by = second.value - first.value
    value = second.value / first.value - 1 if relative else by
    if first.interval is None or second.interval is None or relative:
        return Against(value=value, relative=relative)
    half = math.hypot(*((ends[1] - ends[0]) / 2 for ends in (first.interval, second.interval)))
    return Against(value=value, relative=False, interval=(by - half, by + half), method="combined")


def _paired(name: str, first: Float64, second: Float64, value: float) -> Against:
    by, around = difference(first, second)
    if name == "perplexity_increase":  # of the unquantized perplexity, as the figure itself is

        def change(nats: float) -> float:
            return (1 + value) * math.expm1(nats)

        by, around = change(by), around and (change(around[0]), change(around[1]))
    return Against(value=by, relative=False, interval=around, method="paired")


def _reasons(first: Side, side: Side) -> Iterator[str]:
    """What else is different: between artifacts of ours as a baseline says it."""
    if first.what != side.what:
        yield f"runtime: {first.what} → {side.what}"
    if first.kind or side.kind:
        yield f"weights: {first.scheme} → {side.scheme}"
        return
    then, now = first.known, side.known
    if first.what != side.what:  # another package needs other tools, and its digest names its target
        both = {*then.tools} & {*now.tools}
        then, now = (b.model_copy(update={"tools": {k: b.tools[k] for k in both}, "digest": ""}) for b in (then, now))
    if not then.targets[ONE].tensors or not now.targets[ONE].tensors:
        then, now = (
            b.model_copy(update={"targets": {ONE: b.targets[ONE].model_copy(update={"tensors": {}})}})
            for b in (then, now)
        )
    if not then.host or not now.host:
        then = then.model_copy(update={"host": now.host})
    yield from reasons(then, now)
