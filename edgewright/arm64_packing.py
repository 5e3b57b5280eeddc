"""Weights as the kernels of a phone's processor pack them, by the ARM64 build of ONNX Runtime, emulated.

What lives here: handing one stage of the compiler the runtime that it needs. What must not: what is packed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import artifacts
from artifacts import EdgewrightError
from artifacts.formats.onnx import Packing
from compiler.targets.onnx.prepack import Saver
from device_farm import arm64, arm64_tier


def savers() -> Mapping[str, Saver]:
    """By the word that a recipe has for the processor."""
    return {cpu: Saver(partial(_save, cpu), arm64_tier.missing) for cpu in arm64.CPUS}


def _save(cpu: str, graph: Path, weights: Path, saved: Path) -> Packing:
    own = str(Path(artifacts.__file__).parents[1])
    variables = {**os.environ, "PYTHONPATH": own, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        arm64_tier.python(["-m", "compiler.targets.onnx.packer", cpu, graph, weights, saved], cpu=cpu),
        env=arm64_tier.environment(variables),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = done.stderr.strip().splitlines()
        raise EdgewrightError(f"onnx: prepacked: {cpu}: the emulated runtime failed: {why[-1] if why else 'no reason'}")
    return Packing.model_validate_json(done.stdout)
