"""Calibrated quantization of a component over its captured graph, segment by segment.

Two streams of samples run side by side: the unquantized model's, and that of the model with every earlier matrix
quantized. A matrix is quantized from the inputs that it gets in the second and the drift from the first. One segment's
weights are in memory, values lie in files. Every finished segment is a file in the work folder beside the values that
the next one starts from, so a run that is killed continues there. Knows no method (`interface.py`) and no model.
"""

from __future__ import annotations

from pathlib import Path

import torch

from artifacts import EdgewrightError, Progress
from compiler.graph import arguments, operations
from compiler.quantize.calibrated.files import SegmentFile
from compiler.quantize.calibrated.passes import Pass
from compiler.quantize.calibrated.segments import Program
from compiler.quantize.calibrated.stream import Stream
from compiler.quantize.calibrated.task import Quantized, Task


def run(task: Task, work: Path, progress: Progress) -> list[SegmentFile]:
    """Quantize into `work`, in which segments that are finished already are kept; all segments, in order.

    Raises EdgewrightError when inputs are beyond float32, a scale beyond fp16, or the folder is not complete.
    """
    captured = operations(task.module, task.samples[0])
    program = Program(captured, task.cuts, task.treatments)
    _check_groups(program, task)
    files = [SegmentFile(work, segment.index) for segment in program.segments]
    first = next((i for i, file in enumerate(files) if not file.done), len(files))
    quantized = Quantized(task, files)
    full_stream = Stream("full", captured, task.samples, work, task.table, task.matrix)
    quantized_stream = Stream("quantized", captured, task.samples, work, quantized, quantized.matrix)
    units = [len(task.samples) * Pass.units(segment) for segment in program.segments]
    done, total = sum(units[:first]), sum(units)

    def advance() -> None:
        nonlocal done
        done += 1
        progress("calibrating", done, total)

    with torch.no_grad():
        for segment, file in zip(program.segments[first:], files[first:], strict=True):
            for stream in (full_stream, quantized_stream):
                if segment.index == first and not stream.find(segment.kept[0]):
                    raise EdgewrightError(
                        f"{work}: what an earlier run left is not complete; delete it and start again"
                    )
            Pass(task, program, segment, full_stream, quantized_stream, quantized, work, advance, progress).run(file)
            quantized.finish(file)
            for stream in (full_stream, quantized_stream):
                stream.keep_only(segment.kept[-1])
    return files


def _check_groups(program: Program, task: Task) -> None:
    for slot, treatment in task.treatments.items():
        if treatment.calibrated and any(arguments(node).get("groups", 1) != 1 for node in program.readers[slot]):
            raise EdgewrightError(
                f"calibration: {slot} is of a convolution in groups, whose outputs see different inputs; give it rtn, "
                "mse or hqq"
            )
