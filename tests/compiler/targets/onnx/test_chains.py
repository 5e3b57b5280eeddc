"""What stands around convolutions of codes: which get channels of zeros, and where a sum meets codes and floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compiler.activations import Affine, Rounding, places
from compiler.dialect import edge
from compiler.graph import capture
from compiler.models.base import Port
from compiler.slots import HALF, Scheme, Slot
from compiler.targets.base import BuildJob
from compiler.targets.onnx.target import OnnxTarget

from .packages import Package, kernels, make_job
from .test_lowering import one

EXACT = OnnxTarget.entry_tolerances[0]
# rows and columns; of three by three pixels where there is one channel to a group
SHAPES = {"first": (12, 6), "depth": (12, 1), "last": (32, 12), "wide": (48, 32), "narrow": (32, 48), "end": (3, 32)}
CODES, FLOATS = ("first", "depth", "last"), ("wide", "narrow", "end")
BITS = {name: HALF if name in FLOATS else Scheme(8, 0) for name in SHAPES}
Function = Callable[[torch.Tensor], torch.Tensor]


def convolve(x: torch.Tensor, name: str) -> torch.Tensor:
    (rows, columns), scheme = SHAPES[name], BITS[name]
    size = 3 if columns == 1 else 1
    given = [size // 2] * 2, [1, 1], rows // columns if columns == 1 else 1
    y = edge.convolution(
        x, name, [rows, columns, size, size], scheme.bits, scheme.group, scheme.symmetric, [1, 1], *given
    )
    return edge.bias(y, [f"{name}.bias"], [rows], 1)


def meant(x: torch.Tensor) -> torch.Tensor:
    """Twelve channels between two dense convolutions of codes, and behind them floats, which are added to codes."""
    y = convolve(torch.relu(convolve(torch.relu(convolve(x, "first")), "depth")), "last")
    return convolve(y + convolve(torch.relu(convolve(y, "wide")), "narrow"), "end")


def other(x: torch.Tensor) -> torch.Tensor:
    """The same, but that a sum of codes reads what goes into the twelve channels, and none of floats what comes out."""
    y = torch.relu(convolve(x, "first"))
    y = convolve(torch.relu(convolve(y, "depth")) + y, "last")
    return convolve(torch.relu(convolve(torch.relu(convolve(y, "wide")), "narrow")), "end")


def job(function: Function, folder: Path) -> BuildJob:
    kinds = [("convolution", (3, 3) if columns == 1 else (1, 1)) for _, columns in SHAPES.values()]
    slots = [
        Slot(name, f"{name}.weight", rows, columns * kernel[0] * kernel[1], kind, kernel)
        for (name, (rows, columns)), (kind, kernel) in zip(SHAPES.items(), kinds, strict=True)
    ]
    slots += [Slot(f"{name}.bias", f"{name}.bias", 1, rows, "bias") for name, (rows, _) in SHAPES.items()]
    image, picture = Port("image", "float32", (1, 6, 20, 24)), Port("picture", "float32", (1, 3, 20, 24))
    model = one(lambda x: (function(x),), tuple(slots), (image,), (picture,))
    found = make_job(model, folder, Scheme(8, 0), dict.fromkeys(FLOATS, HALF))
    part = model.component("part")
    rounded = places(capture(part, part.entry("run"), found.schemes), CODES).values
    # a scale of its own for each, and for what is behind a relu the zero that it has
    affine = {
        node.name: Affine(scale=0.02 + 0.001 * at, zero=0 if "relu" in node.name else 120 + at)
        for at, node in enumerate(rounded)
    }
    rounding = Rounding(slots=frozenset(CODES), values=affine)
    return replace(found, rounded={"part": frozenset(CODES)}, roundings={"part": rounding})


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[Function, Package]:
    folder = tmp_path_factory.mktemp("chains")
    return {f: Package(job(f, folder / f"{f.__name__}-weights"), folder / f.__name__) for f in (meant, other)}


@pytest.mark.parametrize("function", [meant, other])
def test_every_step_is_the_references(packages: dict[Function, Package], function: Function) -> None:
    package = packages[function]
    onnx.checker.check_model(package.file("part"))
    assert package.expected.plan.rounded is not None
    (error,) = package.errors().values()
    assert max(error.codes.values()) <= package.expected.plan.rounded.codes and error.steps <= EXACT
    assert set(error.codes) == set(package.job.roundings["part"].values)
    assert max(error.largest for error in package.errors(exact=True).values()) <= EXACT


def test_channels_are_filled_up_where_nothing_else_reads_them(
    packages: dict[Function, Package], tmp_path: Path
) -> None:
    found = {function: kernels(package.file("part"), tmp_path) for function, package in packages.items()}
    assert found[meant]["QLinearConv"] == 3 and found[other]["QLinearConv"] == 2
    assert "Pad" not in found[meant], "done when the graph is loaded"
    graphs = {function: onnx.load(package.file("part")).graph for function, package in packages.items()}
    assert not [node for node in graphs[other].node if node.op_type == "Pad"] and not graphs[other].value_info
    told = [[size.dim_value for size in v.type.tensor_type.shape.dim] for v in graphs[meant].value_info]
    assert told == [[1, 16, 20, 24]] * 2
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graphs[meant].initializer}
    for name in CODES:
        codes = packages[meant].job.weights.packed(name).view(np.int8) ^ -128
        np.testing.assert_array_equal(stored[f"{name}.s8"].reshape(codes.shape), codes)


def test_a_sum_of_codes_and_floats_is_part_of_a_convolution(packages: dict[Function, Package], tmp_path: Path) -> None:
    found = kernels(packages[meant].file("part"), tmp_path)
    assert "Add" not in found and found["DequantizeLinear"] == 1, "not one for each reader"
    graphs = {function: onnx.load(package.file("part")).graph for function, package in packages.items()}
    ones = {
        function: [t for t in graph.initializer if t.name.startswith("ones.")] for function, graph in graphs.items()
    }
    assert not ones[other]
    np.testing.assert_array_equal(numpy_helper.to_array(*ones[meant]), np.ones((32, 1, 1, 1), np.float32))
