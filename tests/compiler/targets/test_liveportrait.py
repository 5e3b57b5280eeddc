"""LivePortrait on every target: each entry equals the dialect's reference, which `adopt`'s tests hold to the modules
that were trained. Keypoints lie in the volume, on its edges and far outside, so that its samples do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from artifacts import silent
from compiler.adopt import adopt
from compiler.graph import op_name
from compiler.models.base import Port, read_model
from compiler.models.liveportrait_networks import _moved, _sampled
from compiler.slots import HALF, Scheme
from compiler.targets.base import BuildJob
from compiler.targets.coreml.capture import capture as core_ml_capture
from compiler.targets.coreml.generic import calls
from compiler.targets.coreml.options import CoreMLOptions
from compiler.targets.mlx.options import MlxOptions
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.tvm.options import TvmOptions
from runtime_tests.sessions import make_session
from tests.compiler import portrait
from tests.compiler.conftest import Jobs, Reference, packed

pytestmark = pytest.mark.usefixtures("here")
OPTIONS: dict[str, Any] = {
    "onnx": OnnxOptions(),
    "coreml": CoreMLOptions(compute="fp32"),
    "mlx": MlxOptions(),
    "tvm": TvmOptions(triples=()),
}
SMALLER = {
    "warping_module.dense_motion_network.hourglass.encoder.down_blocks.1.conv": Scheme(8, 0),
    "spade_generator.G_middle_0.conv_0": Scheme(8, 0),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portrait")
    return adopted(folder)


def adopted(folder: Path) -> Path:
    """The narrow geometry, as `adopt` makes it, of pictures of its size."""
    found = adopt(portrait.save(folder, portrait.small()), "liveportrait", folder / "adopted", "mit", silent).folder
    config = json.loads((found / "config.json").read_text()) | {"size": portrait.SMALL["size"]}
    (found / "config.json").write_text(json.dumps(config))
    return found


def only(job: BuildJob, names: tuple[str, ...]) -> BuildJob:
    """The job of these components alone."""
    kept = tuple(component for component in job.model.components if component.name in names)
    return dataclasses.replace(job, model=dataclasses.replace(job.model, components=kept))


def inputs(ports: tuple[Port, ...], random: np.random.Generator) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Random arrays; of keypoints also ones that hardly move, that move by the whole volume to its corners, that are
    far outside, and farther than whole numbers reach."""
    given = {port.name: random.standard_normal(port.sized({}), np.float32) for port in ports}
    yield given
    if "driving" not in given:
        return
    corners = np.sign(given["driving"])
    for source, driving in (
        (given["source"] / 50, given["source"] / 50 + given["driving"] / 200),
        (np.zeros_like(corners), corners),
        (-corners, corners),
        (given["source"], given["source"]),
        (given["source"] * 40, given["driving"] * 40),
        (corners * 1e12, -corners * 1e12),
    ):
        yield given | {"source": source.astype(np.float32), "driving": driving.astype(np.float32)}


def assert_entries_equal_the_reference(job: BuildJob, target: str, folder: Path, limit: float = 1e-4) -> None:
    session = make_session(folder, packed(job, target, folder))
    session.load(exact=True)
    reference, random = Reference(job), np.random.default_rng(3)
    for component in job.model.components:
        for entry in component.shipped:
            for arrays in inputs(entry.inputs, random):
                found, expected = (side.call(component.name, entry.name, **arrays) for side in (session, reference))
                for name, values in expected.items():
                    assert found[name].shape == values.shape and np.isfinite(found[name]).all()
                    assert np.abs(found[name] - values).max() <= limit * np.abs(values).max(), (component.name, name)


@pytest.mark.parametrize("target", ["onnx", "coreml", "mlx", pytest.param("tvm", marks=pytest.mark.nightly)])
def test_samples_of_a_volume_equal_the_reference(checkpoint: Path, jobs: Jobs, tmp_path: Path, target: str) -> None:
    job = only(jobs(checkpoint, OPTIONS[target], HALF, {}), ("warping",))
    assert_entries_equal_the_reference(job, target, tmp_path / target)


def test_every_other_entry_equals_the_reference(checkpoint: Path, jobs: Jobs, tmp_path: Path) -> None:
    """The nightly test has the slower converters too."""
    job = only(jobs(checkpoint, OPTIONS["mlx"], HALF, {}), ("appearance", "motion", "retargeting", "generator"))
    assert_entries_equal_the_reference(job, "mlx", tmp_path / "mlx")


@pytest.mark.nightly
@pytest.mark.parametrize("target", OPTIONS)
def test_every_entry_equals_the_reference_in_eight_bits_too(
    checkpoint: Path, jobs: Jobs, tmp_path: Path, target: str
) -> None:
    job = jobs(checkpoint, OPTIONS[target], HALF, SMALLER)
    assert_entries_equal_the_reference(job, target, tmp_path / target)


def test_core_ml_keeps_coordinates_in_float32() -> None:
    """Where 16 bits would be off by a sixtieth of a place in 64: from the products on that they come of."""
    component = read_model({"model_type": "liveportrait", **portrait.SMALL}, None, 2).component("warping")
    (call,) = calls(component)
    nodes = list(core_ml_capture(call, {}, stateful=False).graph.nodes)
    sampler = next(node for node in nodes if op_name(node) == "aten::grid_sampler")
    coordinates, seen = [sampler.args[1]], set()
    while coordinates:
        node = coordinates.pop()
        if op_name(node) == "aten::matmul":
            continue
        assert node.name.startswith("float32_")
        seen.add(op_name(node))
        coordinates += node.all_input_nodes
    assert {"aten::clamp", "aten::add", "aten::stack", "aten::arange"} <= seen
    assert sum(node.name.startswith("float32_") for node in nodes) < len(nodes) / 4


def test_shifts_of_a_volume_are_products_of_three_matrices() -> None:
    """The same as one grid for each keypoint, also where it leaves the volume."""
    sizes, generator = (4, 6, 8), torch.Generator().manual_seed(0)
    volume = torch.randn(1, 3, *sizes, generator=generator)
    source, driving = (torch.randn(1, 5, 3, generator=generator) for _ in range(2))
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in sizes), indexing="ij")
    own = torch.stack([x, y, z], -1)
    for far in (0.0, 0.1, 1.0, 9.0):
        moved = _moved(sizes)(volume, source * far, driving * far).reshape(6, 4, *sizes)
        shifts = torch.cat([torch.zeros(1, 3), (source - driving)[0] * far])
        grids = own + shifts[:, None, None, None]
        expected = torch.nn.functional.grid_sample(volume.expand(6, -1, -1, -1, -1), grids, align_corners=False)
        torch.testing.assert_close(moved[:, 1:], expected, atol=1e-5, rtol=0)
        assert not moved[0, 0].any()


def test_places_far_outside_are_zeros_in_any_size() -> None:
    for size in (2, 3, 64):
        volume = torch.ones(1, 1, 2, 2, size)
        mask, none = torch.zeros(1, 2, 2, 2, size), torch.zeros(1, 1, 3)
        assert _sampled((2, 2, size))(volume, mask, none, none).any()
        for far in (6.0, 1e30):
            assert not _sampled((2, 2, size))(volume, mask, none, none + far).any()
