"""The embedding and the head in a calibrated run: what each looks like to a rounder, and the states between.

A head is a matrix like any other; its inputs are the normalized last states. An embedding has one-hot inputs, so no
calibration tells its columns apart. A tied table is both at once: it is quantized before the layers, from the last
states of the unquantized model and with a share of the identity for the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts import Progress
from compiler.checkpoint import row_blocks
from compiler.codes import Codes, dequantize, unpack
from compiler.models import decoder
from compiler.quantize.calibrated.layerwise import Gathered, Layer, LayerFile, Task
from compiler.quantize.calibrated.matrix import quantize_matrix
from compiler.quantize.calibrated.states import Spill
from compiler.quantize.interface import Inputs
from compiler.quantize.matmul import linear

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "model.embed_tokens"
_BLOCK_BYTES = 1 << 25
# An error in an embedding reaches the logits through the residual stream and every layer, in no direction much more
# than in another. On the trained checkpoint white noise in the table costs half as much divergence through the
# embedding as through the head; the least sum of both was found at 0.5 to 1.
_EMBEDDING_SHARE = 0.75


def table_file(work: Path) -> LayerFile:
    return LayerFile(work / "table.safetensors")


def head_file(work: Path) -> LayerFile:
    return LayerFile(work / "head.safetensors")


def quantize_embedding(task: Task, tokens: NDArray[np.int32], work: Path, progress: Progress) -> None:
    """Quantize the embedding, and leave the first states of both streams."""
    file = table_file(work)
    if not file.done:
        prepare = task.prepare.get(EMBEDDING)
        if prepare is None:
            file.save({}, [], {})
        else:
            tied = decoder.head_slot(task.spec) == EMBEDDING
            inputs = Inputs(torch.eye(task.spec.hidden))
            if tied and EMBEDDING in task.calibrated:
                inputs = unquantized_head_inputs(task, tokens, work, progress)
                diagonal = inputs.hessian.diagonal()
                diagonal += _EMBEDDING_SHARE * diagonal.mean()
            save_matrix(task, EMBEDDING, prepare, inputs, file)
    if not any(work.glob("layer-*.safetensors")):
        tensors = file.load()[0]
        for stream in ("full", "quantized"):
            states = Spill(work / f"{stream}-000.f32", shape_of(task, tokens))
            for n, ids in enumerate(tokens):
                states.write(n, embed(task, ids, tensors if stream == "quantized" else {}))


def quantize_head(task: Task, tokens: NDArray[np.int32], work: Path) -> None:
    """Quantize an untied head from the last states of the quantized stream."""
    prepare, file = task.prepare.get("lm_head"), head_file(work)
    if prepare is None or file.done:
        return
    spec = task.spec
    shape = shape_of(task, tokens)
    states = {s: Spill(work / f"{s}-{spec.layers:03d}.f32", shape) for s in ("full", "quantized")}
    full = states["full"] if "lm_head" in task.correct else None
    save_matrix(task, "lm_head", prepare, head_inputs(task, states["quantized"], full, len(tokens)), file)


def shape_of(task: Task, tokens: NDArray[np.int32]) -> tuple[int, int, int]:
    return tokens.shape[0], tokens.shape[1], task.spec.hidden


def save_matrix(task: Task, name: str, prepare: Any, inputs: Inputs, file: LayerFile) -> None:
    slot = task.slots[name]

    def blocks() -> Iterator[tuple[int, Tensor]]:
        for start, stop in row_blocks(slot.rows, slot.columns, _BLOCK_BYTES):
            yield start, task.rows(name, start, stop)

    tensors, evidence = quantize_matrix(slot, task.assignment, prepare(inputs), blocks(), inputs)
    file.save(tensors, [evidence], {})


def head_inputs(task: Task, states: Spill, full: Spill | None, sequences: int) -> Inputs:
    """Inputs of the head, each position weighed by how much its divergence feels a change of logits.

    To second order the divergence is half the variance of the logits' error under the model's own distribution p.
    For errors that are independent between tokens it is proportional to 1 - sum of p².
    """
    spec = task.spec
    norm = task.rows("model.norm")

    def normed(spill: Spill, n: int) -> Tensor:
        return torch.nn.functional.rms_norm(spill.read(n), (spec.hidden,), norm, spec.eps)

    weights = uncertainty(task, lambda n: normed(states, n)[0], sequences).sqrt()[:, None, :, None]
    gathered = Gathered(spec.hidden, full is not None)
    for n, weight in enumerate(weights):
        gathered.add(normed(states, n) * weight, None if full is None else normed(full, n) * weight)
    return gathered.inputs(decoder.head_slot(spec))


def uncertainty(task: Task, states: Callable[[int], Tensor], sequences: int) -> Tensor:
    """1 - sum of p² at each position, [sequences, length].

    states: of a sequence, normalized, [length, hidden]. The head, which is large, is read once: sums over the
    vocabulary grow block by block, relative to the largest logit so far.
    """
    head = task.slots[decoder.head_slot(task.spec)]
    top = [torch.tensor(-torch.inf)] * sequences
    sums, squares = [torch.zeros(())] * sequences, [torch.zeros(())] * sequences
    for start, stop in row_blocks(head.rows, head.columns, _BLOCK_BYTES):
        rows = task.rows(head.name, start, stop)
        for n in range(sequences):
            logits = linear(states(n), rows)
            peak = torch.maximum(top[n], logits.amax(-1))
            shrink, powers = (top[n] - peak).exp(), (logits - peak[:, None]).exp()
            sums[n] = sums[n] * shrink + powers.sum(-1)
            squares[n] = squares[n] * shrink.square() + powers.square().sum(-1)
            top[n] = peak
    return (1 - torch.stack(squares) / torch.stack(sums).square()).clamp(min=0)  # rounding can go below


def unquantized_head_inputs(task: Task, tokens: NDArray[np.int32], work: Path, progress: Progress) -> Inputs:
    """Run the unquantized model once; states lie in one file for each layer, and a killed run goes on from the last."""
    spec, sequences, shape = task.spec, len(tokens), shape_of(task, tokens)
    total = spec.layers * sequences

    def boundary(layer: int) -> Path:
        return work / f"ahead-{layer:03d}.f32"

    first = max((i for i in range(1, spec.layers + 1) if boundary(i).exists()), default=0)
    if first == 0:
        states = Spill(boundary(0), shape)
        for n, ids in enumerate(tokens):
            states.write(n, embed(task, ids, {}))
    for index in range(first, spec.layers):
        done = index * sequences

        def advance() -> None:
            nonlocal done
            done += 1
            progress("looking ahead", done, total)

        partial = work / "ahead.partial"
        target = Spill(partial, shape)
        Layer(task, index, tokens, work, advance).plain_pass(Spill(boundary(index), shape), target)
        partial.rename(boundary(index + 1))
        boundary(index).unlink()
    states = Spill(boundary(spec.layers), shape)
    found = head_inputs(task, states, None, sequences)
    states.delete()
    return found


def embed(task: Task, ids: NDArray[np.int32], tensors: dict[str, NDArray[Any]]) -> Tensor:
    """Rows of the embedding, [1, length, hidden]: of the packed tensors, or unquantized where there are none."""
    unique, inverse = np.unique(ids, return_inverse=True)
    packed = tensors.get(f"{EMBEDDING}.packed")
    if packed is None:
        rows = torch.cat([task.rows(EMBEDDING, int(i), int(i) + 1) for i in unique])
    else:
        zeros = tensors.get(f"{EMBEDDING}.zeros")
        bits = task.assignment.schemes[EMBEDDING].bits
        codes = Codes(
            unpack(packed[unique], bits),
            tensors[f"{EMBEDDING}.scales"][unique],
            None if zeros is None else zeros[unique],
        )
        rows = torch.from_numpy(dequantize(codes))
    return rows[torch.from_numpy(inverse)][None]
