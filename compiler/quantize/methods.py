"""Runs the methods that a recipe's rules name over a checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import Progress
from compiler.checkpoint import Checkpoint
from compiler.models.decoder import DecoderSpec
from compiler.quantize.rules import Assignment
from compiler.quantize.stream import quantize_checkpoint
from compiler.slots import Slot
from recipes.schema import Quantize


def run(
    quantize: Quantize,
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    slots: list[Slot],
    assignment: Assignment,
    folder: Path,
    config: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Write the packed checkpoint into an empty folder, each slot by its rule's method."""
    modules = {
        n: importlib.import_module(f"compiler.quantize.{n}") for n in {r.method for r in assignment.rules.values()}
    }
    rounders = {name: modules[rule.method].quantize for name, rule in assignment.rules.items()}
    quantize_checkpoint(checkpoint, slots, assignment.schemes, rounders, folder, config, progress)
