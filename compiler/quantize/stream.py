"""Streaming a checkpoint through a method that needs no calibration, a row block for each core at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError, Progress
from compiler.checkpoint import Checkpoint
from compiler.codes import dequantize
from compiler.quantize.interface import Rounder
from compiler.quantize.packed import PackedWriter
from compiler.slots import HALF, Schemes, Slot
from compiler.tensors import row_blocks

Loss = dict[str, tuple[float, float]]
"""Of each quantized slot, the sums of squares of its weights and of their error."""

# a block and what is made of it stay in a core's cache; more workers than this wait for the disk and cost memory
_BLOCK_BYTES = 1 << 21
_MOST_WORKERS = 4


def quantize_checkpoint(
    checkpoint: Checkpoint,
    slots: list[Slot],
    schemes: Schemes,
    rounders: Mapping[str, Rounder],
    folder: Path,
    config: Mapping[str, Any],
    progress: Progress,
) -> Loss:
    """Write the packed checkpoint of `slots` into an empty folder; what was lost.

    rounders: the method of each quantized slot; one without is stored quantized, its codes are copied.
    config: the config.json to write beside the weights.
    """
    half_dtypes = {s.name: half_dtype(checkpoint, s) for s in slots}
    writer = PackedWriter(folder, slots, schemes, half_dtypes)
    total = sum(s.rows * s.columns for s in slots)
    done = 0
    loss: Loss = {}
    for slot, start, stop, lost in _at_work(checkpoint, slots, schemes, rounders, writer):
        if lost is not None:
            signal, noise = loss.get(slot.name, (0.0, 0.0))
            loss[slot.name] = signal + lost[0], noise + lost[1]
        done += (stop - start) * slot.columns
        progress("quantizing", done, total)
    writer.close(config)
    return loss


_Block = tuple[Slot, int, int, tuple[float, float] | None]


def _at_work(
    checkpoint: Checkpoint,
    slots: list[Slot],
    schemes: Schemes,
    rounders: Mapping[str, Rounder],
    writer: PackedWriter,
) -> Iterator[_Block]:
    """Every row block with what was lost in it, in order. A core works at a block of its own: blocks are small, and
    torch's threads would spend more time on meeting each other than on the work."""
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, _MOST_WORKERS)
    waiting: deque[tuple[Slot, int, int, Future[tuple[float, float] | None]]] = deque()

    def first() -> _Block:
        slot, start, stop, future = waiting.popleft()
        return slot, start, stop, future.result()

    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for slot in slots:
                for start, stop in row_blocks(slot.rows, slot.columns, _BLOCK_BYTES):
                    job = pool.submit(quantize_rows, checkpoint, slot, start, stop, schemes, rounders, writer)
                    waiting.append((slot, start, stop, job))
                    if len(waiting) > 2 * workers:
                        yield first()
            while waiting:
                yield first()
    finally:
        torch.set_num_threads(threads)


def half_dtype(checkpoint: Checkpoint, slot: Slot) -> str:
    """How a slot left in half precision is stored: as it was, and wider ones as F16, which every target can hold."""
    dtype = checkpoint.dtype(slot.tensor)
    return dtype if dtype != "F32" else "F16"


def quantize_rows(
    checkpoint: Checkpoint,
    slot: Slot,
    start: int,
    stop: int,
    schemes: Schemes,
    rounders: Mapping[str, Rounder],
    writer: PackedWriter,
) -> tuple[float, float] | None:
    """Quantize rows `start:stop` of one slot and write them (a vector or 16-bit slot: copy).

    Returns the sums of squares of quantized rows and of their error.
    """
    import torch

    scheme = schemes.get(slot.name, HALF)
    if slot.is_vector:
        writer.write_half(slot.name, 0, checkpoint.rows(slot.tensor))
        return None
    if scheme.bits != 16 and slot.name not in rounders:
        writer.write(slot.name, start, checkpoint.compressed.codes(slot.tensor, start, stop))
        return None
    rows = checkpoint.rows(slot.tensor, start, stop).reshape(stop - start, slot.columns)
    if scheme.bits == 16:
        writer.write_half(slot.name, start, rows)
        return None
    try:
        codes = rounders[slot.name](torch.from_numpy(rows), scheme)
    except OverflowError as error:
        raise EdgewrightError(
            f"tensor {slot.tensor!r}, rows {start}:{stop}: {error}; keep it at 16 bits with a rule "
            f"{{match: {slot.name}, bits: 16}}"
        ) from error
    writer.write(slot.name, start, codes)
    wrong = torch.from_numpy(dequantize(codes)).sub_(torch.from_numpy(rows)).flatten()
    kept = torch.from_numpy(rows).flatten()
    return float(kept.dot(kept)), float(wrong.dot(wrong))
