"""Activations of 8 bits in ONNX Runtime: integer kernels from end to end, each step by value as in the reference."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import save_file

from artifacts import silent
from compiler.drivers import plain
from compiler.models.base import read_model
from compiler.quantize import runner
from compiler.quantize.activations.run import run
from compiler.quantize.evidence import ActivationEvidence
from compiler.slots import Scheme
from compiler.targets.base import BuildJob
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.onnx.target import OnnxTarget
from runtime_tests.sessions import make_session
from tests.compiler.conftest import original, quantized_job

from .packages import Package, kernels

CONFIG = {
    "model_type": "feathertalk",
    "channels": [8, 12, 16, 24, 32],
    "feather_hubert": {"channels": 32, "num_blocks": 2, "output_dim": 256},
}
EXACT = OnnxTarget.entry_tolerances[0]


def write(folder: Path) -> Path:
    """A checkpoint whose activations neither die out nor grow."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    random, tensors = np.random.default_rng(0), {}
    for slot in read_model(CONFIG, None, 2).slots:
        made = random.standard_normal(slot.shape, np.float32)
        scale = 0.1 if slot.is_vector else (1.2 / slot.columns) ** 0.5
        tensors[slot.tensor] = np.float32(slot.kind == "norm") + np.float32(scale) * made
    save_file(tensors, folder / "model.safetensors")
    return folder


def calibrated(job: BuildJob, least: dict[str, float], seeds: int = 8) -> tuple[BuildJob, list[ActivationEvidence]]:
    model, table = original(job.source)
    samples = plain.samples(model, table, np.arange(seeds))
    asked = {c.name: frozenset(s.name for s in c.slots if s.kind == "convolution") for c in job.model.components}
    with runner.fixed_threads(1):
        roundings, costs = run(samples, asked, least, job.schemes, job.weights, silent)
    return replace(job, rounded=asked, roundings=roundings), costs


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> BuildJob:
    folder = tmp_path_factory.mktemp("w8a8")
    return quantized_job(folder / "quantized", write(folder / "source"), OnnxOptions(), Scheme(8, 0))


