"""A two-layer checkpoint with a tokenizer, random weights, and short ways to quantize it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import silent
from compiler.checkpoint import Checkpoint
from compiler.drivers import driver_of
from compiler.models.base import read_model
from compiler.quantize import runner
from compiler.quantize.evidence import QuantizationEvidence
from compiler.quantize.methods import method_options
from compiler.quantize.packed import PackedWeights
from compiler.quantize.rules import assign
from compiler.targets import target_options
from recipes.schema import Calibration, Rule, recipe_model
from tests.bench.synthetic import ROOT
from tests.compiler import conftest
from tests.compiler.conftest import MINISTRAL3, random_tensors

TINY = ROOT / "recipes" / "checkpoints" / "tiny-ministral3"
CONFIG = MINISTRAL3 | {"vocab_size": 4096}  # that of the shipped tokenizer


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] = CONFIG) -> Path:
    """A checkpoint folder with the shipped checkpoint's tokenizer."""
    conftest.save(folder, config, tensors)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return save(tmp_path / "small", random_tensors(CONFIG))


def rules(*entries: dict[str, Any]) -> tuple[Rule, ...]:
    """Validated as in a recipe."""
    recipe = recipe_model(target_options(), method_options()).model_validate(
        {
            "name": "test",
            "checkpoint": {"path": "x"},
            "quantize": {"rules": list(entries)},
            "context": {"max_tokens": 64},
            "targets": {"onnx": {}},
        }
    )
    return tuple(recipe.quantize.rules)


Quantize = Callable[..., tuple[PackedWeights, QuantizationEvidence]]


@pytest.fixture
def quantize(tmp_path: Path) -> Quantize:
    """quantize(folder, rule, …, tokens=, work=): into a new folder, with few calibration tokens."""

    def run(
        source: Path, *entries: dict[str, Any], tokens: int = 256, work: Path | None = None, progress: Any = silent
    ) -> tuple[PackedWeights, QuantizationEvidence]:
        checkpoint = Checkpoint(source)
        model = read_model(checkpoint.config, checkpoint.names(), 64)
        assignment = assign(rules(*entries), model.slots)
        out = tmp_path / f"quantized-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        calibration, samples = Calibration(tokens=tokens), None
        if runner.calibrates(assignment):
            looked_at = driver_of(model).looked_at(calibration, None, model, source)
            samples = partial(driver_of(model).samples, model, looked_at=looked_at)
        work = work or tmp_path / f"work-{out.name}"
        found = runner.run(checkpoint, model, assignment, calibration, samples, out, work, progress)
        return PackedWeights(out), found

    return run
