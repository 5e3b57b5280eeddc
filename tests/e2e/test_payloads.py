"""The weights that users have got stay what they are: digests of the four-target quickstart, recorded before models
became components. Rounding to nearest computes nothing whose last bit a machine may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import silent
from artifacts.manifest import sha256_file
from compiler import pipeline
from compiler.checkpoint import Checkpoint
from edgewright import api
from tests.compiler.conftest import building_here

RECORDED = {
    "quantized/model.safetensors": "4c34773532c434aa",
    "onnx/model.onnx.data": "f466514f5d7f479b",
    "coreml/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin": "1342e022ccf16de5",
    "mlx/model.safetensors": "b33308af036a1668",
    "tvm/params.bin": "8e9dc91c6fa79b05",
}


@pytest.mark.parametrize(
    "targets", [("onnx", "mlx"), pytest.param(("coreml", "tvm"), marks=pytest.mark.nightly)], ids=str
)
def test_the_payloads_of_the_quickstart_are_the_recorded_ones(tmp_path: Path, targets: tuple[str, ...]) -> None:
    recipe = api.load_recipe("quickstart-four-targets")
    tvm = recipe.targets["tvm"].model_copy(update={"triples": ()})  # libraries hold no weights
    options = {**recipe.targets, "tvm": tvm}
    recipe = recipe.model_copy(update={"targets": {name: options[name] for name in targets}})
    assert recipe.checkpoint.path is not None
    checkpoint = Checkpoint(Path(api.__file__).parents[1] / "recipes" / recipe.checkpoint.path)
    with building_here():
        quantized = pipeline.quantize(recipe, checkpoint, "tiny", None, tmp_path / "quantized", silent)
        for target in recipe.targets:
            (tmp_path / target).mkdir()
            pipeline.build(recipe, target, quantized, checkpoint, tmp_path / target, silent)
    expected = {name: digest for name, digest in RECORDED.items() if name.split("/")[0] in ("quantized", *targets)}
    assert {name: sha256_file(tmp_path / name)[:16] for name in expected} == expected and len(expected) == 3
