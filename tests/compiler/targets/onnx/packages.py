"""Packages of random weights as the target writes them, sessions over them, and what the PyTorch reference answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts import ManifestDraft, read_manifest, silent, write_manifest
from artifacts.formats import interface
from artifacts.manifest import CheckpointEntry, RecipeEntry
from compiler import dialect
from compiler.models.base import Model
from compiler.quantize import rtn
from compiler.quantize.packed import PackedWeights, PackedWriter
from compiler.slots import HALF, Scheme
from compiler.targets import load_target
from compiler.targets.base import BuildJob, described
from compiler.targets.onnx.options import OnnxOptions
from runtime_tests.sessions.onnx import OnnxSession

Arrays = Mapping[str, NDArray[Any]]
TOLERANCE = 2e-4  # the target's exact_max_abs_logit


def make_job(
    model: Model, folder: Path, scheme: Scheme, others: Mapping[str, Scheme] | None = None, **options: Any
) -> BuildJob:
    """A job over random weights, rounded to nearest by `scheme`, or by `others` by slot name."""
    schemes = {slot.name: scheme for slot in model.slots if not slot.is_vector} | dict(others or {})
    folder.mkdir(parents=True)
    # any vector is laid out like a norm
    slots = [replace(slot, kind="norm") if slot.is_vector else slot for slot in model.slots]
    writer = PackedWriter(folder, slots, schemes, dict.fromkeys((slot.name for slot in slots), "F16"))
    generator = torch.Generator().manual_seed(0)
    for slot in slots:
        values = torch.randn(slot.rows, slot.columns, generator=generator) / slot.columns**0.5
        if slot.is_vector:
            writer.write_half(slot.name, 0, (1 + values[0] / 8).numpy())
        elif schemes.get(slot.name, HALF).bits == 16:
            writer.write_half(slot.name, 0, values.numpy())
        else:
            writer.write(slot.name, 0, rtn.quantize(values, schemes[slot.name]))
    writer.close({"model_type": model.family})
    return BuildJob("random", model, schemes, OnnxOptions(**options), PackedWeights(folder), folder)


def build(job: BuildJob, folder: Path) -> Path:
    """The package with its manifest."""
    folder.mkdir(parents=True)
    built = load_target("onnx").build(job, folder, silent)
    draft = ManifestDraft(
        created_by={},
        recipe=RecipeEntry(name="random", digest="0" * 64),
        target="onnx",
        family=job.model.family,
        checkpoint=CheckpointEntry(source="random"),
        components=tuple(described(job.model, built.narrowed)),
        driver=interface.Driver(name=job.model.driver, constants=dict(job.model.constants)),
        runtime=dict(built.runtime),
        weights_digest="0" * 64,
    )
    write_manifest(folder, draft)
    return folder


def opened(package: Path, *, exact: bool = True) -> OnnxSession:
    """A loaded session over a package."""
    session = OnnxSession(package, read_manifest(package))
    session.load(exact=exact)
    return session


@dataclass
class Reference:
    """The dialect's own semantics over the job's weights; states last from call to call, as in a session."""

    job: BuildJob
    states: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)

    def call(self, name: str, entry: str, **arrays: NDArray[Any]) -> dict[str, NDArray[Any]]:
        component = self.job.model.component(name)
        found = component.entry(entry)
        states = self.states.get(name) or tuple(torch.zeros(state.sized({})) for state in component.states)
        given = [torch.from_numpy(np.asarray(arrays[port.name])) for port in found.inputs]
        with torch.no_grad(), dialect.weights(self.job.weights):
            results = component.module(found, self.job.schemes)(*given, *states)
        self.states[name] = tuple(results[len(found.outputs) :])
        return {port.name: value.numpy() for port, value in zip(found.outputs, results, strict=False)}
