"""Which convolutions keep activations in float: the fewest that a limit of the outputs' error asks for, as measured.

Each value is rounded alone first, on a sample that no range was found on: what that costs the outputs orders them. The
worst ones stay floats, as many as the limit needs with all others rounded together, and with them the convolutions that
read or give them: a convolution multiplies codes only where both sides of it are. Weights stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.activations import Affine
from compiler.graph import Node
from compiler.quantize.activations.walk import Walk, rounding

if TYPE_CHECKING:
    from torch import Tensor

_EXACT_DB = 200.0


@dataclass(frozen=True)
class Measured:
    """alone: of each convolution, the SNR in dB of the outputs where the worst of its values alone is rounded, worst
    first. kept: those that keep floats. before, after: SNR with none kept, and with these."""

    alone: Mapping[str, float]
    kept: tuple[str, ...]
    before: float
    after: float


def alone(
    walk: Walk,
    affines: Mapping[Node, Affine],
    sample: tuple[Tensor, ...],
    full: Sequence[Tensor],
    advance: Callable[[], None],
) -> dict[Node, float]:
    """The SNR in dB of the outputs where one value alone is rounded. full: the outputs with all in float.

    The sample is walked through once; at each value what follows it is computed again.
    """
    power, found = _power(full), {}
    values, change = walk.begin(sample), rounding(affines)

    def after(node: Node, at: int) -> None:
        if node in affines:
            branch = walk.run({**values, node: change(node, values[node])}, start=at)
            found[node] = snr(power, _noise(full, [branch[out] for out in walk.outputs]))
            advance()

    for node in walk.inputs:
        after(node, 0)
    for at, node in enumerate(walk.nodes):
        walk.run(values, start=at, stop=at + 1)
        if node in values:
            after(node, at + 1)
    return found


def choose(
    touched: Mapping[str, Collection[Node]],
    order: Callable[[], Mapping[Node, float]],
    least: float | None,
    measure: Callable[[frozenset[str]], float],
) -> Measured:
    """The fewest convolutions that have to be kept for `least` dB. touched: the values that each makes rounded.
    order: `alone`, asked where it has to be known. measure: the SNR with these kept."""
    before = after = measure(frozenset())
    if least is None or before >= least:
        return Measured({}, (), before, after)
    found = order()
    by_slot = {slot: min(found[node] for node in nodes) for slot, nodes in touched.items()}
    worst = dict(sorted(by_slot.items(), key=lambda item: (item[1], item[0])))  # ties too have one order
    steps = sorted(set(worst.values()))  # convolutions around one value come together

    def kept(count: int) -> frozenset[str]:
        return frozenset(slot for slot, decibels in worst.items() if decibels in steps[:count])

    low, high, after = 0, len(steps), _EXACT_DB
    while high - low > 1:
        middle = (low + high) // 2
        if (reached := measure(kept(middle))) >= least:
            high, after = middle, reached
        else:
            low = middle
    return Measured(worst, tuple(slot for slot in worst if slot in kept(high)), before, after)


def error(
    walk: Walk,
    affines: Mapping[Node, Affine],
    samples: Sequence[tuple[Tensor, ...]],
    full: Sequence[Sequence[Tensor]],
    advance: Callable[[], None],
) -> float:
    """The SNR in dB of the outputs with some values rounded. full: the outputs with all in float, by sample."""
    power = wrong = 0.0
    for sample, wanted in zip(samples, full, strict=True):
        power += _power(wanted)
        wrong += _noise(wanted, walk.answer(sample, rounding(affines)))
        advance()
    return snr(power, wrong)


def snr(power: float, wrong: float) -> float:
    """In dB."""
    return min(10 * math.log10(power / wrong), _EXACT_DB) if wrong > 0 and power > 0 else _EXACT_DB


def _power(outputs: Sequence[Tensor]) -> float:
    return sum(float(out.double().square().sum()) for out in outputs)


def _noise(full: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    return sum(float((a.double() - b.double()).square().sum()) for a, b in zip(full, outputs, strict=True))
