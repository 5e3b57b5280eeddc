"""Runs the methods that a recipe's rules name over a checkpoint, streaming where none of them calibrates."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from artifacts import Progress
from compiler.checkpoint import Checkpoint, row_blocks
from compiler.models.decoder import DecoderSpec
from compiler.quantize import keep
from compiler.quantize.calibration import calibration_tokens
from compiler.quantize.evidence import LayerEvidence, QuantizationEvidence, TensorEvidence
from compiler.quantize.interface import Inputs, Rounder
from compiler.quantize.rules import Assignment, options_of
from compiler.quantize.stream import half_dtype, quantize_checkpoint
from compiler.slots import HALF, Slot
from recipes.schema import Calibration, Rule


def calibrates(assignment: Assignment) -> bool:
    """Whether any tensor's method looks at calibration data."""
    return any(_calibrated(rule) for rule in assignment.rules.values())


def run(
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    slots: list[Slot],
    assignment: Assignment,
    calibration: Calibration,
    text: Path | None,
    folder: Path,
    work: Path,
    config: Mapping[str, Any],
    progress: Progress,
) -> QuantizationEvidence:
    """Write the packed checkpoint into an empty folder, each slot by its rule's method; what was lost, per tensor.

    text: the calibration file (None: built in). work: a folder for finished layers, from which a killed run goes on;
    the caller deletes it when the result is safe.
    """
    keep.check(checkpoint, slots, assignment)
    prepare = _preparations(assignment)
    if not calibrates(assignment):
        rounders = {name: make(None) for name, make in prepare.items()}
        loss = quantize_checkpoint(checkpoint, slots, assignment.schemes, rounders, folder, config, progress)
        schemes, method = assignment.schemes, assignment.method
        lost = [s for s in slots if s.name in loss]
        return QuantizationEvidence.of(
            [TensorEvidence.of(s, schemes[s.name], method(s.name), *loss[s.name]) for s in lost], []
        )

    from compiler.quantize.calibrated import layerwise, table

    tokens = calibration_tokens(calibration, text, checkpoint.path, spec)
    work.mkdir(parents=True, exist_ok=True)
    looking = frozenset(n for n, rule in assignment.rules.items() if _calibrated(rule))
    correcting, folding = (
        frozenset(n for n, rule in assignment.rules.items() if options_of(rule).get(option))
        for option in ("correction", "fold")
    )
    of_name = {s.name: s for s in slots}
    task = layerwise.Task(checkpoint, spec, of_name, assignment, prepare, looking, correcting, folding)
    import torch

    with torch.no_grad():
        table.quantize_embedding(task, tokens, work, progress)
        layerwise.run_layers(task, tokens, work, progress)
        table.quantize_head(task, tokens, work)
    tensors, layers = _assemble(task, work, folder, config, progress)
    return QuantizationEvidence.of(tensors, layers, calibration.model_dump_json())


def _calibrated(rule: Rule) -> bool:
    return bool(getattr(_module(rule), "CALIBRATED", False))


def _module(rule: Rule) -> Any:
    return importlib.import_module(f"compiler.quantize.{rule.method}")


def _preparations(assignment: Assignment) -> dict[str, Callable[[Inputs | None], Rounder]]:
    """From inputs to rounder, for each slot that is rounded; slots with the same method and options share one."""
    made: dict[str, Callable[[Inputs | None], Rounder]] = {}
    found = {}
    for name, rule in assignment.rules.items():
        if name in keep.kept(assignment):
            continue
        module, options = _module(rule), options_of(rule)
        key = f"{rule.method} {options}"
        if key not in made:
            made[key] = partial(module.rounder, module.OPTIONS.model_validate(options))
        found[name] = made[key]
    return found


def _assemble(
    task: Any, work: Path, folder: Path, config: Mapping[str, Any], progress: Progress
) -> tuple[list[TensorEvidence], list[LayerEvidence]]:
    """The finished layers and everything left in half precision, as one packed checkpoint."""
    from compiler.quantize.calibrated import layerwise, table
    from compiler.quantize.packed import Codes, PackedWriter, unpack

    checkpoint, slots, schemes = task.checkpoint, list(task.slots.values()), task.assignment.schemes
    writer = PackedWriter(folder, slots, schemes, {s.name: half_dtype(checkpoint, s) for s in slots})
    files = [layerwise.layer_file(work, i) for i in range(task.spec.layers)]
    tensor_evidence: list[TensorEvidence] = []
    layer_evidence: list[LayerEvidence] = []
    written: set[str] = set()
    for at, file in enumerate([*files, table.table_file(work), table.head_file(work)]):
        if not file.done:
            continue
        tensors, evidence, extra = file.load()
        tensor_evidence += evidence
        if "output_error" in extra:
            layer_evidence.append(LayerEvidence(layer=at, output_error=extra["output_error"]))
        for name in tensors:
            slot = name.rpartition(".")[0]
            if name.endswith(".weight"):
                writer.write_half(slot, 0, tensors[name])
            elif name.endswith(".packed"):
                packed, scales, zeros = tensors[name], tensors[f"{slot}.scales"], tensors.get(f"{slot}.zeros")
                bits = schemes[slot].bits
                for start, stop in row_blocks(*packed.shape):
                    part = None if zeros is None else zeros[start:stop]
                    writer.write(slot, start, Codes(unpack(packed[start:stop], bits), scales[start:stop], part))
            else:
                continue
            written.add(slot)
        progress("writing weights", at + 1, len(files) + 2)
    for slot in slots:
        if slot.name in written:
            continue
        for start, stop in row_blocks(slot.rows, slot.columns):
            if schemes.get(slot.name, HALF).bits != 16:
                writer.write(slot.name, start, checkpoint.compressed.codes(slot.tensor, start, stop))
                continue
            rows = checkpoint.rows(slot.tensor) if slot.is_vector else checkpoint.rows(slot.tensor, start, stop)
            writer.write_half(slot.name, start, rows)
    writer.close(config)
    return tensor_evidence, layer_evidence
