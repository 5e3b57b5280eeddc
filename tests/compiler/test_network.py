"""`Tensors`: what is computed is what is captured, to the same bits, though what nothing else reads is written over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compiler import dialect, over
from compiler.graph import capture
from compiler.models.base import Model, read_model
from compiler.models.network import Shapes, Tensors, Value
from tests.compiler import portrait
from tests.compiler.quantize.test_convolutions import random
from tests.compiler.quantize.toys import Weights, module

TABLE = Weights({"wide": random(12, 45), "wide.bias": random(12, seed=1)})
X, Y = random(1, 5, 9, 8, seed=2), random(1, 12, 9, 8, seed=3)


def onto(layers: Any, x: Any, y: Any) -> Any:
    return layers.convolution(x, "wide", 12, (3, 3), padding=1, onto=y)


def onto_without_bias(layers: Any, x: Any, y: Any) -> Any:
    return layers.convolution(x, "wide", 12, (3, 3), padding=1, bias=False, onto=y)


def sigmoid(layers: Any, x: Any, y: Any) -> Any:
    return layers.pointwise(y, "sigmoid", over=True)


def gelu(layers: Any, x: Any, y: Any) -> Any:
    return layers.pointwise(y, "gelu", over=True)


def channel_by_channel(layers: Any, x: Any, y: Any) -> Any:
    def scaled(given: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.group_norm(given, given.shape[1]) * (1 + y)

    return layers.applied(scaled, (1, 12, 9, 8), layers.convolution(x, "wide", 12, (3, 3), padding=1), y, apart=True)


@pytest.mark.parametrize("body", [onto, onto_without_bias, sigmoid, gelu, channel_by_channel])
def test_what_nothing_else_reads_is_written_over_to_the_same_bits(
    body: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over, "_BLOCK_BYTES", 1)  # channel by channel
    monkeypatch.setattr("compiler.convolution._PLACE_BYTES", 4_000)
    layers, y = Tensors((), {}), Y.clone()
    with torch.no_grad(), dialect.weights(TABLE):
        program = torch.export.export(module(lambda x, y: body(layers, x, y)), (X, Y))
        expected = program.module()(X, y)
        assert torch.equal(y, Y) and not torch.equal(expected, Y)
        found = body(layers, X, y)
    assert torch.equal(found, expected) and found.data_ptr() == y.data_ptr()


def test_what_is_read_again_stays() -> None:
    layers, y = Tensors((), {}), Y.clone()
    with torch.no_grad(), dialect.weights(TABLE):
        layers.pointwise(y, "relu")
        layers.applied(torch.neg, y.shape, y)
        layers.convolution(X, "wide", 12, (3, 3), padding=1)
    assert torch.equal(y, Y)


def test_shapes_count_a_sum_that_is_written_over() -> None:
    """As the convolution and the sum that they are for every runtime."""
    sums = []
    for together in (True, False):
        shapes, x, y = Shapes(), Value((1, 5, 9, 8)), Value((1, 12, 9, 8))
        made = shapes.convolution(x, "wide", 12, (3, 3), padding=1, onto=y if together else None)
        sums.append((made if together else shapes.add(y, made), shapes.work(), [s.name for s in shapes.slots]))
    assert sums[0][0].shape == sums[1][0].shape and sums[0][1:] == sums[1][1:]


PORTRAIT = read_model({"model_type": "liveportrait", **portrait.SMALL}, None, 2)


def weights_of(model: Model) -> Weights:
    return Weights(
        {
            slot.name: random(*([slot.columns] if slot.is_vector else [slot.rows, slot.columns]), seed=at)
            / slot.columns**0.5
            for at, slot in enumerate(model.slots)
        }
    )


@pytest.mark.parametrize("name", ["appearance", "motion", "warping", "generator"])
def test_a_portrait_is_computed_as_it_is_captured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over, "_BLOCK_BYTES", 1)
    component = PORTRAIT.component(name)
    (entry,) = component.entries
    inputs = [random(*port.sized({}), seed=at) for at, port in enumerate(entry.inputs)]
    given = [value.clone() for value in inputs]
    with torch.no_grad(), dialect.weights(weights_of(PORTRAIT)):
        expected = capture(component, entry, {}).module()(*inputs)
        found = component.module(entry, {})(*given)
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * len(entry.outputs)
    assert all(torch.equal(a, b) for a, b in zip(given, inputs, strict=True))


def test_the_captured_portrait_writes_over_nothing() -> None:
    for component in PORTRAIT.components:
        for entry in component.entries:
            names = {str(n.target) for n in capture(component, entry, {}).graph.nodes if n.op == "call_function"}
            assert not [name for name in names if name.split(".")[1].endswith("_")]
