"""Jobs over random weights for models that have no checkpoint, packages, sessions over them, and what runs there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch

from artifacts import Manifest, read_manifest, silent
from artifacts.formats import tensor_file, vectors
from artifacts.formats.interface import Component
from compiler.models.base import Model
from compiler.models.interface import described
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights, PackedWriter
from compiler.slots import HALF, Scheme
from compiler.targets.base import BuildJob
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.onnx.target import OnnxTarget
from compiler.vectors import entry_outputs, rounded
from runtime_tests.sessions import make_session
from runtime_tests.sessions.onnx import OnnxSession
from runtime_tests.vectors import Error, measured
from tests.compiler.conftest import packed

TOLERANCE = 2e-4  # the target's exact_max_abs_logit


def make_job(
    model: Model, folder: Path, scheme: Scheme, others: Mapping[str, Scheme] | None = None, **options: Any
) -> BuildJob:
    """Random weights, rounded to nearest by `scheme`, or by `others` by slot name."""
    schemes = {slot.name: scheme for slot in model.slots if not slot.is_vector} | dict(others or {})
    folder.mkdir(parents=True)
    writer = PackedWriter(folder, model.slots, schemes, dict.fromkeys((slot.name for slot in model.slots), "F16"))
    generator = torch.Generator().manual_seed(0)
    for slot in model.slots:
        values = torch.randn(slot.rows, slot.columns, generator=generator) / slot.columns**0.5
        if slot.is_vector:
            writer.write_half(slot.name, 0, (1 + values[0] / 8).numpy())
        elif schemes.get(slot.name, HALF).bits == 16:
            writer.write_half(slot.name, 0, values.numpy())
        else:
            writer.write(slot.name, 0, rtn.quantize(values, schemes[slot.name]))
    writer.close({"model_type": model.family})
    return BuildJob("random", model, schemes, OnnxOptions(**options), PackedWeights(folder), folder)


def opened(package: Path, *, exact: bool = True) -> OnnxSession:
    """A loaded session over a package."""
    session = OnnxSession(package, read_manifest(package))
    session.load(exact=exact)
    return session


class Package:
    """A job's package with its vectors, read back from their file."""

    def __init__(self, job: BuildJob, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.manifest: Manifest = packed(job, "onnx", folder)
        self.parts: tuple[Component, ...] = tuple(described(job.model, {}))
        given = job.model, job.schemes, job.weights
        plan = vectors.planned(self.parts, 1 << 31, *OnnxTarget.entry_tolerances, rounds=1)
        plan, steps = rounded(*given, plan, self.parts, job.roundings)
        file = folder / vectors.VECTORS
        content = vectors.content(plan, entry_outputs(*given, plan, self.parts), steps)
        tensor_file.write_tensors(file, *content, vectors.MAX_BYTES)
        self.expected = vectors.read(file, self.parts)

    def errors(self, *, exact: bool = False) -> dict[str, Error]:
        session = make_session(self.folder, self.manifest)
        session.load(exact=exact, threads=1)
        found = measured(session, self.expected, self.parts, silent, exact=exact)
        return {component: error for (component, _), error in found.items()}

    def file(self, component: str) -> Path:
        return next(self.folder.glob(f"{component}.*.onnx"))


def kernels(file: Path, scratch: Path) -> Counter[str]:
    """What ONNX Runtime makes of a graph."""
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(scratch / "optimized.onnx")
    ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(scratch / "optimized.onnx", load_external_data=False).graph.node)
