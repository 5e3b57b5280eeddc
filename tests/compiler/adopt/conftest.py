"""A FeatherTalk checkpoint as its project publishes it, small, and what `adopt` makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import silent
from compiler.adopt import Adopted, adopt
from tests.compiler.avatars import small_encoder, small_unet

Adopt = Callable[..., Adopted]


def save_unet(path: Path, module: torch.nn.Module) -> Path:
    """As train.py writes it."""
    torch.save({"epoch": 3, "model": module.state_dict(), "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


def save_encoder(path: Path, module: torch.nn.Module) -> Path:
    """As feather_hubert.py reads it."""
    torch.save({"model": module.state_dict(), "config": {"channels": 32, "dropout": 0.05}}, path)
    return path


def save_expression(path: Path, module: torch.nn.Module) -> Path:
    """As engines/infer.py reads it."""
    state = {f"module.backbone.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 9}, path)
    return path


@pytest.fixture
def published(tmp_path: Path) -> list[Path]:
    return [save_unet(tmp_path / "last.pth", small_unet()), save_encoder(tmp_path / "hubert.pth", small_encoder())]


@pytest.fixture
def take(tmp_path: Path) -> Adopt:
    """take(*files, family=…, licence=…): adopted into a folder of the test's own."""

    def run(*files: Path, family: str = "feathertalk", licence: str | None = "apache-2.0", **more: Any) -> Adopted:
        return adopt(list(files), family, more.get("out", tmp_path / "adopted"), licence, silent)

    return run
