"""Convolutions in calibration: what their matrix is multiplied by, and that methods which look at it gain by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import EdgewrightError
from compiler.dialect import edge
from compiler.graph import Node, operations
from compiler.quantize.calibrated.kinds import kind_of
from compiler.slots import HALF

from .toys import Toy, Weights, linear, module, treatment

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": [2, 3]},
    "padded": {"padding": [2, 1]},
    "dilated": {"dilation": [2, 3]},
    "strided, dilated, padded": {"stride": [2, 3], "dilation": [3, 2], "padding": [3, 1]},
    "pointwise": {"kernel": [1, 1]},
    "uneven kernel": {"kernel": [1, 4], "padding": [0, 2], "stride": [1, 2]},
}


def convolve(
    x: torch.Tensor,
    slot: str = "conv",
    outputs: int = 12,
    kernel: list[int] | None = None,
    stride: list[int] | None = None,
    padding: list[int] | None = None,
    dilation: list[int] | None = None,
    groups: int = 1,
) -> torch.Tensor:
    kernel = kernel or [3, 3]
    ones = [1] * len(kernel)
    shape = [outputs, x.shape[1] // groups, *kernel]
    steps = (stride or ones, padding or [0] * len(kernel), dilation or ones, groups)
    out: torch.Tensor = edge.convolution(x, slot, shape, HALF.bits, HALF.group, HALF.symmetric, *steps)
    return out


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captured(x: torch.Tensor, **geometry: Any) -> Node:
    """The one convolution of a graph."""
    (node,) = operations(module(lambda x: convolve(x, **geometry)), (x,)).nodes
    return node


def columns(node: Node, x: torch.Tensor) -> torch.Tensor:
    kind = kind_of(node)
    assert kind is not None and kind.columns is not None
    return kind.columns(node, x)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_patches_are_those_of_torchs_unfold(name: str) -> None:
    geometry = GEOMETRIES[name]
    x = random(2, 5, 17, 16)
    found = columns(captured(x, **geometry), x)
    settings = {key: geometry[key] for key in ("stride", "padding", "dilation") if key in geometry}
    expected = torch.nn.functional.unfold(x, geometry.get("kernel", [3, 3]), **settings)
    assert torch.equal(found, expected.transpose(1, 2).flatten(0, 1))  # [batch, columns, positions] before


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_matrix_times_its_patches_is_the_convolution(name: str) -> None:
    x = random(2, 5, 17, 16)
    node = captured(x, **GEOMETRIES[name])
    matrix = random(12, 5 * math.prod(GEOMETRIES[name].get("kernel", [3, 3])), seed=1)
    kind = kind_of(node)
    assert kind is not None
    out = kind.compute(node, x, matrix)
    by_patches = (columns(node, x) @ matrix.t()).unflatten(0, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(by_patches, out.flatten(2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_convolutions_over_sequences_and_volumes(dimensions: int) -> None:
    x = random(2, 4, *(9, 8, 7)[:dimensions])
    geometry = {"kernel": [3] * dimensions, "padding": [1] * dimensions, "stride": [2] * dimensions}
    node = captured(x, **geometry)
    matrix = random(12, 4 * 3**dimensions, seed=1)
    kind = kind_of(node)
    assert kind is not None
    out = kind.compute(node, x, matrix)
    by_patches = (columns(node, x) @ matrix.t()).unflatten(0, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(by_patches, out.flatten(2), atol=1e-4, rtol=1e-4)


def test_what_every_group_sees_is_among_the_patches_of_a_grouped_convolution() -> None:
    """Rows of a group are multiplied by the group's own channels alone."""
    x = random(2, 6, 9, 8)
    found = columns(captured(x, groups=3, padding=[1, 1]), x)
    parts = [torch.nn.functional.unfold(x[:, at : at + 2], [3, 3], padding=1) for at in (0, 2, 4)]
    assert torch.equal(found, torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts]))


# -- calibrated runs -----------------------------------------------------------------------------------------------


