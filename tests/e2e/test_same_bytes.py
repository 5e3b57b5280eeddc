"""One set of quantized weights, the same numbers everywhere: what each target's artifact dequantizes to, in float32.

The artifacts are read here with as little of our own code as their formats allow; the reference is the quantized
checkpoint. The runtimes' outputs are compared by each artifact's own runtime test.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import silent
from compiler import pipeline
from compiler.checkpoint import Checkpoint
from edgewright.api import recipe_type
from tests.compiler.conftest import MINISTRAL3, building_here, random_tensors, save

GROUP = 32
RULES = [{"match": "model.layers.0.*", "bits": 4, "group": GROUP}, {"match": "*", "bits": 8, "group": GROUP}]
CONFIG = {**MINISTRAL3, "hidden_size": 128, "intermediate_size": 256, "head_dim": 64}


def _matrices(layers: int) -> list[list[str]]:
    """Slots in the order of use, those that one matmul serves together."""
    found = [["model.embed_tokens"]]
    for i in range(layers):
        p = f"model.layers.{i}."
        found += [[f"{p}self_attn.{m}_proj" for m in "qkv"], [f"{p}self_attn.o_proj"]]
        found += [[f"{p}mlp.{m}_proj" for m in ("gate", "up")], [f"{p}mlp.down_proj"]]
    return found


MATRICES = _matrices(CONFIG["num_hidden_layers"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """All four packages of one small checkpoint, and the quantized weights they came from: of 4 and of 8 bits."""
    folder = tmp_path_factory.mktemp("same-bytes")
    source = save(folder / "source", CONFIG, random_tensors(CONFIG))
    recipe = recipe_type().model_validate(
        {
            "name": "same-bytes",
            "checkpoint": {"path": str(source)},
            "quantize": {"rules": RULES},
            "context": {"max_tokens": 128},
            "targets": {"onnx": {}, "coreml": {}, "mlx": {}, "tvm": {"triples": []}},
        }
    )
    checkpoint = Checkpoint(source)
    with building_here():
        quantized = pipeline.quantize(recipe, checkpoint, "test", None, folder / "quantized", silent)
        for target in recipe.targets:
            (folder / target).mkdir()
            pipeline.build(recipe, target, quantized, checkpoint, folder / target, silent)
    return folder, quantized.weights


def _bits(names: list[str]) -> int:
    return 4 if names[0].startswith("model.layers.0.") else 8


def _grouped(codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Offset codes [rows, bytes], low nibble first, times scales [rows, groups], in float32."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1)
    values = codes.astype(np.float32) - (1 << (bits - 1))
    return (values.reshape(*scales.shape, -1) * scales.astype(np.float32)[..., None]).reshape(len(values), -1)


def onnx(folder: Path) -> Iterator[np.ndarray[Any, Any]]:
    import onnx as library

    tensors = {t.name: library.numpy_helper.to_array(t) for t in library.load(folder / "model.onnx").graph.initializer}
    for names in MATRICES:
        name, bits = "+".join(names), _bits(names)
        codes = tensors[f"{name}.q{bits}"]
        yield _grouped(codes.reshape(len(codes), -1), tensors[f"{name}.scales"], bits)


def coreml(folder: Path) -> Iterator[np.ndarray[Any, Any]]:
    from runtime_tests.mil.package import Package
    from runtime_tests.mil.program import Function

    constants = Function(Package(folder / "model.mlpackage"), "decode", exact=True).constants
    for i, _ in enumerate(MATRICES):
        weight = constants[f"constexpr_blockwise_shift_scale_{i}"]
        yield weight.rows(0, weight.shape[0]).float().numpy()


def mlx(folder: Path) -> Iterator[np.ndarray[Any, Any]]:
    import mlx.core as mx

    tensors: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= mx.load(str(file))
    for names in MATRICES:
        parts = []
        for name in names:
            scales, biases = (tensors[f"{name}.{kind}"].astype(mx.float32) for kind in ("scales", "biases"))
            parts.append(mx.dequantize(tensors[f"{name}.weight"], scales, biases, GROUP, _bits(names)))
        yield np.array(mx.concatenate(parts))


def tvm(folder: Path) -> Iterator[np.ndarray[Any, Any]]:
    data = (folder / "params.bin").read_bytes()
    _, count, length = struct.unpack_from("<8sII", data)
    names = data[64 + 64 * count :][:length].decode().split("\0")
    tensors = {}
    for i in range(count):
        offset, size, kind, dims, *shape = struct.unpack_from("<QQIIQQQQ", data, 64 + 64 * i)
        dtype = (np.uint8, np.float16, np.float32, np.uint16)[kind]
        tensors[names[i]] = np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, offset).reshape(shape[:dims])
    for group in MATRICES:
        name = "+".join(group)
        yield _grouped(tensors[f"{name}.codes"], tensors[f"{name}.scales"], _bits(group))


@pytest.mark.parametrize("target", [onnx, coreml, mlx, tvm])
def test_every_artifact_holds_the_same_numbers(built: tuple[Path, Any], target: Any) -> None:
    folder, weights = built
    assert {weights.scheme(name).bits for names in MATRICES for name in names} == {4, 8}
    found = list(target(folder / target.__name__))
    for names, values in zip(MATRICES, found, strict=True):
        expected = np.concatenate([weights.rows(name) for name in names])
        np.testing.assert_array_equal(values, expected, err_msg=f"{target.__name__}: {names}")
