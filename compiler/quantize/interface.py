"""What a quantization method is: one module in `methods/` with these names, found by its `OPTIONS`.

    OPTIONS                              light pydantic model of what a rule may say to it
    CALIBRATED                           whether it looks at the inputs of a tensor (`Inputs`); absent means no
    rounder(options, inputs) -> Rounder
    corrects(options) -> bool            whether it looks at the drift of the inputs; absent means no
    folding(options) -> Folding | None   only methods that rescale channels (see `awq`)

A rounder takes rows of a matrix, any number of them, and gives their codes: rows are independent of each other once
the inputs are known, so a matrix never has to be in memory as a whole. Importing a method loads no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.codes import Codes
from compiler.matmul import linear
from compiler.slots import Scheme

if TYPE_CHECKING:
    from torch import Tensor

Rounder = Callable[["Tensor", Scheme], Codes]
"""Float32 rows [rows, columns] and their scheme to codes. Raises OverflowError when a scale does not fit in fp16."""

Folding = Callable[[Sequence[tuple["Tensor", Scheme]], "Tensor", "Tensor"], "Tensor"]
"""Factors [channels] by which to divide the inputs of matrices and multiply their columns: from the matrices
[rows, columns] that share the inputs, with their schemes; the inputs' Hessian; and int64 [columns], the channel of each
column."""


@dataclass
class Inputs:
    """What calibration knows of a matrix's inputs x, as means over calibration tokens, float32 [columns, columns].

    hessian: x xᵀ, where x is what the matrix gets with everything before it quantized.
    drift: x (x' - x)ᵀ, where x' is what it gets in the unquantized model; None when there is no difference.
    damping: float32 [columns], what a rounder has added to the Hessian's diagonal. name: of the matrix, in messages.

    Each takes 340 MB for 9,216 columns, so a rounder may change both in place: it takes the drift and notes damping.
    """

    hessian: Tensor
    drift: Tensor | None = None
    damping: Tensor | None = None
    name: str = "a matrix"

    def copy(self) -> Inputs:
        """One that a rounder can use up."""
        return Inputs(self.hessian.clone(), None if self.drift is None else self.drift.clone(), name=self.name)

    def power(self, rows: Tensor) -> float:
        """Mean square of the outputs of `rows` [rows, columns], summed over the rows."""
        total = float((linear(rows, self.hessian) * rows).sum())
        return total if self.damping is None else total - float((rows.square() @ self.damping).sum())


@dataclass(frozen=True)
class Treatment:
    """How one slot is quantized: by which method, into what, and what the method asks for.

    prepare: from a matrix's inputs to its rounder; equal for slots whose rounders are.
    calibrated, corrects: whether that looks at the inputs, and at their drift. folding: its search for factors, if any.
    """

    method: str
    scheme: Scheme
    prepare: Callable[[Inputs | None], Rounder]
    calibrated: bool
    corrects: bool
    folding: Folding | None
