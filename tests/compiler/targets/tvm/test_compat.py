"""Upstream's importer gets six things wrong; our converters get them right. Each test holds both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from compiler.targets.tvm.compat import CONVERTERS


class Calling(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def run(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], converters: dict[str, Any] | None) -> Any:
    program = torch.export.export(Calling(function), inputs).run_decompositions()
    module = from_exported_program(program, custom_convert_map=converters)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    out = machine["main"](*(tvm.runtime.tensor(x.numpy()) for x in inputs))
    return (out if hasattr(out, "numpy") else out[0]).numpy()


INTEGERS = torch.tensor([1, 2, 3, 7], dtype=torch.int64)
FLOW = torch.rand(2, 5, 4, 2) * 2.4 - 1.2
VOLUME = torch.rand(1, 3, 4, 5, 3) * 2.4 - 1.2
CASES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "division of integers": (lambda x: torch.div(x, 2), (INTEGERS,)),
    "reciprocal of integers": (lambda x: torch.reciprocal(x), (INTEGERS,)),
    "grid_sample over images": (
        lambda x, g: F.grid_sample(x, g, mode="bilinear", padding_mode="zeros", align_corners=False),
        (torch.randn(2, 3, 6, 7), FLOW),
    ),
    "grid_sample over volumes": (
        lambda x, g: F.grid_sample(x, g, mode="bilinear", padding_mode="border", align_corners=False),
        (torch.randn(1, 2, 4, 5, 6), VOLUME),
    ),
    "clamp of integers": (lambda x: torch.clamp(torch.clamp(x, min=2), max=3), (INTEGERS,)),
    "group_norm without weights": (lambda x: F.group_norm(x, 3), (torch.randn(2, 6, 5) + 2,)),
}


@pytest.mark.parametrize("name", CASES)
def test_our_converters_agree_with_pytorch(name: str) -> None:
    function, inputs = CASES[name]
    np.testing.assert_allclose(run(function, inputs, dict(CONVERTERS)), function(*inputs), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_without_them_upstream_is_wrong_or_fails(name: str) -> None:
    function, inputs = CASES[name]
    try:
        found = run(function, inputs, None)
    except Exception:
        return
    expected = function(*inputs).numpy()
    assert found.shape != expected.shape or np.abs(found - expected).max() > 0.1


def test_a_group_norm_with_weights_and_floats_between_bounds_stay_upstreams() -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.clamp(F.group_norm(x, 3, weight, bias), min=-0.5)

    inputs = torch.randn(2, 6, 5), torch.rand(6), torch.randn(6)
    np.testing.assert_allclose(run(function, inputs, dict(CONVERTERS)), function(*inputs), atol=1e-5)
