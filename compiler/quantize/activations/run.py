"""From quantized weights and calibration samples to what codes of activations stand for, component by component.

Ranges are found with all activations in float, on most samples; which convolutions keep floats is decided on the rest.
Nothing of the weights changes here, so that all targets compute with the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts import Progress
from compiler import dialect
from compiler.activations import Affine, Places, Rounding, places
from compiler.graph import Node, arguments, capture, op_name, slots_of
from compiler.heap import kept_large_blocks
from compiler.quantize.activations.ranges import Histograms
from compiler.quantize.activations.sensitivity import alone, choose, error
from compiler.quantize.activations.walk import Walk
from compiler.quantize.evidence import ActivationEvidence
from compiler.slots import Schemes, Weights

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from compiler.quantize.calibrated.task import Samples

_JUDGING = 8  # every so many samples judge what is rounded, and no range is found on them


def run(
    samples: Iterable[Samples],
    asked: Mapping[str, Collection[str]],
    least: Mapping[str, float],
    schemes: Schemes,
    weights: Weights,
    progress: Progress,
) -> tuple[dict[str, Rounding], list[ActivationEvidence]]:
    """Roundings of the components that `asked` names, with their convolutions, and what they cost.

    least: the SNR in dB that a component's outputs have to keep; of others nothing is kept in float. weights: the
    quantized ones. Raises EdgewrightError where a value is beyond float32.
    """
    roundings, evidence = {}, []
    with torch.no_grad(), kept_large_blocks(), dialect.weights(_Held(weights)):
        for found in samples:
            component = found.component
            if component.name in asked:
                program = capture(component, component.shipped[0], schemes)
                limit = least.get(component.name)
                rounding, cost = _component(component.name, program, asked[component.name], limit, found, progress)
                roundings[component.name] = rounding
                evidence.append(cost)
    return roundings, evidence


class _Held:
    """Dequantized once: a component of convolutions is small, and is run over and over."""

    def __init__(self, weights: Weights) -> None:
        self._whole = cache(weights.rows)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        whole = self._whole(name)
        return whole if whole.ndim == 1 else whole[start:stop]


def _component(
    name: str,
    program: ExportedProgram,
    slots: Collection[str],
    least: float | None,
    samples: Samples,
    progress: Progress,
) -> tuple[Rounding, ActivationEvidence]:
    inputs = list(samples.inputs)
    judging = inputs[_JUDGING - 1 :: _JUDGING] or inputs
    ranging = [sample for at, sample in enumerate(inputs) if at % _JUDGING != _JUDGING - 1]
    walk, whole = Walk(program), places(program, slots)
    done, total = 0, len(ranging) + len(whole.values) + len(judging) * (2 + len(slots).bit_length())

    def advance() -> None:
        nonlocal done
        done = min(done + 1, total)
        progress(f"calibrating activations of {name}", done, total)

    histograms = Histograms(whole.values)
    for sample in ranging:
        walk.answer(sample, histograms.see)
        advance()
    affines = {node: histograms.affine(source) for node, source in whole.values.items()}
    full = [walk.answer(sample) for sample in judging]

    def measure(kept: frozenset[str]) -> float:
        return error(walk, _part(program, affines, set(slots) - kept), judging, full, advance)

    touched = {slot: places(program, {slot}).values for slot in slots}
    measured = choose(touched, partial(alone, walk, affines, judging[0], full[0], advance), least, measure)
    part = _part(program, affines, set(slots) - set(measured.kept))
    # between values that are rounded for others, nothing is gained by floats
    between = {slots_of(n)[0] for n, end in whole.convolutions.items() if n.args[0] in part and end in part}
    kept = tuple(slot for slot in measured.kept if slot not in between)
    chosen = frozenset(slots) - set(kept)
    products = {slots_of(node)[0]: _products(node) for node in whole.convolutions}
    progress(f"calibrating activations of {name}", total, total)
    evidence = ActivationEvidence(
        component=name,
        values=len(part),
        convolutions=len(chosen),
        of=len(slots),
        products=sum(products[slot] for slot in chosen)
        / sum(_products(node) for node in walk.nodes if op_name(node) == "edge::convolution"),
        snr_db=round(measured.after, 2),
        all_snr_db=round(measured.before, 2),
        min_snr_db=least,
        alone={slot: round(decibels, 2) for slot, decibels in measured.alone.items()},
        kept=kept,
    )
    return Rounding(slots=chosen, values={node.name: affine for node, affine in part.items()}), evidence


def _part(program: ExportedProgram, affines: Mapping[Node, Affine], slots: Collection[str]) -> dict[Node, Affine]:
    """What is rounded where only these convolutions multiply codes."""
    found: Places = places(program, slots)
    return {node: affines[node] for node in found.values}


def _products(node: Node) -> int:
    """Multiplications of a convolution."""
    outputs: int = node.meta["val"].numel()
    inner: list[int] = arguments(node)["shape"][1:]
    return outputs * math.prod(inner)
