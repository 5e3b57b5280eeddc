"""What the reference holds at once: blocks of a convolution, values written over others, codes one by one.

None of it may change a bit of what is computed, but for the order of sums within float32 kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from artifacts.formats import vectors
from compiler import convolution, dialect
from compiler.dialect import edge
from compiler.graph import Node, op_name
from compiler.quantize.activations.walk import Walk

from .test_convolutions import GEOMETRIES, convolve, random
from .toys import Weights, module

MORE: dict[str, dict[str, Any]] = {
    **GEOMETRIES,
    "depthwise": {"groups": 6, "padding": [1, 1]},
    "volume": {"kernel": [3, 2, 3], "padding": [1, 0, 2], "stride": [2, 1, 1], "dilation": [1, 1, 2]},
    "line": {"kernel": [5], "padding": [4], "dilation": [2], "stride": [3]},
}


@pytest.mark.parametrize("place_bytes", [1, 8_000], ids=["place by place", "some places"])
@pytest.mark.parametrize("name", MORE)
def test_a_convolution_in_blocks_is_that_in_one(name: str, place_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = MORE[name]
    kernel, groups = geometry.get("kernel", [3, 3]), geometry.get("groups", 1)
    x = random(2, 6, *([9, 8, 7] if len(kernel) == 3 else [17, 16][: len(kernel)])).double()
    weight = random(12, 6 // groups, *kernel, seed=1)
    ones = [1] * len(kernel)
    settings = {key: geometry.get(key, ones) for key in ("stride", "dilation")}
    padding = geometry.get("padding", [0] * len(kernel))
    functional: Any = torch.nn.functional
    expected = getattr(functional, f"conv{len(kernel)}d")(
        x, weight.double(), None, padding=padding, groups=groups, **settings
    )
    monkeypatch.setattr(convolution, "_PLACE_BYTES", place_bytes)
    monkeypatch.setattr(dialect, "_BLOCK_BYTES", 1)
    with torch.no_grad(), dialect.weights(Weights({"conv": weight.flatten(1)}), torch.float64):
        found = convolve(x, **geometry)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def branching(x: torch.Tensor) -> torch.Tensor:
    """Values that are read again later, by themselves and through views, beside some that are not."""
    first = torch.relu(edge.bias(convolve(x, "first", 8, padding=[1, 1]), ["first.bias"], [8], 1))
    seen = first[:, :4] + 1
    normed = torch.nn.functional.group_norm(first, 4) * (1 + first)
    folded = convolve(normed, "second", 8, padding=[1, 1]).reshape(1, 4, -1)
    second = torch.nn.functional.leaky_relu(folded, 0.2).reshape(1, 8, 8, 8)
    view = second[:, 2:6]
    both = torch.sigmoid(second) + second
    return torch.cat([both, view, torch.relu(seen), x], 1)


TABLE = Weights({"first": random(8, 45), "first.bias": random(8, seed=2), "second": random(8, 72, seed=3)})
X = random(1, 5, 8, 8, seed=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_value_is_written_over_only_where_nobody_reads_it_again(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    places: dict[Node, int] = {}
    shared: list[str] = []
    with torch.no_grad():
        walk = Walk(torch.export.export(module(branching), (X,)))

    def note(node: Node, value: torch.Tensor) -> torch.Tensor:
        places[node] = value.data_ptr()
        shared.extend(op_name(node) for source in node.all_input_nodes[:1] if places.get(source) == value.data_ptr())
        return value

    with torch.no_grad(), dialect.weights(TABLE, dtype):
        expected, given = branching(x), x.clone()
        (found,) = walk.answer([x], note)
    assert torch.equal(found, expected) and torch.equal(x, given)
    # bias and relu over the convolution, but no sum or norm over what is read again; a view is its source's memory
    over = [name for name in shared if name not in ("aten::slice", "aten::reshape")]
    assert over[:2] == ["edge::bias", "aten::relu"] and "aten::group_norm" not in over and over.count("aten::relu") == 2
    assert "aten::leaky_relu" in over and "aten::sigmoid" not in over


def test_a_norm_of_groups_is_the_same_over_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from compiler import over

    def normed(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.group_norm(convolve(x, "first", 8, padding=[1, 1]), 4, eps=0.5)

    monkeypatch.setattr(over, "_BLOCK_BYTES", 1)  # group by group
    with torch.no_grad(), dialect.weights(TABLE):
        walk = Walk(torch.export.export(module(normed), (X,)))
        assert torch.equal(walk.answer([X])[0], normed(X))


def test_given_codes_of_one_value_are_those_among_all() -> None:
    shapes = {"first": (1, 8, 4), "second": (3,)}
    rounded = vectors.Rounded(values={"part": shapes}, shipped={}, steps={}, codes=0.25)
    call = vectors.Call(component="part", entry="run")
    plan = vectors.Calls(seed=5, calls=(call, call), exact=0.1, shipped=0.1, rounded=rounded)
    for at in (0, 1):
        every = vectors.given_codes(plan, at, 2)
        assert {name: codes.shape for name, codes in every.items()} == shapes
        for number, (name, codes) in enumerate(every.items()):
            expected = np.random.default_rng([5, at, 2 + number]).integers(0, 256, shapes[name], np.uint8)
            np.testing.assert_array_equal(codes, expected)
            np.testing.assert_array_equal(vectors.given_code(plan, at, 2, name), expected)
