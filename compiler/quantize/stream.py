"""Streaming a checkpoint through a method that needs no calibration, one row block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import EdgewrightError, Progress
from compiler.checkpoint import Checkpoint, row_blocks
from compiler.quantize.packed import Codes, PackedWriter
from compiler.slots import HALF, Scheme, Schemes, Slot

if TYPE_CHECKING:
    from torch import Tensor

Rounder = Callable[["Tensor", Scheme], Codes]


def quantize_checkpoint(
    checkpoint: Checkpoint,
    slots: list[Slot],
    schemes: Schemes,
    rounders: Mapping[str, Rounder],
    folder: Path,
    config: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Write the packed checkpoint of `slots` into an empty folder.

    rounders: the method of each quantized slot. config: the config.json to write beside the weights.
    """
    half_dtypes = {s.name: half_dtype(checkpoint, s) for s in slots}
    writer = PackedWriter(folder, slots, schemes, half_dtypes)
    total = sum(s.rows * s.columns for s in slots)
    done = 0
    for slot in slots:
        for start, stop in row_blocks(slot.rows, slot.columns):
            quantize_rows(checkpoint, slot, start, stop, schemes, rounders, writer)
            done += (stop - start) * slot.columns
            progress("quantizing", done, total)
    writer.close(config)


def half_dtype(checkpoint: Checkpoint, slot: Slot) -> str:
    """How a slot left in half precision is stored: as it was; float32 norms stay, wider matrices become F16."""
    dtype = checkpoint.tensors.info(slot.tensor).dtype
    if dtype == "F8_E4M3":
        return "BF16"
    return dtype if dtype != "F32" or slot.kind == "norm" else "F16"


def quantize_rows(
    checkpoint: Checkpoint,
    slot: Slot,
    start: int,
    stop: int,
    schemes: Schemes,
    rounders: Mapping[str, Rounder],
    writer: PackedWriter,
) -> None:
    """Quantize rows `start:stop` of one slot and write them (a norm or 16-bit slot: copy)."""
    import torch

    scheme = schemes.get(slot.name, HALF)
    if slot.kind == "norm":
        writer.write_half(slot.name, 0, checkpoint.rows(slot.tensor))
        return
    rows = checkpoint.rows(slot.tensor, start, stop)
    if scheme.bits == 16:
        writer.write_half(slot.name, start, rows)
        return
    try:
        codes = rounders[slot.name](torch.from_numpy(rows), scheme)
    except OverflowError as error:
        raise EdgewrightError(
            f"tensor {slot.tensor!r}, rows {start}:{stop}: {error}; keep it at 16 bits with a rule "
            f"{{match: {slot.name}, bits: 16}}"
        ) from error
    writer.write(slot.name, start, codes)
