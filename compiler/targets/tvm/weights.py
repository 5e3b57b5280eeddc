"""The tensors of a TVM artifact: which the graphs need, in file order, and where their rows come from.

Packed codes and scales go in as they lie in the quantized checkpoint; slots that one matmul serves are concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.slots import HALF, Slot
from compiler.targets.base import BuildJob, Job
from compiler.targets.tensors import Blocks, SlotReader, Tensor
from compiler.targets.tvm.captured import Captured, Frequencies, factors_of, frequencies_of
from compiler.tensors import row_blocks

Factors = tuple[float, int, int]


@dataclass(frozen=True)
class Matrix:
    """A matrix of the graph: one slot, or several over each other. group: columns of a scale."""

    name: str
    rows: int
    columns: int
    bits: int
    group: int

    @property
    def tensors(self) -> tuple[str, ...]:
        return (f"{self.name}.half",) if self.bits == 16 else (f"{self.name}.codes", f"{self.name}.scales")


@dataclass(frozen=True)
class Tables:
    """What is looked up by position: the rotary tables of the graphs and their factors on queries, each once."""

    rotary: tuple[Frequencies, ...]
    factors: tuple[Factors, ...]

    def rotary_names(self, table: Frequencies) -> tuple[str, str]:
        """Of its cosines and sines."""
        stem = _numbered("rotary", self.rotary.index(table))
        return f"{stem}.cos", f"{stem}.sin"

    def factors_name(self, table: Factors) -> str:
        return f"{_numbered('attention', self.factors.index(table))}.factors"


def _numbered(stem: str, at: int) -> str:
    return stem if at == 0 else f"{stem}.{at}"


def tables_of(captured: Captured) -> Tables:
    """The tables that the graphs ask for, in their order."""
    rotary: dict[Frequencies, None] = {}
    factors: dict[Factors, None] = {}
    for graph in captured.graphs.values():
        rotary |= dict.fromkeys(frequencies_of(node) for node in graph.calls("edge.rotary.default"))
        for node in graph.calls("edge.attention.default"):
            found = factors_of(node)
            if found is not None:
                factors[found] = None
    return Tables(tuple(rotary), tuple(factors))


def tensors(job: Job, tables: Tables, count: Callable[[int], None] = lambda count: None) -> list[Tensor]:
    """Every parameter in the order of the slots, then the tables. count: told of weights read.

    Of a job without weights, only to be lowered: 16-bit matrices pass for float16, and nothing can be read.
    """
    reader = SlotReader(job.weights, count) if isinstance(job, BuildJob) else None
    found: list[Tensor] = []
    for component in job.model.components:
        for members in component.matrices(job.schemes):
            found += _matrix(job, list(members), reader)
    for table in tables.rotary:
        found += rotary(table, tables.rotary_names(table))
    return found + [_factors(table, tables.factors_name(table)) for table in tables.factors]


def _matrix(job: Job, members: list[Slot], reader: SlotReader | None) -> list[Tensor]:
    slot, scheme = members[0], job.schemes.get(members[0].name, HALF)
    if slot.is_vector:
        return [Tensor(slot.name, "float32", (slot.columns,), reader.values(members) if reader else nothing)]
    rows = sum(s.rows for s in members)
    group = scheme.group or slot.columns
    matrix = Matrix("+".join(s.name for s in members), rows, slot.columns, scheme.bits, group)
    if scheme.bits == 16:
        dtype = half_kind(reader, members)
        stored = "uint16" if dtype == "bfloat16" else dtype
        blocks = _half(reader.values(members), dtype) if reader else nothing
        return [Tensor(matrix.tensors[0], stored, (rows, slot.columns), blocks)]
    codes, scales = matrix.tensors
    packed = (rows, slot.columns * scheme.bits // 8)
    return [
        Tensor(codes, "uint8", packed, reader.codes(members) if reader else nothing),
        Tensor(
            scales, job.options.scales, (rows, slot.columns // group), reader.scales(members) if reader else nothing
        ),
    ]


def nothing() -> Iterator[NDArray[Any]]:
    """The blocks of a tensor whose values are elsewhere."""
    return iter(())


def half_kind(reader: SlotReader | None, members: list[Slot]) -> str:
    """float16 or bfloat16, as all members are stored; float32 where they differ."""
    kinds = {reader.weights.half_dtype(s.name) if reader else "F16" for s in members}
    return {"F16": "float16", "BF16": "bfloat16"}.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def _half(values: Blocks, kind: str) -> Blocks:
    if kind != "bfloat16":
        return values
    return lambda: ((rows.view(np.uint32) >> 16).astype(np.uint16) for rows in values())


def rotary(table: Frequencies, names: tuple[str, str]) -> list[Tensor]:
    """cos and sin by position and frequency, as the dialect's reference defines them."""
    inverse, factor, positions = np.asarray(table[0], np.float32), np.float32(table[1]), table[2]

    def turned(function: Callable[[Any], Any]) -> Blocks:
        def blocks() -> Iterator[NDArray[Any]]:
            for start, stop in row_blocks(positions, len(inverse)):
                yield function(np.arange(start, stop, dtype=np.float32)[:, None] * inverse) * factor

        return blocks

    shape = (positions, len(inverse))
    return [Tensor(name, "float32", shape, turned(f)) for name, f in zip(names, (np.cos, np.sin), strict=True)]


def _factors(table: Factors, name: str) -> Tensor:
    """Factors on queries by position, as the dialect's reference defines them."""
    beta, period, positions = table
    periods = np.floor(np.arange(positions, dtype=np.float32) / np.float32(period))
    factors = 1 + np.float32(beta) * np.log(1 + periods)
    return Tensor(name, "float32", (positions,), lambda: iter([factors]))
