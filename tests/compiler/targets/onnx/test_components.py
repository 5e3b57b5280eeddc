"""A family that no file of the target knows: two components, a state, convolutions, biases; in the generic layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from artifacts import read_manifest, silent
from artifacts.formats import vectors
from compiler.slots import HALF, Scheme
from compiler.targets import load_target
from compiler.targets.onnx.options import OnnxOptions
from compiler.vectors import entry_outputs
from runtime_tests.vectors import measured
from tests.compiler.conftest import Jobs, assert_toy_equals_reference, packed

from .packages import opened

# columns of all matrices are multiples of 32; one scheme has convolutions with a scale for each output
SCHEMES = {
    "int4": (Scheme(4, 32), {}),
    "int4, asymmetric": (Scheme(4, 32, False), {}),
    "int8": (Scheme(8, 32), {}),
    "int8, scales of rows": (Scheme(8, 32), {"head.middle": Scheme(8, 0), "head.last": Scheme(4, 0, False)}),
    "half": (HALF, {}),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_components_with_a_state_equal_the_reference(toy: Path, jobs: Jobs, tmp_path: Path, name: str) -> None:
    """As shipped, activations are rounded to int8 before the matrices."""
    job = jobs(toy, OnnxOptions(), *SCHEMES[name])
    assert_toy_equals_reference(job, "onnx", tmp_path / "onnx", exact=1e-5, shipped=3e-2)


@pytest.mark.parametrize("slot", ["cell.recurrent", "head.last"])
def test_a_flipped_nibble_is_caught(toy: Path, jobs: Jobs, tmp_path: Path, slot: str) -> None:
    job = jobs(toy, OnnxOptions(accuracy_level=0), Scheme(4, 32))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_toy_equals_reference(job, "onnx", tmp_path / "onnx", exact=1e-5, shipped=1e-5, flip=slot)


def test_the_entry_vectors_find_a_wrong_package(toy: Path, jobs: Jobs, tmp_path: Path) -> None:
    job = jobs(toy, OnnxOptions(), Scheme(4, 32))
    package = tmp_path / "onnx"
    packed(job, "onnx", package)
    components = read_manifest(package).components
    plan = vectors.planned(components, 7, 1e-5, 3e-2)
    outputs = entry_outputs(job.model, job.schemes, job.weights, plan, components)
    expected = vectors.Vectors(plan, tuple({n: vectors.sampled(v) for n, v in found.items()} for found in outputs))
    errors = measured(opened(package), expected, components, silent)
    assert set(errors) == {("cell", "step"), ("head", "render")} and max(e.largest for e in errors.values()) < 1e-5
    graph = onnx.load(package / "head.render.onnx", load_external_data=False).graph
    place = {e.key: e.value for t in graph.initializer if t.name == "head.middle.q4" for e in t.external_data}
    content = bytearray((package / place["location"]).read_bytes())
    content[int(place["offset"]) + 10] ^= 0x80
    (package / place["location"]).write_bytes(content)
    errors = measured(opened(package), expected, components, silent)
    assert errors["cell", "step"].largest < 1e-5 and errors["head", "render"].largest > 1e-4


def test_a_convolution_keeps_its_packed_bytes_and_a_bias_joins_its_kernel(
    toy: Path, jobs: Jobs, tmp_path: Path
) -> None:
    job = jobs(toy, OnnxOptions(), Scheme(4, 32))
    package = tmp_path / "onnx"
    packed(job, "onnx", package)
    assert {path.name for path in package.iterdir()} == {
        *("cell.step.onnx", "cell.onnx.data", "head.render.onnx", "head.onnx.data", "README.md", "edgewright.json")
    }
    graph = onnx.load(package / "head.render.onnx", load_external_data=False).graph
    tensors = {t.name: t for t in graph.initializer}
    codes = tensors["head.middle.q4"]
    assert (codes.data_type, list(codes.dims)) == (onnx.TensorProto.UINT4, [32 * 9, 32])
    place = {entry.key: entry.value for entry in codes.external_data}
    content = (package / place["location"]).read_bytes()
    expected = job.weights.packed("head.middle").tobytes()
    assert content[int(place["offset"]) :][: int(place["length"])] == expected
    kinds = [node.op_type for node in graph.node]
    convolution = ["DequantizeLinear", "Reshape", "Conv"]
    assert kinds == ["MatMulNBits", "Reshape", "QuickGelu", *convolution, "Gelu", *convolution, "Sigmoid"]
    assert all(len(node.input) == 3 for node in graph.node if node.op_type == "Conv")


def test_the_estimate_is_what_is_written(toy: Path, jobs: Jobs, tmp_path: Path) -> None:
    others = {"head.middle": Scheme(8, 32, False), "cell.input": HALF}
    job = jobs(toy, OnnxOptions(), Scheme(4, 32), others)
    package = tmp_path / "onnx"
    packed(job, "onnx", package)
    for part in load_target("onnx").estimate(job):
        (file,) = package.glob(f"{part.component}.*.onnx")
        tensors = onnx.load(file).graph.initializer
        written = sum(len(t.raw_data) for t in tensors if t.name.startswith(f"{part.component}."))
        assert part.weight_bytes == part.file_bytes == written
        assert part.app_bytes == {"android": written, "ios": written}
    assert [part.state_bytes for part in load_target("onnx").estimate(job)] == [64 * 4, 0]


def test_the_readme_says_how_each_file_is_called(toy: Path, jobs: Jobs, tmp_path: Path) -> None:
    package = tmp_path / "onnx"
    packed(jobs(toy, OnnxOptions(), Scheme(4, 32)), "onnx", package)
    text = (package / "README.md").read_text()
    assert "| `cell.step.onnx` | `image` | `features` | `hidden` ← `hidden.next` |" in text
    assert "| `head.render.onnx` | `features` | `picture` | none |" in text


def test_int8_caches_are_refused_where_nothing_says_how_to_measure_them(toy: Path, jobs: Jobs) -> None:
    job = jobs(toy, OnnxOptions(kv_bits=8), Scheme(4, 32))
    (refusal,) = load_target("onnx").refusals(job)
    assert refusal == "onnx: kv_bits: 8 is not known for a model that is driven as 'plain'; leave it out"


def test_steps_read_the_state_that_the_last_one_left(toy: Path, jobs: Jobs, tmp_path: Path) -> None:
    package = tmp_path / "onnx"
    packed(jobs(toy, OnnxOptions(), Scheme(4, 32)), "onnx", package)
    session = opened(package)
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)
    first, second = (session.call("cell", "step", image=image)["features"] for _ in range(2))
    assert np.abs(first - second).max() > 0.01
    session.reset()
    np.testing.assert_array_equal(session.call("cell", "step", image=image)["features"], first)
