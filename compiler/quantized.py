"""A quantized checkpoint on disk, and what is known of it: what every package is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from artifacts.formats.golden import MAX_BYTES as GOLDEN_BYTES
from artifacts.manifest import CheckpointEntry, QuantizationGroup
from artifacts.stages import Store
from compiler.activations import Roundings
from compiler.models.base import Model
from compiler.quantize.packed import PackedWeights
from compiler.quantize.rules import Assignment
from compiler.slots import HALF, Slot
from compiler.task import Asked
from compiler.text import Held


@dataclass(frozen=True)
class Quantized:
    """A quantized checkpoint on disk with all that the targets need of it.

    store: where what is made from it is entered. reused: whether an earlier run made it. checked: what each target's
    `check` found, until its `build` takes it. rounded, roundings: of activations, what the rules ask for and what was
    found, by component.
    """

    folder: Path
    model: Model
    assignment: Assignment
    weights: PackedWeights
    checkpoint: CheckpointEntry
    groups: tuple[QuantizationGroup, ...]
    digest: str
    held_out: Held | None
    looked_at: NDArray[Any] | None
    store: Store
    reused: bool = False
    asked: Asked | None = None
    checked: dict[str, object] = field(default_factory=dict)
    rounded: Mapping[str, frozenset[str]] = field(default_factory=dict)
    roundings: Roundings = field(default_factory=dict)

    @property
    def doubled(self) -> dict[tuple[str, ...], int]:
        """Slots over one tensor of the checkpoint, which packages hold once for each, and the bytes that this costs."""
        found: dict[str, list[Slot]] = {}
        for slot in self.model.slots:
            found.setdefault(slot.tensor, []).append(slot)
        schemes = self.assignment.schemes
        costs = {
            tuple(s.name for s in same): [schemes.get(s.name, HALF).packed_bytes(s.rows, s.columns) for s in same]
            for same in found.values()
            if len(same) > 1
        }
        return {names: sum(sizes) - max(sizes) for names, sizes in costs.items()}

    @property
    def vector_bytes(self) -> int:
        """What a package holds at the most of vectors and questions, beside what its target writes."""
        return GOLDEN_BYTES + (0 if self.asked is None else sum(map(len, self.asked.media)))

    @property
    def unfused(self) -> list[tuple[str, ...]]:
        """Projections that one matmul could serve, had the rules not given its members different schemes."""
        return [names for part in self.model.components for names in part.unfused(self.assignment.schemes)]
