"""Runs the methods that a recipe's rules name over a checkpoint, streaming where none of them calibrates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import Progress
from compiler.apart import apart
from compiler.checkpoint import Checkpoint
from compiler.heap import return_large_blocks
from compiler.models.base import Model
from compiler.quantize.evidence import LayerEvidence, QuantizationEvidence, TensorEvidence
from compiler.quantize.interface import Treatment
from compiler.quantize.methods import keep, load_method
from compiler.quantize.packed import PackedWriter
from compiler.quantize.rules import Assignment, options_of
from compiler.quantize.stream import half_dtype, quantize_checkpoint
from compiler.slots import HALF, Schemes, Slot, Weights
from compiler.tensors import row_blocks
from recipes.schema import Calibration, Rule

if TYPE_CHECKING:
    from compiler.quantize.calibrated.files import SegmentFile
    from compiler.quantize.calibrated.task import Samples


_THREADS = 2  # what cheap machines of continuous integration have


def calibrates(assignment: Assignment) -> bool:
    """Whether any tensor's method looks at calibration data."""
    return any(_calibrated(rule) for rule in assignment.rules.values())


def run(
    checkpoint: Checkpoint,
    model: Model,
    assignment: Assignment,
    calibration: Calibration,
    samples: Callable[[Weights], Iterator[Samples]] | None,
    folder: Path,
    work: Path,
    progress: Progress,
) -> QuantizationEvidence:
    """Write the packed checkpoint into an empty folder, each slot by its rule's method; what was lost, per tensor.

    samples: from the unquantized weights, what every component is calibrated on; None where no method looks. work: a
    folder for finished segments, from which a killed run goes on; the caller deletes it when the result is safe.
    """
    slots = model.slots
    keep.check(checkpoint, slots, assignment)
    treatments = _treatments(assignment)
    if not calibrates(assignment):
        given = checkpoint, model, assignment.schemes, treatments, folder
        if not model.wide:
            return _streamed(*given, progress)
        evidence: QuantizationEvidence = apart(_streamed, *given, progress=progress)
        return evidence

    from compiler.quantize.calibrated.run import run as run_calibrated
    from compiler.quantize.calibrated.task import Task

    assert samples is not None
    half_dtypes = {s.name: half_dtype(checkpoint, s) for s in slots}
    table = OriginalWeights(checkpoint, slots)
    files = []
    with fixed_threads():
        for found in samples(table):
            part = {slot.name: slot for slot in found.component.slots}
            treated = {name: treatment for name, treatment in treatments.items() if name in part}
            place = work / found.component.name
            place.mkdir(parents=True, exist_ok=True)
            cuts = found.component.cuts
            task = Task(found.module, found.inputs, cuts, part, table, half_dtypes, treated, found.weightings)
            files += run_calibrated(task, place, progress)
    writer = PackedWriter(folder, slots, assignment.schemes, half_dtypes)
    tensors, layers = _assemble(files, writer, checkpoint, table, slots, assignment, progress)
    writer.close(model.config)
    return QuantizationEvidence.of(tensors, layers, calibration.model_dump_json())


def _streamed(
    checkpoint: Checkpoint,
    model: Model,
    schemes: Schemes,
    treatments: Mapping[str, Treatment],
    folder: Path,
    progress: Progress,
) -> QuantizationEvidence:
    """By methods that look at one tensor after the other."""
    return_large_blocks()  # in a process of its own too
    rounders = {name: treatment.prepare(None) for name, treatment in treatments.items()}
    loss = quantize_checkpoint(checkpoint, model.slots, schemes, rounders, folder, model.config, progress)
    lost = [s for s in model.slots if s.name in loss]
    return QuantizationEvidence.of(
        [TensorEvidence.of(s, schemes[s.name], treatments[s.name].method, *loss[s.name]) for s in lost], []
    )


class OriginalWeights:
    """The unquantized checkpoint as a table of weights by slot name."""

    def __init__(self, checkpoint: Checkpoint, slots: list[Slot]) -> None:
        self._checkpoint, self._slots = checkpoint, {s.name: s for s in slots}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        slot = self._slots[name]
        rows = self._checkpoint.rows(slot.tensor, start, stop)
        return rows if slot.is_vector else rows.reshape(len(rows), slot.columns)


@contextmanager
def fixed_threads(count: int = _THREADS) -> Iterator[None]:
    """The same number of threads on every machine: a factorization rounds otherwise with another, and so do codes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _calibrated(rule: Rule) -> bool:
    return bool(getattr(load_method(rule.method), "CALIBRATED", False))


def _treatments(assignment: Assignment) -> dict[str, Treatment]:
    """How each slot is rounded; slots with the same method and options share what prepares their rounders."""
    prepared: dict[str, Any] = {}
    found = {}
    for name, rule in assignment.rules.items():
        if name in keep.kept(assignment):
            continue
        module = load_method(rule.method)
        options = module.OPTIONS.model_validate(options_of(rule))
        found[name] = Treatment(
            method=rule.method,
            scheme=assignment.schemes[name],
            prepare=prepared.setdefault(f"{rule.method} {options!r}", partial(module.rounder, options)),
            calibrated=_calibrated(rule),
            corrects=hasattr(module, "corrects") and module.corrects(options),
            folding=module.folding(options) if hasattr(module, "folding") else None,
        )
    return found


def _assemble(
    files: list[SegmentFile],
    writer: PackedWriter,
    checkpoint: Checkpoint,
    table: OriginalWeights,
    slots: list[Slot],
    assignment: Assignment,
    progress: Progress,
) -> tuple[list[TensorEvidence], list[LayerEvidence]]:
    """Write the finished segments and everything left in half precision; what was lost."""
    tensors: list[TensorEvidence] = []
    layers: list[LayerEvidence] = []
    written: set[str] = set()
    for at, file in enumerate(files):
        lost, layer = file.evidence()
        tensors += lost
        layers += [layer] if layer else []
        for name, norm in file.norms().items():
            writer.write_half(name, 0, norm)
            written.add(name)
        for name, matrix in file.matrices():
            for start, stop in row_blocks(*matrix.packed.shape):
                writer.write(name, start, matrix.codes(slice(start, stop)))
            written.add(name)
        progress("writing weights", at + 1, len(files))
    for slot in slots:
        if slot.name in written:
            continue
        for start, stop in row_blocks(slot.rows, slot.columns):
            if assignment.schemes.get(slot.name, HALF).bits != 16:
                writer.write(slot.name, start, checkpoint.compressed.codes(slot.tensor, start, stop))
                continue
            writer.write_half(slot.name, start, table.rows(slot.name, *(() if slot.is_vector else (start, stop))))
    return tensors, layers
