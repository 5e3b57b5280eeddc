"""Inputs of a matrix that several ops read: looked ahead for, as it is quantized before most of them have run.

It is quantized where it is read first, from what all its readers get in the unquantized model. A tied table is one: an
embedding first, whose one-hot inputs tell no columns apart, and a head at the end.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from artifacts import Progress
from compiler.graph import Node
from compiler.quantize.calibrated.gathered import Gathered, gather
from compiler.quantize.calibrated.kinds import columns_of, is_watched
from compiler.quantize.calibrated.segments import Plan, Program, Segment
from compiler.quantize.calibrated.stream import Stream
from compiler.quantize.calibrated.task import Task
from compiler.quantize.interface import Inputs

if TYPE_CHECKING:
    from torch import Tensor

# An error in an embedding reaches the logits through the residual stream and every layer, in no direction much more
# than in another. On the trained checkpoint white noise in the table costs half as much divergence through the
# embedding as through the head; the least sum of both was found at 0.5 to 1.
_ONE_HOT_SHARE = 0.75


def looks_ahead(task: Task, program: Program, slot: str) -> bool:
    """Whether a slot is quantized from the inputs of several readers."""
    readers = program.readers[slot]
    return len(readers) > 1 and task.treatments[slot].calibrated and any(map(is_watched, readers))


def inputs_ahead(
    task: Task, program: Program, segment: Segment, slot: str, full: Stream, work: Path, progress: Progress
) -> Inputs:
    """Run the unquantized model on from a segment to the last reader of a slot; the inputs of all its readers.

    full: the unquantized stream at the segment's start. A killed run goes on from the last segment before the first
    reader that is watched.
    """
    watched = [node for node in program.readers[slot] if is_watched(node)]
    first, last = (program.segment_of(node).index for node in (watched[0], watched[-1]))
    stream = full.branch("ahead")
    mark, resumed = work / "ahead.json", segment.index
    if mark.is_file():
        left = json.loads(mark.read_text())
        if left["slot"] == slot and stream.find(program.segments[left["segment"]].kept[0]):
            resumed = left["segment"]
    samples = len(task.samples)
    done, total = (resumed - segment.index) * samples, (last + 1 - segment.index) * samples
    sums = Gathered(task.slots[slot].columns, drift=False)

    def read(plan: Plan, new: list[Node], reading: list[Node], sample: int) -> Tensor:
        nonlocal done
        values = stream.run(plan, sample)
        stream.write(values, new, sample)
        done += 1
        progress("looking ahead", done, total)
        return torch.cat([columns_of(node, values) for node in reading]) if reading else torch.empty(0)

    for at in program.segments[resumed : last + 1]:
        reading = [node for node in watched if program.segment_of(node) is at]
        target = at.kept[-1] if at.index < last else ()
        plan = program.plan(at.kept[0], (*target, *(node.args[0] for node in reading)))
        read_segment = partial(read, plan, stream.create(target), reading)
        stream.hold(plan)
        if reading:
            gather(sums, samples, read_segment, None, task.weightings.get(slot), work / "inputs.values")
        else:
            for sample in range(samples):
                read_segment(sample)
        stream.release(plan)
        if at.index < first:
            mark.with_suffix(".partial").write_text(json.dumps({"slot": slot, "segment": at.index + 1}))
            mark.with_suffix(".partial").rename(mark)
            stream.keep_only(target)
        else:
            stream.keep_only({*target, *program.segments[first].kept[0]})
    stream.keep_only(())
    mark.unlink(missing_ok=True)
    found = sums.inputs(slot)
    if len(watched) < len(program.readers[slot]):
        diagonal = found.hessian.diagonal()
        diagonal += _ONE_HOT_SHARE * diagonal.mean()
    return found
