"""Sums over what the samples put into a matrix, which become its `Inputs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from artifacts import EdgewrightError
from compiler.matmul import add_products, add_squares, mirror
from compiler.quantize.calibrated.states import Spill
from compiler.quantize.calibrated.task import Weighting
from compiler.quantize.interface import Inputs

if TYPE_CHECKING:
    from torch import Tensor


class Gathered:
    """Sums of products of columns, and how many positions they are over."""

    def __init__(self, columns: int, drift: bool) -> None:
        self._hessian = torch.zeros(columns, columns)
        self._drift = torch.zeros(columns, columns) if drift else None
        self._positions = 0

    def add(self, x: Tensor, full: Tensor | None = None) -> None:
        """x, full: [positions, columns], the inputs and those of the unquantized model."""
        add_squares(self._hessian, x)
        if self._drift is not None and full is not None:
            add_products(self._drift, x, full - x)
        self._positions += len(x)

    def inputs(self, name: str) -> Inputs:
        """Of the matrix `name`. Raises EdgewrightError when they are beyond float32."""
        mirror(self._hessian)
        self._hessian /= self._positions
        if self._drift is not None:
            self._drift /= self._positions
        if not self._hessian.diagonal().isfinite().all():
            raise EdgewrightError(
                f"calibration: the model computes inputs of {name} that are NaN or too large for float32; its weights "
                "are damaged, or config.json does not belong to them"
            )
        return Inputs(self._hessian, self._drift, name=name)


def gather(
    sums: Gathered,
    samples: int,
    read: Callable[[int], Tensor],
    full: Callable[[int], Tensor] | None,
    weighting: Weighting | None,
    file: Path,
) -> None:
    """Add what all samples put into a matrix.

    read, full: of a sample, [positions, columns]; `read` is called once for each. file: to keep it, where positions
    have to be weighed before they are added.
    """
    if weighting is None:
        for sample in range(samples):
            x = read(sample)
            sums.add(x, None if full is None else full(sample))
        return
    first = read(0)
    spill = Spill(file, samples, tuple(first.shape), first.dtype)
    spill.create()
    for sample in range(samples):
        spill.write(sample, read(sample) if sample else first)
    for sample, weight in enumerate(weighting(spill.read, samples)):
        root = weight.sqrt()[:, None]
        sums.add(spill.read(sample) * root, None if full is None else full(sample) * root)
    spill.delete()
