"""What a graph knows of a weight: its slot. A name, a shape and a scheme, never a value.

Also the two things that stand on the other side of a slot: `Weights`, a table that gives float rows of a slot
(the reference semantics read it), and `Scheme`, how a slot's values are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Kind = Literal["linear", "embedding", "convolution", "norm", "bias"]


@dataclass(frozen=True)
class Scheme:
    """How a weight matrix [rows, columns] is stored.

    bits: 4 or 8 (integer codes with group scales) or 16 (half precision, no codes).
    group: columns that share a scale; 0 for one scale per row (per channel). Without meaning at 16 bits.
    symmetric: codes are signed around zero; otherwise each group also has a zero point.
    """

    bits: int = 4
    group: int = 32
    symmetric: bool = True

    def groups(self, columns: int) -> int:
        """Number of scales per row."""
        return columns // self.group if self.group else 1

    def packed_bytes(self, rows: int, columns: int, scale_bytes: int = 4) -> int:
        """Bytes of codes, scales and packed zero points (16 bits: of the values)."""
        if self.bits == 16:
            return rows * columns * 2
        groups = rows * self.groups(columns)
        zeros = 0 if self.symmetric else groups * self.bits // 8
        return rows * columns * self.bits // 8 + groups * scale_bytes + zeros


HALF = Scheme(bits=16, group=0)


@dataclass(frozen=True)
class Slot:
    """A weight by name, a matrix [rows, columns] or a vector [columns]. `tensor` is its name in the checkpoint.

    kernel: of a convolution, the sizes behind [out, in / groups]; its rows are the outputs, its columns all the rest.
    """

    name: str
    tensor: str
    rows: int
    columns: int
    kind: Kind
    kernel: tuple[int, ...] = ()

    @property
    def is_vector(self) -> bool:
        """Whether it has one dimension; vectors stay floats and no rule is asked about them."""
        return self.kind in ("norm", "bias")

    @property
    def key(self) -> str:
        """The name of its float values in a checkpoint that is named by slots."""
        return self.name if self.kind == "bias" else f"{self.name}.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        """As the checkpoint stores it."""
        if self.is_vector:
            return (self.columns,)
        return (self.rows, self.columns // math.prod(self.kernel), *self.kernel)


class Weights(Protocol):
    """A table of float weights by slot name."""

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows `start:stop` of a slot, float32 [stop - start, columns] (a vector: [columns])."""
        ...


Schemes = Mapping[str, Scheme]