def images(count: int, seed: int) -> list[tuple[torch.Tensor, ...]]:
    """Smooth ones, as pictures are: neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, 1, 8, 20, 20, generator=generator)
    return [(torch.nn.functional.avg_pool2d(image, 5, 1) * 5,) for image in rough]


def pyramid(x: torch.Tensor) -> torch.Tensor:
    """Strided, then dilated, then in groups, then over positions."""
    x = torch.relu(convolve(x, "first", 16, stride=[2, 2], padding=[1, 1]))
    x = torch.relu(convolve(x, "second", 16, dilation=[2, 2], padding=[2, 2]))
    x = convolve(x, "grouped", 32, padding=[1, 1], groups=2)
    return linear(x.flatten(2).transpose(1, 2), 32, out=8)


SHAPES = {"first": (16, 72), "second": (16, 144), "grouped": (32, 72), "out": (8, 32)}


def toy(method: str, cuts: tuple[str, ...] = (), grouped: str = "rtn", **options: Any) -> Toy:
    treatments = {name: treatment(method, group=8, **options) for name in SHAPES}
    treatments["grouped"] = treatment(grouped, group=8)
    return Toy(module(pyramid), SHAPES, images(24, 7), treatments, cuts)


def worst(of: Toy, found: Any) -> float:
    """The relative error of the output on images that no calibration saw."""
    of.samples = images(8, 99)
    pairs = [(of.call(of.weights, at), of.call(found, at)) for at in range(8)]
    return max(float((ours - theirs).norm() / theirs.norm()) for theirs, ours in pairs)


def test_gptq_beats_nearest_on_other_images(tmp_path: Path) -> None:
    nearest, found = (
        made.quantized(made.run(tmp_path / name)) for name, made in (("rtn", toy("rtn")), ("gptq", toy("gptq")))
    )
    assert worst(toy("rtn"), found) < 0.8 * worst(toy("rtn"), nearest)  # `grouped` is the same in both


def test_gptq_beats_nearest_in_each_convolution(tmp_path: Path) -> None:
    """One matrix at a time, which then has no drift of those before it to correct."""
    nearest, alone = toy("rtn"), toy("gptq", correction=0.0)
    sides = [made.quantized(made.run(tmp_path / name)) for name, made in (("rtn", nearest), ("gptq", alone))]
    for name in ("first", "second"):
        lost = [
            worst(nearest, Weights({**nearest.weights.tensors, name: quantized.tensors[name]})) for quantized in sides
        ]
        assert 0 < lost[1] < lost[0], (name, lost)


def test_a_convolution_is_quantized_from_the_patches_of_the_quantized_model(tmp_path: Path) -> None:
    made = toy("gptq", cuts=("second", "grouped", "out"))
    files = made.run(tmp_path)
    assert len(files) == 4
    quantized = made.quantized(files).tensors
    first = torch.nn.functional.conv2d
    seen = [torch.relu(first(x, quantized["first"].reshape(16, 8, 3, 3), stride=2, padding=1)) for (x,) in made.samples]
    patches = torch.cat([torch.nn.functional.unfold(x, [3, 3], dilation=2, padding=2)[0].t() for x in seen])
    found = made.seen["second"].hessian
    torch.testing.assert_close(found, patches.t() @ patches / len(patches), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_convolution_in_groups_is_refused_to_methods_that_look_at_its_inputs(tmp_path: Path, method: str) -> None:
    with pytest.raises(EdgewrightError, match=r"grouped is of a convolution in groups.*give it rtn, mse or hqq"):
        toy("rtn", grouped=method).run(tmp_path)


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq"])
def test_and_taken_by_the_others_beside_calibrated_ones(tmp_path: Path, method: str) -> None:
    made = toy("gptq", grouped=method)
    (file,) = made.run(tmp_path)
    evidence = {found.slot: found for found in file.evidence()[0]}
    assert evidence.keys() == SHAPES.keys() and evidence["grouped"].method == method
    assert all(0 < (found.output_error or 0) < 0.3 for found in evidence.values())
