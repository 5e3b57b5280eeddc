"""A text decoder to be calibrated: its graph over whole sequences, head included, and how its positions are weighed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from compiler.dialect import edge
from compiler.matmul import linear
from compiler.models import decoder
from compiler.models.decoder import DecoderSpec
from compiler.quantize.calibrated.task import BLOCK_BYTES, Task, Weighting
from compiler.quantize.interface import Treatment
from compiler.slots import HALF, Slot, Weights
from compiler.tensors import row_blocks

if TYPE_CHECKING:
    from torch import Tensor


def task(
    spec: DecoderSpec,
    slots: Mapping[str, Slot],
    table: Weights,
    half_dtypes: Mapping[str, str],
    treatments: Mapping[str, Treatment],
    tokens: NDArray[np.int32],
) -> Task:
    """What calibrates a decoder on tokens [sequences, length], layer by layer."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    positions = torch.arange(ids.shape[1])[None]
    head = decoder.head_slot(spec)
    return Task(
        module=_WithHead(spec),
        samples=[(sequence[None], positions) for sequence in ids],
        cuts=(*(f"model.layers.{layer}." for layer in range(spec.layers)), "model.norm"),
        slots=slots,
        table=table,
        half_dtypes=half_dtypes,
        treatments=treatments,
        weightings={head: uncertainty(table, slots[head])},
    )


class _WithHead(torch.nn.Module):
    """ids, positions int64 [1, length] to logits; nothing runs the head itself, whose output nothing reads."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec, self.decoder = spec, decoder.build(spec, {}, "states")

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        spec = self.spec
        states, _ = self.decoder(ids, positions, decoder.empty_caches(spec, ids.shape[1]))
        scheme = (HALF.bits, HALF.group, HALF.symmetric)
        logits: Tensor = edge.linear(states, [decoder.head_slot(spec)], [spec.vocab], spec.hidden, *scheme)
        return logits


def uncertainty(table: Weights, head: Slot) -> Weighting:
    """A head's positions by how much their divergence feels a change of logits: 1 - sum of p², [length].

    To second order the divergence is half the variance of the logits' error under the model's own distribution p.
    For errors that are independent between tokens it is proportional to that. The head, which is large, is read once:
    sums over the vocabulary grow block by block, relative to the largest logit so far.
    """

    def weigh(states: Callable[[int], Tensor], samples: int) -> list[Tensor]:
        top = [torch.tensor(-torch.inf)] * samples
        sums, squares = [torch.zeros(())] * samples, [torch.zeros(())] * samples
        for start, stop in row_blocks(head.rows, head.columns, BLOCK_BYTES):
            rows = torch.from_numpy(table.rows(head.name, start, stop))
            for n in range(samples):
                logits = linear(states(n), rows)
                peak = torch.maximum(top[n], logits.amax(-1))
                shrink, powers = (top[n] - peak).exp(), (logits - peak[:, None]).exp()
                sums[n] = sums[n] * shrink + powers.sum(-1)
                squares[n] = squares[n] * shrink.square() + powers.square().sum(-1)
                top[n] = peak
        # rounding can go below zero
        return [(1 - square / total.square()).clamp(min=0) for square, total in zip(squares, sums, strict=True)]

    return weigh
