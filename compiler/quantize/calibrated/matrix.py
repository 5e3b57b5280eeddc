"""One matrix through a rounder, block by block: its packed form, and what was lost on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from artifacts import EdgewrightError
from compiler.codes import dequantize, pack
from compiler.quantize.calibrated.files import PackedMatrix
from compiler.quantize.evidence import TensorEvidence
from compiler.quantize.interface import Inputs, Rounder, Treatment
from compiler.slots import Slot

if TYPE_CHECKING:
    from torch import Tensor


def quantize_matrix(
    slot: Slot,
    treatment: Treatment,
    rounder: Rounder,
    blocks: Iterator[tuple[int, Tensor]],
    inputs: Inputs,
    out: Tensor | None = None,
) -> tuple[PackedMatrix, TensorEvidence]:
    """Round a matrix block by block: its packed form, and what was lost.

    blocks: (first row, rows). out: float32 [rows, columns] to fill with the dequantized rows, if they are wanted.
    """
    scheme = treatment.scheme
    groups = scheme.groups(slot.columns)
    packed = np.empty((slot.rows, slot.columns * scheme.bits // 8), np.uint8)
    scales = np.empty((slot.rows, groups), np.float32)
    zeros = None if scheme.symmetric else np.empty((slot.rows, groups), np.int8)
    sums = np.zeros(4)
    for start, rows in blocks:
        try:
            codes = rounder(rows, scheme)
        except OverflowError as error:
            raise EdgewrightError(
                f"tensor {slot.tensor!r}: {error}; keep it at 16 bits with a rule {{match: {slot.name}, bits: 16}}"
            ) from error
        stop = start + len(rows)
        packed[start:stop], scales[start:stop] = pack(codes.codes, scheme.bits), codes.scales
        if zeros is not None and codes.zeros is not None:
            zeros[start:stop] = codes.zeros
        rounded = torch.from_numpy(dequantize(codes))
        if out is not None:
            out[start:stop] = rounded
        wrong = rounded - rows
        sums[:2] += float(rows.square().sum()), float(wrong.square().sum())
        sums[2:] += inputs.power(rows), inputs.power(wrong)
    output_error = math.sqrt(max(sums[3], 0.0) / sums[2]) if sums[2] > 0 else None
    evidence = TensorEvidence.of(slot, scheme, treatment.method, sums[0], sums[1], output_error)
    return PackedMatrix(packed, scales, zeros, scheme.bits), evidence
