"""What codes of activations stand for: which values are rounded, over which range, and what that costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from artifacts import EdgewrightError
from compiler import activations, dialect
from compiler.activations import Affine, Rounding, insert, places
from compiler.dialect import edge
from compiler.graph import op_name
from compiler.quantize.activations.ranges import Histograms, affine_of
from compiler.quantize.activations.sensitivity import alone, choose
from compiler.quantize.activations.walk import Walk, rounding

from .test_convolutions import convolve
from .toys import Weights, module


def block(x: torch.Tensor) -> torch.Tensor:
    """A convolution with bias and relu, one beside it, added; larger; one at the end, and behind it floats."""
    first = torch.relu(edge.bias(convolve(x, "first", 8, padding=[1, 1]), ["first.bias"], [8], 1))
    second = convolve(first, "second", 8, padding=[1, 1])
    both = torch.cat([torch.relu(first + second), x[:, :2]], 1)
    wide = torch.nn.functional.interpolate(both, [16, 16], mode="bilinear", align_corners=True)
    return torch.nn.functional.gelu(convolve(wide, "last", 4, padding=[1, 1])) * 2


SHAPES = {"first": (8, 45), "second": (8, 72), "last": (4, 90)}
X = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(0))


def table() -> Weights:
    made = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=made) * shape[1] ** -0.5 for name, shape in SHAPES.items()}
    return Weights({**tensors, "first.bias": torch.randn(8, generator=made)})


def program() -> Any:
    with torch.no_grad():
        return torch.export.export(module(block), (X,))


def names(slots: set[str]) -> dict[str, str]:
    return {value.name: source.name for value, source in places(program(), slots).values.items()}


def test_all_between_convolutions_is_rounded_and_nothing_behind_the_last() -> None:
    found = names(set(SHAPES))
    last = next(n for n in program().graph.nodes if op_name(n) == "edge::convolution" and n.args[1] == "last")
    # the input; both convolutions, the first behind its relu; the relu behind the sum, joined with a part of the input
    assert set(found) == {
        "inputs_0",
        "relu",
        "convolution_1",
        "slice_1",
        "relu_1",
        "cat",
        "upsample_bilinear2d",
        last.name,
    }
    assert {value: source for value, source in found.items() if value != source} == {"slice_1": "inputs_0"}


def test_what_one_convolution_alone_needs() -> None:
    assert set(names({"second"})) == {"relu", "convolution_1"}
    assert names(set()) == {}


def test_a_part_has_the_codes_of_the_whole() -> None:
    def parts(x: torch.Tensor) -> torch.Tensor:
        return convolve(torch.cat([x[:, :2], x[:, 3:]], 1), "second", 8)

    with torch.no_grad():
        exported = torch.export.export(module(parts), (X,))
    found = {value.name: source.name for value, source in places(exported, {"second"}).values.items()}
    assert sorted(found.values()) == ["cat", "convolution", "inputs_0", "inputs_0", "inputs_0"]


def test_an_inserted_graph_computes_what_a_walk_does() -> None:
    exported, plain = program(), program()
    values = {name: Affine(scale=0.03, zero=0 if "relu" in name else 117) for name in names(set(SHAPES))}
    insert(exported, Rounding(slots=frozenset(SHAPES), values=values))
    walk = Walk(plain)
    by_node = {node: values[node.name] for node in (*walk.inputs, *walk.nodes) if node.name in values}
    with torch.no_grad(), dialect.weights(table()):
        (expected,) = walk.answer([X], rounding(by_node))
        (found,) = exported.module()(X) if isinstance(exported.module()(X), tuple) else (exported.module()(X),)
        (wide,) = walk.answer([X])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert 1e-3 < (expected - wide).norm() / wide.norm() < 0.2


@given(st.floats(-100, 0), st.floats(0, 100), st.integers(0, 2**32 - 1))
def test_zero_is_a_code_and_no_value_within_the_range_is_further_off_than_half_a_step(
    low: float, high: float, seed: int
) -> None:
    affine = affine_of(low, high)
    x = torch.from_numpy(np.random.default_rng(seed).uniform(low, high, 64))
    rounded = edge.rounded(x, "x", affine.scale, affine.zero)
    assert (rounded - x).abs().max() <= 0.5001 * affine.scale + abs(min(0, 255 - affine.zero)) or high - low < 1e-30
    assert edge.rounded(torch.zeros(1, dtype=torch.float64), "x", affine.scale, affine.zero) == 0


@pytest.mark.parametrize(("tail", "share"), [(False, (0.95, 1.001)), (True, (0.2, 0.9))], ids=["even", "long tail"])
def test_a_range_is_cut_where_that_makes_the_error_least(tail: bool, share: tuple[float, float]) -> None:
    node = next(iter(program().graph.nodes))
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(2))
    values = (-values.clamp(min=1e-5).log()) ** 2.5 if tail else values * 10
    histograms = Histograms([node])
    for part in values.chunk(5):
        histograms.see(node, part)
    affine = histograms.affine(node)
    assert affine.zero == 0 and share[0] <= 255 * affine.scale / float(values.max()) <= share[1]

    def error(scale: float) -> float:
        return float((edge.rounded(values, "x", scale, 0) - values).square().sum())

    assert error(affine.scale) <= 1.05 * min(error(float(values.max()) * 0.97**k / 255) for k in range(60))


def test_values_that_are_no_numbers_are_named() -> None:
    node = next(n for n in program().graph.nodes if n.op == "call_function")
    with pytest.raises(EdgewrightError, match=r"calibration: \w+ is NaN or too large for float32; .* are damaged"):
        Histograms([node]).see(node, torch.tensor([1.0, float("inf")]))


def test_a_value_is_judged_by_what_rounding_it_alone_costs() -> None:
    walk, whole = Walk(program()), places(program(), set(SHAPES))
    steps = {
        node.name: Affine(scale=0.5 if node.name == "relu" else 0.05, zero=0 if "relu" in node.name else 128)
        for node in whole.values
    }
    affines = {node: steps[node.name] for node in (*walk.inputs, *walk.nodes) if node.name in steps}
    with torch.no_grad(), dialect.weights(table()):
        full = walk.answer([X])
        found = alone(walk, affines, (X,), full, lambda: None)
        for node, decibels in found.items():
            (one,) = walk.answer([X], rounding({node: affines[node]}))
            wrong = float((one - full[0]).double().square().sum())
            expected = 10 * np.log10(float(full[0].double().square().sum()) / wrong)
            assert decibels == pytest.approx(expected, abs=1e-3)
    assert found.keys() == affines.keys() and min(found, key=lambda node: found[node]).name == "relu"


def test_the_fewest_are_kept_that_reach_the_limit() -> None:
    found = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0}
    touched = {"first": ["a", "b"], "second": ["b", "c"], "third": ["c", "d"], "fourth": ["d"]}

    def measure(kept: frozenset[str]) -> float:
        return 12.0 + 9 * len(kept)

    nodes: Any = touched
    for least, expected in (
        (None, ()),
        (12.0, ()),
        (13.0, ("first",)),
        (30.0, ("first", "second")),
        (99.0, tuple(touched)),
    ):
        measured = choose(nodes, lambda: found, least, measure)  # type: ignore[arg-type,return-value]
        assert measured.kept == expected and measured.before == 12.0
        assert least is None or measured.after >= least


def test_the_file_comes_back_and_is_written_alike(tmp_path: Path) -> None:
    roundings = {
        "renderer": Rounding(slots=frozenset(SHAPES), values={"x": Affine(scale=float(np.float32(0.1)), zero=3)})
    }
    assert activations.read(tmp_path) == {}
    activations.write(tmp_path, roundings)
    assert activations.read(tmp_path) == roundings
    content = json.loads((tmp_path / activations.FILE).read_text())
    assert content["renderer"]["slots"] == sorted(SHAPES)
