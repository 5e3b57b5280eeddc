"""Calibrated quantization of a decoder, layer by layer: one layer's weights in memory, hidden states in files.

Two streams of hidden states run side by side: the unquantized model's, and that of the model with every earlier
tensor quantized. A tensor is quantized from the inputs that it gets in the second and the drift from the first.
Every finished layer is a file in the work folder beside the states that the next one starts from, so a run that is
killed continues there. Knows no method: see `interface.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts import EdgewrightError, Progress
from compiler.checkpoint import Checkpoint, row_blocks, to_float32
from compiler.dialect import edge
from compiler.models import decoder
from compiler.models.decoder import DecoderSpec
from compiler.quantize import awq
from compiler.quantize.calibrated.matrix import quantize_matrix
from compiler.quantize.calibrated.states import Spill
from compiler.quantize.evidence import TensorEvidence
from compiler.quantize.interface import Inputs, Rounder
from compiler.quantize.matmul import add_products, add_squares, linear, mirror
from compiler.quantize.rules import Assignment
from compiler.quantize.stream import half_dtype
from compiler.slots import Slot
from compiler.tensors import from_float32

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_BYTES = 1 << 25
_WORK_UNITS = 10  # of a layer, for each calibration sequence: six passes and four points to quantize


@dataclass(frozen=True)
class Task:
    """What to quantize, and how.

    prepare: of each quantized slot, from its inputs to its rounder. calibrated: slots whose rounder looks at them.
    correct: slots whose rounder looks at the drift of its inputs. fold: slots whose method folds channel factors into
    what precedes them.
    """

    checkpoint: Checkpoint
    spec: DecoderSpec
    slots: dict[str, Slot]
    assignment: Assignment
    prepare: dict[str, Callable[[Inputs | None], Rounder]]
    calibrated: frozenset[str]
    correct: frozenset[str]
    fold: frozenset[str]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return torch.from_numpy(self.checkpoint.rows(self.slots[name].tensor, start, stop))


class LayerFile:
    """The finished tensors of one layer: packed codes, scales, zero points, folded norms, evidence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def done(self) -> bool:
        return self.path.is_file()

    def save(self, tensors: dict[str, NDArray[Any]], evidence: list[TensorEvidence], extra: dict[str, float]) -> None:
        from safetensors.numpy import save_file

        partial = self.path.with_suffix(".partial")
        found = {"evidence": json.dumps([e.model_dump() for e in evidence]), "extra": json.dumps(extra)}
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()} or {"empty": np.zeros(1)}, partial, found)
        partial.rename(self.path)

    def load(self) -> tuple[dict[str, NDArray[Any]], list[TensorEvidence], dict[str, float]]:
        from safetensors import safe_open

        with safe_open(self.path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            metadata = file.metadata()
        evidence = [TensorEvidence.model_validate(e) for e in json.loads(metadata["evidence"])]
        return tensors, evidence, json.loads(metadata["extra"])


class Gathered:
    """Sums over calibration tokens that become `Inputs`."""

    def __init__(self, columns: int, drift: bool) -> None:
        self._hessian = torch.zeros(columns, columns)
        self._drift = torch.zeros(columns, columns) if drift else None
        self._tokens = 0

    def add(self, x: Tensor, full: Tensor | None = None) -> None:
        """x, full: [1, length, columns], the inputs and those of the unquantized model."""
        x = x[0]
        add_squares(self._hessian, x)
        if self._drift is not None and full is not None:
            add_products(self._drift, x, full[0] - x)
        self._tokens += len(x)

    def inputs(self, name: str) -> Inputs:
        """Of the matrix `name`. Raises EdgewrightError when they are beyond float32."""
        mirror(self._hessian)
        self._hessian /= self._tokens
        if self._drift is not None:
            self._drift /= self._tokens
        if not self._hessian.diagonal().isfinite().all():
            raise EdgewrightError(
                f"calibration: the model computes inputs of {name} that are NaN or too large for float32; its weights "
                "are damaged, or config.json does not belong to them"
            )
        return Inputs(self._hessian, self._drift, name=name)


class Layer:
    """One decoder layer on its way from the checkpoint to codes."""

    def __init__(self, task: Task, index: int, tokens: NDArray[np.int32], work: Path, advance: Callable[[], None]):
        self.task, self.index, self.advance = task, index, advance
        spec = task.spec
        self.prefix = f"model.layers.{index}."
        self.sequences, self.length = tokens.shape
        self.frequencies = decoder.rotary_frequencies(spec)
        self.work = work
        self.tensors: dict[str, NDArray[Any]] = {}
        self.evidence: list[TensorEvidence] = []
        self.columns: dict[str, Tensor] = {}  # factors folded into a slot's columns
        self.rows: dict[str, Tensor] = {}  # and out of its rows
        self.norms = {n: task.rows(self.prefix + n) for n in ("input_layernorm", "post_attention_layernorm")}
        self.full_norms = dict(self.norms)

    def spill(self, name: str, width: int) -> Spill:
        return Spill(self.work / f"{name}.f32", (self.sequences, self.length, width))

    def boundary(self, stream: str, layer: int) -> Spill:
        return self.spill(f"{stream}-{layer:03d}", self.task.spec.hidden)

    # -- the function of a layer ----------------------------------------------------------------------------------

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, self.task.spec.eps)

    def attend(self, qkv: Tensor) -> Tensor:
        spec = self.task.spec
        positions = torch.arange(self.length)[None]
        cos, sin = edge.rotary(positions, *self.frequencies)
        cache = torch.zeros(1, spec.kv_heads, self.length, spec.head_dim)
        scale = spec.head_dim**-0.5
        sizes = (spec.heads, spec.kv_heads, spec.head_dim, scale, spec.query_beta, spec.query_period)
        out: Tensor = edge.attention(qkv, cos, sin, positions, cache, cache, *sizes)[0]
        return out

    @staticmethod
    def gate(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up

    # -- the unquantized stream -----------------------------------------------------------------------------------

    def full_pass(self) -> None:
        """Run the unquantized layer over the calibration set; find the factors to fold on the way."""
        spec = self.task.spec
        qkv, o, both, down = (self.matrices(*names) for names in self.points())
        sizes = (spec.hidden, spec.query_width, spec.hidden, spec.intermediate)
        folding = [all(self.prefix + n in self.task.fold for n in names) for names in self.points()]
        gathered = [Gathered(n, False) if wanted else None for n, wanted in zip(sizes, folding, strict=True)]
        source, target = self.boundary("full", self.index), self.boundary("full", self.index + 1)
        attention, middle, product = self.scratch("full")
        for n in range(self.sequences):
            x = source.read(n)
            first = self.norm(x, self.norms["input_layernorm"])
            second = self.attend(linear(first, qkv))
            attention.write(n, second)
            x += linear(second, o)
            middle.write(n, x)
            third = self.norm(x, self.norms["post_attention_layernorm"])
            fourth = self.gate(linear(third, both))
            product.write(n, fourth)
            target.write(n, x + linear(fourth, down))
            for gather, inputs in zip(gathered, (first, second, third, fourth), strict=True):
                if gather is not None:
                    gather.add(inputs)
            self.advance()
        del qkv, o, both, down
        for point, gather in enumerate(gathered):
            if gather is not None:
                self.fold(point, gather.inputs(self.prefix + self.points()[point][0]).hessian)

    def plain_pass(self, source: Spill, target: Spill) -> None:
        """Run the unquantized layer, nothing else."""
        qkv, o, both, down = (self.matrices(*names) for names in self.points())
        for n in range(self.sequences):
            x = source.read(n)
            x += linear(self.attend(linear(self.norm(x, self.norms["input_layernorm"]), qkv)), o)
            inner = self.gate(linear(self.norm(x, self.norms["post_attention_layernorm"]), both))
            target.write(n, x + linear(inner, down))
            self.advance()

    def points(self) -> tuple[tuple[str, ...], ...]:
        """Matrices that share their inputs, in the order in which they run."""
        attention, mlp = "self_attn.{}_proj", "mlp.{}_proj"
        return (
            tuple(attention.format(m) for m in "qkv"),
            (attention.format("o"),),
            (mlp.format("gate"), mlp.format("up")),
            (mlp.format("down"),),
        )

    def scratch(self, stream: str) -> tuple[Spill, Spill, Spill]:
        spec = self.task.spec
        widths = {"attention": spec.query_width, "middle": spec.hidden, "product": spec.intermediate}
        attention, middle, product = (self.spill(f"{stream}-{n}", w) for n, w in widths.items())
        return attention, middle, product

    def matrices(self, *names: str) -> Tensor:
        return torch.cat([self.task.rows(self.prefix + n) for n in names])

    def fold(self, point: int, hessian: Tensor) -> None:
        """Search the factors of one point and note where they go; nothing is changed in the checkpoint."""
        spec, names = self.task.spec, self.points()[point]
        schemes = self.task.assignment.schemes
        members = [(self.task.rows(self.prefix + n), schemes[self.prefix + n]) for n in names]
        channels = torch.arange(members[0][0].shape[1])
        before = ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj")[point]
        if point == 1:  # query heads of a group read the same channel of values
            head, inside = channels // spec.head_dim, channels % spec.head_dim
            channels = head // (spec.heads // spec.kv_heads) * spec.head_dim + inside
        if before in self.norms:
            factors = awq.fold_factors(members, hessian, channels)
            # the divided norm is rounded to its dtype first, and the factors follow it: the fold stays exact
            old, dtype = self.norms[before], half_dtype(self.task.checkpoint, self.task.slots[self.prefix + before])
            new = torch.from_numpy(to_float32(from_float32((old / factors).numpy(), dtype).view(np.uint8), dtype))
            factors = torch.where((old == 0) | (new == 0), 1.0, old / new)
            self.norms[before] = torch.where(factors == 1, old, new)
            self.tensors[self.prefix + before + ".weight"] = self.norms[before].numpy()
        elif self.prefix + before not in self.task.prepare:
            return  # a rescaled matrix that is not quantized here would have to be rounded again
        else:
            factors = awq.fold_factors(members, hessian, channels)
            self.rows[before] = factors
        for name in names:
            self.columns[name] = factors[channels]

    # -- the quantized stream -------------------------------------------------------------------------------------

    def quantized_pass(self) -> float:
        """Quantize the layer's matrices, each from what the ones before it leave. Returns the relative output error."""
        spec = self.task.spec
        qkv_names, o_names, both_names, down_names = self.points()
        source, target = self.boundary("quantized", self.index), self.boundary("quantized", self.index + 1)
        attention, middle, product = self.scratch("quantized")
        full_attention, full_middle, full_product = self.scratch("full")
        full_source, full_target = self.boundary("full", self.index), self.boundary("full", self.index + 1)

        def normed(states: Spill, n: int, norm: str) -> Tensor:
            return self.norm(states.read(n), self.norms[norm])

        def full_normed(states: Spill, norm: str) -> Callable[[int], Tensor]:
            return lambda n: self.norm(states.read(n), self.full_norms[norm])

        def first(n: int) -> Tensor:
            return normed(source, n, "input_layernorm")

        held: dict[str, Tensor] = {}  # the matrices that the inputs of the next ones need
        full_first = full_normed(full_source, "input_layernorm")
        held["qkv"] = self.quantize(qkv_names, spec.hidden, first, full_first, held)

        def second(n: int) -> Tensor:
            states = self.attend(linear(first(n), held["qkv"]))
            attention.write(n, states)
            return states

        held["o"] = self.quantize(o_names, spec.query_width, second, full_attention.read, held)

        def third(n: int) -> Tensor:
            middle.write(n, source.read(n) + linear(attention.read(n), held["o"]))
            return normed(middle, n, "post_attention_layernorm")

        full_third = full_normed(full_middle, "post_attention_layernorm")
        held["both"] = self.quantize(both_names, spec.hidden, third, full_third, held)

        def fourth(n: int) -> Tensor:
            states = self.gate(linear(normed(middle, n, "post_attention_layernorm"), held["both"]))
            product.write(n, states)
            return states

        held["down"] = self.quantize(down_names, spec.intermediate, fourth, full_product.read, held)
        wrong = total = 0.0
        for n in range(self.sequences):
            out, full = middle.read(n) + linear(product.read(n), held["down"]), full_target.read(n)
            target.write(n, out)
            wrong += float((out - full).square().sum())
            total += float(full.square().sum())
            self.advance()
        return math.sqrt(wrong / total) if total else 0.0

    def quantize(
        self,
        names: tuple[str, ...],
        columns: int,
        inputs: Callable[[int], Tensor],
        full: Callable[[int], Tensor],
        held: dict[str, Tensor],
    ) -> Tensor:
        """Gather a point's inputs, quantize its matrices from them, and return these dequantized, stacked by rows.

        inputs, full: of a sequence, in the quantized model and, before any folding, in the unquantized one.
        held: what `inputs` reads; emptied once everything is gathered, before memory is needed most.
        """
        drift = any(self.prefix + name in self.task.correct for name in names)
        factors = self.columns.get(names[0], torch.ones(()))
        gathered = Gathered(columns, drift)
        for n in range(self.sequences):
            gathered.add(inputs(n), full(n) / factors if drift else None)
            self.advance()
        held.clear()
        found = gathered.inputs(self.prefix + names[0])
        del gathered
        prepares = [self.task.prepare.get(self.prefix + name) for name in names]
        distinct = [prepare for prepare in dict.fromkeys(prepares) if prepare is not None]
        rounders = {prepare: prepare(found.copy()) for prepare in distinct[:-1]}
        rounders |= {prepare: prepare(found) for prepare in distinct[-1:]}  # which may use the inputs up
        parts = [
            self.quantize_slot(name, rounders[prepare] if prepare else None, found)
            for name, prepare in zip(names, prepares, strict=True)
        ]
        for _ in range(self.sequences):
            self.advance()
        return torch.cat(parts)

    def quantize_slot(self, name: str, rounder: Rounder | None, inputs: Inputs) -> Tensor:
        slot = self.task.slots[self.prefix + name]
        if rounder is None:  # half precision, or codes that `methods` copies
            return self.task.rows(slot.name)
        divide, multiply = self.rows.get(name), self.columns.get(name)

        def blocks() -> Iterator[tuple[int, Tensor]]:
            for start, stop in row_blocks(slot.rows, slot.columns, _BLOCK_BYTES):
                rows = self.task.rows(slot.name, start, stop)
                if divide is not None:
                    rows = rows / divide[start:stop, None]
                yield start, rows if multiply is None else rows * multiply

        out = torch.empty(slot.rows, slot.columns)
        packed, evidence = quantize_matrix(slot, self.task.assignment, rounder, blocks(), inputs, out)
        self.tensors |= packed
        self.evidence.append(evidence)
        return out


def run_layers(task: Task, tokens: NDArray[np.int32], work: Path, progress: Progress) -> None:
    """Quantize every layer into `work`; layers that are there already are kept.

    The states "full-000" and "quantized-000" must be there: what the embedding gives, before and after quantization.
    """
    layers, sequences = task.spec.layers, len(tokens)
    first = next((i for i in range(layers) if not layer_file(work, i).done), layers)
    total = layers * sequences * _WORK_UNITS
    done = first * sequences * _WORK_UNITS

    def advance() -> None:
        nonlocal done
        done += 1
        progress("calibrating", done, total)

    for index in range(first, layers):
        layer = Layer(task, index, tokens, work, advance)
        layer.full_pass()
        error = layer.quantized_pass()
        layer_file(work, index).save(layer.tensors, layer.evidence, {"output_error": error})
        for stream in ("full", "quantized"):
            layer.boundary(stream, index).delete()


def layer_file(work: Path, index: int) -> LayerFile:
    return LayerFile(work / f"layer-{index:03d}.safetensors")
