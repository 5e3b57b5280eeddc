"""A finished package in other hands: coremltools' readers, the manifest, and the search for a wrong operation."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EdgewrightError, verify
from runtime_tests.drivers.text import calls
from runtime_tests.mil.program import Function
from runtime_tests.sessions.coreml import CoreMLSession
from tests.compiler.targets.coreml.conftest import INT4, Builder, Built
from tests.compiler.targets.coreml.payloads import entries, open_package

WEIGHTS = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
FUNCTION = {"component": "decoder", "entry": "prefill", "package": "model.mlpackage", "function": "prefill"}
SLOTS = ("model.layers.1.self_attn.o_proj",)


@pytest.fixture(scope="session")
def built(decoder_folder: Path, build: Builder) -> Built:
    return build(decoder_folder, INT4, 80, prompt_lengths=(4, 16))


@pytest.fixture
def artifact(built: Built, tmp_path: Path) -> Built:
    """A copy to damage."""
    return replace(built, folder=shutil.copytree(built.folder, tmp_path / "coreml"))


def test_apples_package_library_takes_it(built: Built) -> None:
    from coremltools.libmodelpackage import ModelPackage

    path = str(built.folder / "model.mlpackage")
    assert ModelPackage.isValid(path)
    assert Path(ModelPackage(path).getRootModel().path()).name == "model.mlmodel"


def test_coremltools_opens_it_and_leaves_every_byte(artifact: Built) -> None:
    """It writes Manifest.json anew on opening, in its own order: ours is that one, or every digest check would fail."""
    from coremltools.models import MLModel

    manifest = artifact.folder / "model.mlpackage" / "Manifest.json"
    before = manifest.read_bytes()
    opened = MLModel(str(artifact.folder / "model.mlpackage"), skip_model_load=True)
    assert opened.get_spec().description.defaultFunctionName == "prefill"
    assert manifest.read_bytes() == before
    assert verify(artifact.folder) == []


@pytest.mark.parametrize("function", ["prefill", "decode"])
def test_coremltools_reads_the_same_program_and_weights(built: Built, function: str) -> None:
    """Its loader rebuilds every operation with its type inference, and every constant from the weight file."""
    from coremltools.converters.mil.frontend.milproto import load
    from coremltools.models.utils import load_spec

    path = built.folder / "model.mlpackage"
    program = load.load(
        load_spec(str(path)), specification_version=9, file_weights_dir=str((built.folder / WEIGHTS).parent)
    )
    found = Counter(op.op_type for op in program.functions[function].operations if op.op_type != "const")
    own = Function(open_package(built.folder), function)
    ours = Counter(o.type for o in own.block.operations if o.type != "const")
    renamed = {"write_state", "read_state", "coreml_update_state"}
    assert {k: v for k, v in found.items() if k not in renamed} == {k: v for k, v in ours.items() if k not in renamed}
    for op in program.functions[function].operations:
        if op.op_type == "constexpr_blockwise_shift_scale":
            value = own.constants[op.outputs[0].name]
            mine = value.tensor() if hasattr(value, "tensor") else value
            np.testing.assert_array_equal(mine.numpy(), op.materialized_val_inference())


def test_a_truncated_weight_file_is_seen_by_verify_and_never_run(artifact: Built) -> None:
    assert verify(artifact.folder) == []
    with (artifact.folder / WEIGHTS).open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    assert [(p.path, p.kind) for p in verify(artifact.folder)] == [(WEIGHTS, "size")]
    with pytest.raises(EdgewrightError, match="cut short"):
        artifact.session()


def test_an_edited_offset_is_seen_by_verify_and_by_the_executor(artifact: Built) -> None:
    package = open_package(artifact.folder)
    function = package.spec.mlProgram.functions["decode"]
    operations = function.block_specializations[function.opset].operations
    constant = next(o for o in operations if o.type == "constexpr_blockwise_shift_scale")
    constant.inputs["scale"].arguments[0].value.blobFileValue.offset += 64
    package.model_file.write_bytes(package.spec.SerializeToString())
    assert [p.kind for p in verify(artifact.folder)] == ["digest"]
    with pytest.raises(EdgewrightError, match="does not begin with a record"):
        artifact.session()


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"functions": [{**FUNCTION, "package": "../elsewhere"}]}, "leave the artifact"),
        ({"functions": [{**FUNCTION, "package": "nothing.mlpackage"}]}, "no folder of the artifact"),
        ({"functions": []}, "functions"),
        ({"cache": "somewhere"}, "cache"),
    ],
)
def test_a_manifest_that_lies_is_refused(built: Built, runtime: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgewrightError, match=message):
        CoreMLSession(built.folder, built.manifest.model_copy(update={"runtime": built.manifest.runtime | runtime}))


def test_prompts_are_cut_into_calls_that_the_package_takes(built: Built) -> None:
    taken = built.manifest.components[0].entry("prefill").dimensions["tokens"]
    assert list(calls(37, taken)) == [(0, 16), (16, 32), (21, 37)]
    assert list(calls(16, taken)) == [(0, 16)]
    assert list(calls(3, taken)) == [(0, 1), (1, 2), (2, 3)]
    assert list(calls(18, taken)) == [(0, 16), (14, 18)]
    with pytest.raises(EdgewrightError, match="does not fit the context"):
        built.decoder().prefill(np.zeros(81, np.int64))


@pytest.mark.nightly
def test_a_search_for_the_wrong_operation_names_it(artifact: Built) -> None:
    from edgewright.api import recipe_type
    from edgewright.conversion import first_divergence

    job = artifact.job
    recipe = recipe_type().model_validate(
        {
            "name": "a-test",
            "checkpoint": {"path": str(job.source)},
            "quantize": {"rules": [{"match": "*", "bits": 4}]},
            "context": {"max_tokens": artifact.max_tokens},
            "targets": {"coreml": job.options.model_dump(mode="json")},
        }
    )
    assert first_divergence(recipe, "coreml", job.weights.path, artifact.folder) is None
    offset = entries(open_package(artifact.folder), job)[SLOTS][1]
    with (artifact.folder / WEIGHTS).open("r+b") as file:
        file.seek(offset + 64)
        file.write(np.full(8, 3, np.float16).tobytes())
    found = first_divergence(recipe, "coreml", job.weights.path, artifact.folder)
    assert found is not None
    assert "prefill: operation linear 'linear_5_cast_fp16' is the first to differ" in found
