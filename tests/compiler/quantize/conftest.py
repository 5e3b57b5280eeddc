"""A two-layer checkpoint with a tokenizer, random weights, and short ways to quantize it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from artifacts import silent
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.quantize import runner
from compiler.quantize.evidence import QuantizationEvidence
from compiler.quantize.methods import method_options
from compiler.quantize.packed import PackedWeights
from compiler.quantize.rules import assign
from compiler.targets import target_options
from recipes.schema import Calibration, Rule, recipe_model
from tests.bench.synthetic import ROOT
from tests.compiler.conftest import MINISTRAL3, random_tensors

TINY = ROOT / "recipes" / "checkpoints" / "tiny-ministral3"
CONFIG = MINISTRAL3 | {"vocab_size": 4096}  # that of the shipped tokenizer


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] = CONFIG) -> Path:
    """A checkpoint folder with the shipped checkpoint's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
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
        spec = decoder.read_spec(checkpoint.config)
        slots = decoder.slots(spec, list(checkpoint.tensors.names()))
        assignment = assign(rules(*entries), slots)
        out = tmp_path / f"quantized-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        found = runner.run(
            checkpoint,
            spec,
            slots,
            assignment,
            Calibration(tokens=tokens),
            None,
            out,
            work or tmp_path / f"work-{out.name}",
            checkpoint.config,
            progress,
        )
        return PackedWeights(out, slots), found

    return run
