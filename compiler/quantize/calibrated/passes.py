"""One segment on its way from its weights to codes: passes over the samples, and what is quantized between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from artifacts import Progress
from compiler.graph import Node
from compiler.quantize.calibrated.ahead import inputs_ahead, looks_ahead
from compiler.quantize.calibrated.factors import Factors
from compiler.quantize.calibrated.files import SegmentFile
from compiler.quantize.calibrated.gathered import Gathered, gather
from compiler.quantize.calibrated.kinds import columns_of, is_watched
from compiler.quantize.calibrated.matrix import quantize_matrix
from compiler.quantize.calibrated.segments import Point, Program, Segment
from compiler.quantize.calibrated.stream import Stream
from compiler.quantize.calibrated.task import BLOCK_BYTES, Quantized, Task
from compiler.quantize.evidence import LayerEvidence, TensorEvidence
from compiler.quantize.interface import Inputs
from compiler.slots import Slot
from compiler.tensors import row_blocks

if TYPE_CHECKING:
    from torch import Tensor


class Pass:
    """The work on one segment: `run` does it."""

    def __init__(
        self,
        task: Task,
        program: Program,
        segment: Segment,
        full: Stream,
        stream: Stream,
        quantized: Quantized,
        work: Path,
        advance: Callable[[], None],
        progress: Progress,
    ) -> None:
        self.task, self.program, self.segment = task, program, segment
        self.full, self.stream, self.quantized = full, stream, quantized
        self.work, self.advance, self.progress = work, advance, progress
        self.samples = range(len(task.samples))
        self.factors = Factors(task, program, segment, quantized)
        self.evidence: list[TensorEvidence] = []

    @staticmethod
    def units(segment: Segment) -> int:
        """Of progress, for each sample: a pass of either stream, and for each point its inputs and its quantizing."""
        return 2 + 2 * len(segment.points)

    def run(self, file: SegmentFile) -> None:
        kept = self.segment.kept
        self.full_pass()
        for at, point in enumerate(self.segment.points):
            self.quantize(point, kept[at], kept[at + 1])
        layer = self.last_pass(kept[-2], kept[-1])
        file.save(self.quantized.matrices, self.quantized.norms, self.evidence, layer)

    def full_pass(self) -> None:
        """Run the unquantized segment: what the next one starts from, what drifts are measured from, what folds."""
        points, kept = self.segment.points, self.segment.kept
        drifting = [node for at, point in enumerate(points) if self.corrects(point) for node in kept[at + 1]]
        folded = [point for point in points if self.factors.place(point) is not None]
        sums = {point: Gathered(self.task.slots[point.slots[0]].columns, drift=False) for point in folded}
        stored = tuple(dict.fromkeys((*kept[-1], *drifting)))
        plan = self.program.plan(kept[0], (*stored, *(point.value for point in folded)))
        new = self.full.create(stored)
        self.full.hold(plan)
        for sample in self.samples:
            values = self.full.run(plan, sample)
            self.full.write(values, new, sample)
            for point in folded:
                sums[point].add(columns_of(point.ops[0], values))
            self.advance()
        self.full.release(plan)
        for point in folded:
            self.factors.search(point, sums.pop(point).inputs(point.slots[0]).hessian)

    def quantize(self, point: Point, before: Sequence[Node], after: Sequence[Node]) -> None:
        """Run the quantized stream up to a point, and quantize its matrices from what they get there.

        before, after: the values in files as it starts, and when it has reached the point.
        """
        own = [slot for slot in point.slots if not self.ahead(slot)]
        inputs = self.inputs(point, before, after)
        if inputs is not None:
            self.round(point, own, inputs)
            del inputs
        for slot in set(point.slots) - set(own):
            found = inputs_ahead(self.task, self.program, self.segment, slot, self.full, self.work, self.progress)
            self.round(point, [slot], found)
        for _ in self.samples:
            self.advance()

    def ahead(self, slot: str) -> bool:
        return looks_ahead(self.task, self.program, slot)

    def watches(self, point: Point) -> bool:
        """Whether what a point gets in this segment is looked at, and tells columns apart."""
        return is_watched(point.ops[0]) and not all(map(self.ahead, point.slots))

    def corrects(self, point: Point) -> bool:
        """Whether the drift of that is looked at."""
        return self.watches(point) and any(self.task.treatments[s].corrects for s in point.slots if not self.ahead(s))

    def inputs(self, point: Point, before: Sequence[Node], after: Sequence[Node]) -> Inputs | None:
        """Bring the quantized stream to a point; what its matrices get there, None if none is quantized from that."""
        op, name = point.ops[0], point.slots[0]
        watches, columns = self.watches(point), self.task.slots[name].columns
        plan = self.program.plan(before, (*after, point.value) if watches else after)
        new = self.stream.create(after)
        self.stream.hold(plan)

        def read(sample: int) -> Tensor:
            values = self.stream.run(plan, sample)
            self.stream.write(values, new, sample)
            self.advance()
            return columns_of(op, values)

        if not watches:
            for sample in self.samples:
                self.stream.write(self.stream.run(plan, sample), new, sample)
                self.advance()
            self.stream.release(plan)
            return None if all(map(self.ahead, point.slots)) else Inputs(torch.eye(columns), name=name)
        full = None
        if self.corrects(point):
            full_plan, factors = self.program.plan(after, (point.value,)), self.factors.columns.get(point.value)

            def full(sample: int) -> Tensor:
                found = columns_of(op, self.full.run(full_plan, sample))
                return found if factors is None else found / factors

        sums = Gathered(columns, drift=full is not None)
        gather(sums, len(self.samples), read, full, self.task.weightings.get(name), self.work / "inputs.values")
        self.stream.release(plan)  # before memory is needed most
        return sums.inputs(name)

    def round(self, point: Point, slots: Sequence[str], inputs: Inputs) -> None:
        """Quantize slots of a point from the same inputs, which are used up."""
        treated = {slot: self.task.treatments[slot] for slot in slots}
        prepares = list(dict.fromkeys(treatment.prepare for treatment in treated.values()))
        rounders = {prepare: prepare(inputs.copy()) for prepare in prepares[:-1]}
        rounders |= {prepare: prepare(inputs) for prepare in prepares[-1:]}
        for name, treatment in treated.items():
            slot = self.task.slots[name]
            blocks = self.blocks(point, slot)
            matrix, evidence = quantize_matrix(slot, treatment, rounders[treatment.prepare], blocks, inputs)
            self.quantized.matrices[name] = matrix
            self.evidence.append(evidence)

    def blocks(self, point: Point, slot: Slot) -> Iterator[tuple[int, Tensor]]:
        """Row blocks of a matrix with the factors that it takes up, and their first rows."""
        multiply, divide = self.factors.columns.get(point.value), self.factors.rows.get(slot.name)
        for start, stop in row_blocks(slot.rows, slot.columns, BLOCK_BYTES):
            rows = self.task.rows(slot.name, start, stop)
            if divide is not None:
                rows = rows / divide[start:stop, None]
            yield start, rows if multiply is None else rows * multiply

    def last_pass(self, before: Sequence[Node], after: Sequence[Node]) -> LayerEvidence | None:
        """Bring the quantized stream to the segment's end; the relative error of what it hands on."""
        plan = self.program.plan(before, after)
        new = self.stream.create(after)
        self.stream.hold(plan)
        wrong = total = 0.0
        for sample in self.samples:
            values = self.stream.run(plan, sample)
            self.stream.write(values, new, sample)
            for node in new:
                full = self.full.spills[node].read(sample)
                wrong += float((values[node] - full).square().sum())
                total += float(full.square().sum())
            self.advance()
        self.stream.release(plan)
        if self.segment.cut is None or not new:
            return None
        return LayerEvidence(layer=self.segment.cut, output_error=math.sqrt(wrong / total) if total else 0.0)
