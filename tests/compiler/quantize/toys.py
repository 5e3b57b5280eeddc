"""Small modules of edge ops that are no decoders, with random weights, and calibrated runs over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts import silent
from compiler import dialect
from compiler.codes import dequantize
from compiler.dialect import edge
from compiler.quantize.calibrated.files import SegmentFile
from compiler.quantize.calibrated.run import run
from compiler.quantize.calibrated.task import Task
from compiler.quantize.interface import Inputs, Rounder, Treatment
from compiler.quantize.methods import load_method
from compiler.slots import HALF, Scheme, Slot

EPS = 1e-5


def linear(x: torch.Tensor, columns: int, **rows: int) -> torch.Tensor:
    """edge.linear over slots by their rows; a dot in a slot's name is written as two underscores."""
    names = [name.replace("__", ".") for name in rows]
    out: torch.Tensor = edge.linear(x, names, list(rows.values()), columns, HALF.bits, HALF.group, HALF.symmetric)
    return out


def norm(x: torch.Tensor, slot: str) -> torch.Tensor:
    out: torch.Tensor = edge.rms_norm(x, slot, x.shape[-1], EPS)
    return out


class Weights:
    """Rows by slot name."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        found = self.tensors[name].numpy()
        return found if found.ndim == 1 else found[start:stop]


def treatment(method: str = "gptq", bits: int = 4, group: int = 16, **options: Any) -> Treatment:
    """A method as a rule would name it."""
    module = load_method(method)
    chosen = module.OPTIONS(**options)
    return Treatment(
        method=method,
        scheme=Scheme(bits, group),
        prepare=lambda inputs: module.rounder(chosen, inputs),
        calibrated=bool(getattr(module, "CALIBRATED", False)),
        corrects=hasattr(module, "corrects") and module.corrects(chosen),
        folding=module.folding(chosen) if hasattr(module, "folding") else None,
    )


@dataclass
class Toy:
    """A module with weights of `shapes` by slot, samples, and how its slots are quantized."""

    module: torch.nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    samples: Sequence[tuple[torch.Tensor, ...]]
    treatments: Mapping[str, Treatment]
    cuts: Sequence[str] = ()
    weightings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.weights = Weights(
            {
                name: 1 + 0.1 * torch.randn(shape, generator=generator)
                if len(shape) == 1
                else torch.randn(shape, generator=generator) / shape[1] ** 0.5
                for name, shape in self.shapes.items()
            }
        )
        self.seen: dict[str, Inputs] = {}

    def run(self, work: Path, progress: Any = silent) -> list[SegmentFile]:
        work.mkdir(exist_ok=True)
        slots = {
            name: Slot(
                name, name, shape[0] if len(shape) == 2 else 1, shape[-1], "linear" if len(shape) == 2 else "norm"
            )
            for name, shape in self.shapes.items()
        }
        treatments = {name: self._watched(found) for name, found in self.treatments.items()}
        half = dict.fromkeys(slots, "F32")
        task = Task(self.module, self.samples, self.cuts, slots, self.weights, half, treatments, dict(self.weightings))
        return run(task, work, progress)

    def _watched(self, given: Treatment) -> Treatment:
        """The same, noting the inputs by the name of the first slot that they are of."""

        def prepare(inputs: Inputs | None) -> Rounder:
            assert inputs is not None
            self.seen[inputs.name] = inputs.copy()
            return given.prepare(inputs)

        return Treatment(given.method, given.scheme, prepare, given.calibrated, given.corrects, given.folding)

    def call(self, weights: Weights, sample: int = 0) -> torch.Tensor:
        with torch.no_grad(), dialect.weights(weights):
            out: torch.Tensor = self.module(*self.samples[sample])
        return out

    def quantized(self, files: Sequence[SegmentFile]) -> Weights:
        """The weights as a run left them."""
        found = dict(self.weights.tensors)
        for file in files:
            found |= {slot: torch.from_numpy(norm) for slot, norm in file.norms().items()}
            found |= {slot: torch.from_numpy(dequantize(m.codes(slice(None)))) for slot, m in file.matrices()}
        return Weights(found)


def samples(count: int, *shape: int, seed: int = 7) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator),) for _ in range(count)]


def module(forward: Callable[..., torch.Tensor]) -> torch.nn.Module:
    """A module from its forward function."""

    class Made(torch.nn.Module):
        pass

    Made.forward = lambda self, *inputs: forward(*inputs)  # type: ignore[method-assign]
    return Made()