@pytest.fixture(scope="module")
def package(job: BuildJob, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Every convolution multiplies codes."""
    return Package(calibrated(job, {})[0], tmp_path_factory.mktemp("package") / "onnx")


def initializers(file: Path) -> set[str]:
    return {tensor.name for tensor in onnx.load(file, load_external_data=False).graph.initializer}


def test_integer_kernels_run_from_end_to_end(package: Package, tmp_path: Path) -> None:
    convolutions = {
        part.name: [s for s in part.slots if s.kind == "convolution"] for part in package.job.model.components
    }
    found = kernels(package.file("renderer"), tmp_path)
    # depthwise ones of 12 and 24 channels too: filled up, when the graph is loaded
    assert {12, 24} < {s.rows for s in convolutions["renderer"] if s.columns == math.prod(s.kernel)}
    assert found["QLinearConv"] == len(convolutions["renderer"]) == 81
    assert found["QLinearConcat"] == 5 and found["QLinearAdd"] == 13
    assert not found.keys() & {"Conv", "FusedConv", "Relu", "Add", "Concat", "Pad"}
    # picture and sound come in, a picture goes out; four times what is made larger is floats, see `_RESIZES`
    assert found["QuantizeLinear"] == 2 + 4 and found["DequantizeLinear"] == 4 + 1
    audio = kernels(package.file("audio"), tmp_path)
    assert audio["QLinearConv"] == len(convolutions["audio"]) and not audio.keys() & {"Conv", "FusedConv"}


def test_each_step_is_the_references_and_so_is_the_way_with_activations_in_float(package: Package) -> None:
    assert package.expected.plan.rounded is not None
    limits = package.expected.plan.rounded
    for component, error in package.errors().items():
        assert len(error.codes) == len(package.job.roundings[component].values) > 25
        assert max(error.codes.values()) <= limits.codes and error.steps <= EXACT
        assert error.rms <= limits.shipped[component] < 0.3
    assert max(error.largest for error in package.errors(exact=True).values()) <= EXACT


@pytest.fixture
def spoiled(package: Package) -> Iterator[Any]:
    """spoiled(component, initializer's ending, change): the package with one constant of one graph changed."""
    kept: dict[Path, bytes] = {}

    def spoil(component: str, name: str, change: Any) -> None:
        file = package.file(component)
        kept.setdefault(file, file.read_bytes())
        model = onnx.load(file, load_external_data=False)
        (tensor,) = (found for found in model.graph.initializer if found.name == name)
        changed = change(numpy_helper.to_array(tensor))
        assert changed.dtype == numpy_helper.to_array(tensor).dtype
        tensor.CopyFrom(numpy_helper.from_array(changed, name))
        file.write_bytes(model.SerializeToString())

    yield spoil
    for file, content in kept.items():
        file.write_bytes(content)


# a picture that comes in, convolutions at the beginning and the end of the long way, behind relu and not, a branch that
# breaks little, what is added, put together and made larger
VALUES = ("image", "relu", "bias_2", "add", "relu_21", "cat", "upsample_bilinear2d_3", "cat_4", "bias_80")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("what", ["scale", "zero"])
def test_a_wrong_scale_or_zero_point_anywhere_is_seen(package: Package, spoiled: Any, value: str, what: str) -> None:
    names = list(package.job.roundings["renderer"].values)
    name = names[0] if value == "image" else value
    assert name in names
    change = {"scale": lambda scale: scale * np.float32(1.02), "zero": lambda zero: zero + np.uint8(1)}[what]
    spoiled("renderer", f"codes.{name}.{what}", change)
    error, limits = package.errors()["renderer"], package.expected.plan.rounded
    assert limits is not None
    assert max(error.codes.values()) > limits.codes or error.steps > EXACT


def test_a_wrong_bias_is_seen(package: Package, spoiled: Any) -> None:
    spoiled("renderer", "unet.audio_model.conv7.conv.6.bias", lambda bias: bias * np.float32(1.2))
    error, limits = package.errors()["renderer"], package.expected.plan.rounded
    assert limits is not None and max(error.codes.values()) > limits.codes


def test_weights_are_the_very_codes_of_the_quantized_checkpoint(package: Package) -> None:
    model = onnx.load(package.file("renderer"))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for slot in package.job.model.component("renderer").slots:
        if slot.kind == "convolution":
            codes, weights = found[f"{slot.name}.s8"], package.job.weights
            np.testing.assert_array_equal(codes.reshape(slot.rows, -1), weights.packed(slot.name).view(np.int8) ^ -128)
            np.testing.assert_array_equal(found[f"{slot.name}.scales"], weights.scales(slot.name)[:, 0])


def test_as_few_convolutions_keep_floats_as_the_outputs_need(job: BuildJob, package: Package, tmp_path: Path) -> None:
    before = calibrated(job, {})[1]
    asked = {cost.component: cost.snr_db + 3 for cost in before}
    found, costs = calibrated(job, asked)
    for cost, earlier in zip(costs, before, strict=True):
        assert cost.all_snr_db == earlier.snr_db and earlier.kept == () and earlier.products == 1
        assert cost.snr_db >= asked[cost.component] and 0 < len(cost.kept) < cost.of
        assert list(cost.alone.values()) == sorted(cost.alone.values()) and len(cost.alone) == cost.of
        assert set(cost.kept) <= set(list(cost.alone)[: len(cost.alone) // 2]) and cost.products < 1
        assert found.roundings[cost.component].slots == found.rounded[cost.component] - set(cost.kept)
    some = Package(found, tmp_path / "onnx")
    for component, error in some.errors().items():
        assert some.expected.plan.rounded is not None
        assert max(error.codes.values()) <= some.expected.plan.rounded.codes and error.steps <= EXACT
        assert some.expected.plan.rounded.shipped[component] < package.expected.plan.rounded.shipped[component]  # type: ignore[union-attr]
    counted = kernels(some.file("renderer"), tmp_path)
    kept = next(len(cost.kept) for cost in costs if cost.component == "renderer")
    assert counted["Conv"] + counted["FusedConv"] >= kept
    decoded = {name.removesuffix(".q8") for name in initializers(some.file("renderer")) if name.endswith(".q8")}
    assert not decoded & {slot for cost in costs for slot in cost.kept}


def test_what_was_found_does_not_depend_on_the_number_of_threads(job: BuildJob) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(calibrated(job, {"renderer": 50.0}, seeds=3)[0].roundings)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_a_processor_whose_sums_saturate_is_named(package: Package, tmp_path: Path, monkeypatch: Any) -> None:
    for flags, expected in (("sse4_2 avx2", 1), ("avx2 avx_vnni", 0), ("avx512_vnni", 0)):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        monkeypatch.setattr("runtime_tests.sessions.onnx._CPU", tmp_path / "cpuinfo")
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        warnings = make_session(package.folder, package.manifest).warnings
        assert len(warnings) == expected and all("may saturate in 16 bits" in warning for warning in warnings)
