"""Small ML Programs, built with coremltools' builder and saved as packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Saver = Callable[..., Path]


def save(path: Path, make: Callable[[Any], Any], *, half: bool = False, ios: str = "iOS18") -> Path:
    """Convert the program that `make(builder)` returns (its inputs are float32) and save it."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    model = ct.convert(
        make(mb),
        minimum_deployment_target=getattr(ct.target, ios),
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def two_layers(mb: Any) -> Any:
    """y = relu(x @ w.T) + 1 with w of a fixed seed, [2, 8] to [2, 5]."""
    import coremltools as ct

    weight = np.random.default_rng(0).uniform(-1, 1, (5, 8)).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 8))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        hidden = mb.linear(x=x, weight=weight, name="hidden")
        return mb.add(x=mb.relu(x=hidden, name="active"), y=np.float32(1), name="y")

    return program


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two_layers` in float32. Tests that change it copy it first."""
    return save(tmp_path_factory.mktemp("mil") / "small.mlpackage", two_layers)


@pytest.fixture(scope="session")
def small_half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two_layers` in float16."""
    return save(tmp_path_factory.mktemp("mil") / "half.mlpackage", two_layers, half=True)
