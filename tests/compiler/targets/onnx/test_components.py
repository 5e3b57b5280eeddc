"""A family that no file of the target knows: two components, a state, convolutions, biases; in the generic layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from artifacts import read_manifest, silent
from artifacts.formats import vectors
from compiler.models.base import Model, read_model
from compiler.slots import HALF, Scheme
from compiler.targets import load_target
from compiler.vectors import entry_outputs
from runtime_tests.vectors import largest_errors

from .packages import TOLERANCE, Reference, build, make_job, opened

CONFIG = {"model_type": "toy_renderer", "image_size": 16, "hidden_size": 64, "channels": 32}
# columns of both kinds are multiples of 32; one convolution with a scale for each output
SCHEMES = {
    "int4": (Scheme(4, 32), {}),
    "int4, asymmetric": (Scheme(4, 32, False), {}),
    "int8": (Scheme(8, 32), {}),
    "int8, a scale for each output": (Scheme(8, 32), {"head.middle": Scheme(8, 0), "head.last": Scheme(4, 0, False)}),
    "half": (HALF, {}),
}


@pytest.fixture
def model() -> Model:
    return read_model(CONFIG, None, 2)


@pytest.mark.parametrize("name", SCHEMES)
def test_steps_with_their_state_equal_the_reference(model: Model, tmp_path: Path, name: str) -> None:
    job = make_job(model, tmp_path / "weights", *SCHEMES[name])
    assert load_target("onnx").refusals(job) == []
    package = build(job, tmp_path / "package")
    session, reference = opened(package), Reference(job)
    random = np.random.default_rng(1)
    images = random.standard_normal((4, 1, 3, 16, 16)).astype(np.float32)
    first = None
    for image in images:
        features = session.call("cell", "step", image=image)
        expected = reference.call("cell", "step", image=image)
        np.testing.assert_allclose(features["features"], expected["features"], atol=TOLERANCE)
        picture = session.call("head", "render", **features)["picture"]
        np.testing.assert_allclose(picture, reference.call("head", "render", **expected)["picture"], atol=TOLERANCE)
        first = features["features"] if first is None else first
    session.reset()
    np.testing.assert_array_equal(session.call("cell", "step", image=images[0])["features"], first)
    # the state matters: the same image after another is something else
    assert np.abs(session.call("cell", "step", image=images[0])["features"] - first).max() > 0.01


def test_one_flipped_nibble_of_any_component_is_caught(model: Model, tmp_path: Path) -> None:
    job = make_job(model, tmp_path / "weights", Scheme(4, 32))
    package = build(job, tmp_path / "package")
    components = read_manifest(package).components
    plan = vectors.planned(components, 7, TOLERANCE)
    outputs = entry_outputs(model, job.schemes, job.weights, plan, components)
    expected = vectors.Vectors(plan, tuple({n: vectors.sampled(v) for n, v in found.items()} for found in outputs))
    errors = largest_errors(opened(package), expected, components, silent)
    assert set(errors) == {("cell", "step"), ("head", "render")} and max(errors.values()) < TOLERANCE
    for file, name in (("cell", "cell.recurrent.q4"), ("head", "head.middle.q4")):
        graph = onnx.load(next(package.glob(f"{file}.*.onnx")), load_external_data=False).graph
        tensor = next(t for t in graph.initializer if t.name == name)
        place = {entry.key: entry.value for entry in tensor.external_data}
        data = package / place["location"]
        content = bytearray(data.read_bytes())
        content[int(place["offset"]) + 10] ^= 0x80
        data.write_bytes(content)
        found = largest_errors(opened(package), expected, components, silent)
        assert max(error for (component, _), error in found.items() if component == file) > 10 * TOLERANCE


def test_a_convolution_keeps_its_packed_bytes_and_a_bias_joins_its_kernel(model: Model, tmp_path: Path) -> None:
    job = make_job(model, tmp_path / "weights", Scheme(4, 32))
    package = build(job, tmp_path / "package")
    assert {path.name for path in package.glob("*.onnx*")} == {
        *("cell.step.onnx", "cell.onnx.data", "head.render.onnx", "head.onnx.data")
    }
    graph = onnx.load(package / "head.render.onnx", load_external_data=False).graph
    tensors = {t.name: t for t in graph.initializer}
    codes = tensors["head.middle.q4"]
    assert (codes.data_type, list(codes.dims)) == (onnx.TensorProto.UINT4, [32 * 9, 32])
    place = {entry.key: entry.value for entry in codes.external_data}
    content = (package / place["location"]).read_bytes()
    packed = job.weights.packed("head.middle").tobytes()
    assert content[int(place["offset"]) :][: int(place["length"])] == packed
    kinds = [node.op_type for node in graph.node]
    convolution = ["DequantizeLinear", "Reshape", "Conv"]
    assert kinds == ["MatMulNBits", "Reshape", "QuickGelu", *convolution, "Gelu", *convolution, "Sigmoid"]
    assert all(len(node.input) == 3 for node in graph.node if node.op_type == "Conv")


def test_the_estimate_is_what_is_written(model: Model, tmp_path: Path) -> None:
    others = {"head.middle": Scheme(8, 32, False), "cell.input": HALF}
    job = make_job(model, tmp_path / "weights", Scheme(4, 32), others)
    package = build(job, tmp_path / "package")
    for part in load_target("onnx").estimate(job):
        (file,) = package.glob(f"{part.component}.*.onnx")
        tensors = onnx.load(file).graph.initializer
        written = sum(len(t.raw_data) for t in tensors if not t.name.startswith(("val_", "32x", "3x")))
        assert part.weight_bytes == part.file_bytes == written


def test_int8_caches_are_refused_where_nothing_says_how_to_measure_them(model: Model, tmp_path: Path) -> None:
    job = make_job(model, tmp_path / "weights", Scheme(4, 32), kv_bits=8)
    (refusal,) = load_target("onnx").refusals(job)
    assert refusal == "onnx: kv_bits: 8 is not known for a model that is driven as 'plain'; leave it out"
