"""A small artifact folder, as a target would leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from artifacts import Check, Figure
from artifacts.formats.interface import Component, Dimension, Driver, Entry, Port
from artifacts.manifest import (
    CheckpointEntry,
    ManifestDraft,
    QuantizationGroup,
    RecipeEntry,
    ValidationRecord,
    write_manifest,
)

IDS = Port(name="input_ids", dtype="int64", shape=(1, "tokens"), below=32)
LOGITS = Port(name="logits", dtype="float32", shape=(1, 1, 32))
DECODER = Component(
    name="decoder",
    entries=(
        Entry(name="prefill", inputs=(IDS,), outputs=(LOGITS,), dimensions={"tokens": Dimension(low=1, high=64)}),
        Entry(
            name="chunk",
            inputs=(IDS,),
            outputs=(LOGITS,),
            dimensions={"tokens": Dimension(low=8, high=64, sizes=(8, 64))},
        ),
    ),
    states=(Port(name="cache", dtype="float32", shape=(1, 2, 64, 8)),),
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
    components=(DECODER,),
    driver=Driver(name="text", constants={"max_tokens": 64, "eos": [2]}),
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


def of_schema_1(folder: Path) -> None:
    """Make an artifact one of an Edgewright whose manifests had schema version 1."""
    path = folder / "edgewright.json"
    content = json.loads(path.read_text())
    for name in ("components", "driver"):
        del content[name]
    path.write_text(json.dumps(content | {"schema_version": 1}))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "onnx"
    folder.mkdir()
    fill(folder)
    return folder
