"""The tensors of a TVM artifact: which the graph needs, in file order, and where their rows come from.

Packed codes and scales go in as they lie in the quantized checkpoint; slots that one matmul serves are concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.models import decoder
from compiler.slots import HALF, Schemes, Slot
from compiler.targets.base import Job
from compiler.targets.tvm.params import Tensor
from compiler.tensors import row_blocks

ROTARY = ("rotary.cos", "rotary.sin")
FACTORS = "attention.factors"

Blocks = Iterable[NDArray[Any]]
Frequencies = tuple[list[float], float]


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


def tensors(
    job: Job, positions: int, frequencies: Frequencies, scale_dtype: str, count: Callable[[int], None]
) -> list[Tensor]:
    """Every parameter in the order of the graph.

    positions: rows of the rotary tables; frequencies: `decoder.rotary_frequencies`; count: told of weights read.
    """
    found: list[Tensor] = []
    for members in matrices(job):
        slot, scheme = members[0], job.schemes.get(members[0].name, HALF)
        if slot.is_vector:
            found.append(Tensor(slot.name, "float32", (slot.columns,), _norm(job, slot.name)))
            continue
        rows = sum(s.rows for s in members)
        matrix = Matrix(
            "+".join(s.name for s in members), rows, slot.columns, scheme.bits, scheme.group or slot.columns
        )
        if scheme.bits == 16:
            dtype = half_kind(job, members)
            stored = "uint16" if dtype == "bfloat16" else dtype
            found.append(Tensor(matrix.tensors[0], stored, (rows, slot.columns), _half(job, members, dtype, count)))
            continue
        shape = (rows, slot.columns * scheme.bits // 8)
        found.append(Tensor(matrix.tensors[0], "uint8", shape, _codes(job, members, count)))
        shape = (rows, slot.columns // matrix.group)
        found.append(Tensor(matrix.tensors[1], scale_dtype, shape, _scales(job, members)))
    return found + _tables(job.spec, positions, frequencies)


def matrices(job: Job) -> list[list[Slot]]:
    """Slots by the op that reads them: fused where their schemes agree, as `decoder.build` fuses them."""
    return grouped(job.spec, job.slots, job.schemes)


def grouped(spec: decoder.DecoderSpec, slots: list[Slot], schemes: Schemes) -> list[list[Slot]]:
    by_name = {s.name: s for s in slots}
    fused: dict[str, list[str]] = {}
    for names in decoder.fused_projections(spec):
        if len({schemes.get(n, HALF) for n in names}) == 1:
            fused |= dict.fromkeys(names, names)
    found: list[list[Slot]] = []
    for slot in slots:
        names = fused.get(slot.name, [slot.name])
        if names[0] == slot.name:
            found.append([by_name[n] for n in names])
    return found


def half_kind(job: Job, members: list[Slot]) -> str:
    """float16 or bfloat16, as all members are stored; float32 where they differ."""
    kinds = {job.weights.half_dtype(s.name) for s in members}
    return {"F16": "float16", "BF16": "bfloat16"}.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def _norm(job: Job, name: str) -> Callable[[], Blocks]:
    return lambda: [job.weights.rows(name)]


def _blocks(members: list[Slot], read: Callable[[str, int, int], NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for slot in members:
        for start, stop in row_blocks(slot.rows, slot.columns):
            yield read(slot.name, start, stop)


def _codes(job: Job, members: list[Slot], count: Callable[[int], None]) -> Callable[[], Blocks]:
    def read(name: str, start: int, stop: int) -> NDArray[Any]:
        count((stop - start) * members[0].columns)
        return job.weights.packed(name, start, stop)

    return lambda: _blocks(members, read)


def _scales(job: Job, members: list[Slot]) -> Callable[[], Blocks]:
    return lambda: _blocks(members, job.weights.scales)


def _half(job: Job, members: list[Slot], kind: str, count: Callable[[int], None]) -> Callable[[], Blocks]:
    def read(name: str, start: int, stop: int) -> NDArray[Any]:
        count((stop - start) * members[0].columns)
        rows = job.weights.rows(name, start, stop)
        return (rows.view(np.uint32) >> 16).astype(np.uint16) if kind == "bfloat16" else rows

    return lambda: _blocks(members, read)


def _tables(spec: decoder.DecoderSpec, positions: int, frequencies: Frequencies) -> list[Tensor]:
    """cos and sin by position and frequency, and the factors on queries, as the dialect's reference defines them."""
    inverse, factor = np.asarray(frequencies[0], np.float32), np.float32(frequencies[1])

    def turned(function: Callable[[Any], Any]) -> Callable[[], Blocks]:
        def blocks() -> Iterator[NDArray[Any]]:
            for start, stop in row_blocks(positions, len(inverse)):
                yield function(np.arange(start, stop, dtype=np.float32)[:, None] * inverse) * factor

        return blocks

    shape = (positions, len(inverse))
    found = [Tensor(name, "float32", shape, turned(f)) for name, f in zip(ROTARY, (np.cos, np.sin), strict=True)]
    if spec.query_beta:
        periods = np.floor(np.arange(positions, dtype=np.float32) / np.float32(spec.query_period))
        factors = 1 + np.float32(spec.query_beta) * np.log(1 + periods)
        found.append(Tensor(FACTORS, "float32", (positions,), lambda: [factors]))
    return found
