"""Quantizing a wide model in a process of its own: all methods that look at one tensor after the other can go there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifacts.manifest import sha256_file
from compiler.models.base import Model
from compiler.quantize import runner
from tests.compiler.conftest import travelled

from .conftest import Quantize


@pytest.mark.parametrize(
    "rule",
    [
        {"bits": 4, "group": 32},
        {"bits": 8, "group": "channel", "method": "mse"},
        {"bits": 4, "group": 32, "method": "hqq", "symmetric": False},
        {"bits": 4, "group": 32, "method": "mlx_affine", "symmetric": False},
    ],
    ids=str,
)
def test_weights_and_evidence_are_the_same(
    rule: dict[str, Any], small: Path, quantize: Quantize, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"match": "*embed*", "bits": 16}, {"match": "*", **rule}
    here, expected = quantize(small, *rules)
    seen: list[tuple[str, int, int]] = []
    monkeypatch.setattr(runner, "apart", travelled)
    monkeypatch.setattr(Model, "wide", True)
    there, found = quantize(small, *rules, progress=lambda *event: seen.append(event))
    files = [table.path / "model.safetensors" for table in (here, there)]
    assert sha256_file(files[0]) == sha256_file(files[1]) and found == expected
    assert seen[-1][0] == "quantizing" and seen[-1][1] == seen[-1][2]
