"""Jobs over random weights for models that have no checkpoint, and sessions over packages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from artifacts import read_manifest
from compiler.models.base import Model
from compiler.quantize.methods import rtn
from compiler.quantize.packed import PackedWeights, PackedWriter
from compiler.slots import HALF, Scheme
from compiler.targets.base import BuildJob
from compiler.targets.onnx.options import OnnxOptions
from runtime_tests.sessions.onnx import OnnxSession

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
