"""A small artifact folder, as a target would leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from artifacts import Check, Figure
from artifacts.manifest import (
    CheckpointEntry,
    ManifestDraft,
    QuantizationGroup,
    RecipeEntry,
    ValidationRecord,
    write_manifest,
)

DRAFT = ManifestDraft(
    created_by={"edgewright": "0.1.0", "onnx": "1.23.2"},
    recipe=RecipeEntry(name="quickstart", digest="1" * 64),
    target="onnx",
    family="decoder",
    checkpoint=CheckpointEntry(source="tiny"),
    quantization=(
        QuantizationGroup(bits=4, group=32, symmetric=True, method="rtn", tensors=3, parameters=96, bytes=60),
    ),
    runtime={"model": "model.onnx", "max_tokens": 1024},
    figures=(Figure(name="size", value=20, unit="bytes", obtained="measured"),),
    weights_digest="2" * 64,
)


def record(verdict: Literal["passed", "failed"], *, limits: bool = True) -> ValidationRecord:
    """What a validation leaves; by the limits of DRAFT's recipe, or of none."""
    return ValidationRecord(
        verdict=verdict,
        created="2026-01-02T03:04:05+00:00",
        host="a machine",
        edgewright="0.1.0",
        limits=DRAFT.recipe if limits else None,
        checks=(
            Check(
                group="parity",
                name="x",
                label="max |Δlogit|",
                value=1.0,
                limit=2.0,
                direction="at most",
                unit="logit",
                obtained="measured",
                verdict=verdict,
            ),
        ),
    )


def fill(folder: Path) -> None:
    """Write a payload and its manifest into an existing folder."""
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "weights").mkdir()
    (folder / "weights" / "model.onnx.data").write_bytes(bytes(range(256)) * 16)
    write_manifest(folder, DRAFT)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "onnx"
    folder.mkdir()
    fill(folder)
    return folder
