"""What the target refuses, what it says of itself, and its Swift snippet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from compiler.models.base import read_model
from compiler.slots import Scheme
from compiler.targets import load_target, target_options
from compiler.targets.base import Job
from compiler.targets.coreml.options import CoreMLOptions
from runtime_tests.mil.program import Function
from runtime_tests.mil.values import tensor_type
from tests.compiler.conftest import MINISTRAL3
from tests.compiler.targets.coreml.conftest import INT4, TINY, Builder, Built
from tests.compiler.targets.coreml.payloads import open_package


def refusals(scheme: Scheme, **options: Any) -> list[str]:
    model = read_model(MINISTRAL3, None, 80)
    schemes = {s.name: scheme for s in model.slots if not s.is_vector}
    return load_target("coreml").refusals(Job("a-test", model, schemes, CoreMLOptions(**options)))


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        (INT4, {"minimum": "iOS17", "cache": "explicit"}, "4 bits and groups need minimum: iOS18"),
        (Scheme(8, 32), {"minimum": "iOS17", "cache": "explicit"}, "8 bits with one scale per row"),
        (Scheme(8, 0), {"minimum": "iOS17"}, "states need iOS 18"),
    ],
)
def test_what_a_system_cannot_hold_is_refused_at_plan_time(
    scheme: Scheme, options: dict[str, Any], message: str
) -> None:
    assert any(message in text for text in refusals(scheme, **options))


@pytest.mark.parametrize(
    ("scheme", "options"),
    [(INT4, {}), (Scheme(8, 0), {"minimum": "iOS17", "cache": "explicit"}), (Scheme(4, 64, symmetric=False), {})],
)
def test_the_rest_is_taken(scheme: Scheme, options: dict[str, Any]) -> None:
    assert refusals(scheme, **options) == []


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lengths": (64, 16)},
        {"prompt_lengths": ()},
        {"prompt_lengths": (0,)},
        {"minimum": "iOS16"},
        {"compute": "int8"},
        {"palettes": 4},
    ],
)
def test_options_that_mean_nothing_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CoreMLOptions(**options)


def test_the_target_is_discovered() -> None:
    assert target_options()["coreml"] is CoreMLOptions


@pytest.fixture(scope="session")
def tiny(build: Builder) -> Built:
    return build(TINY, INT4, 512)


def test_features_are_described_and_metadata_set(tiny: Built) -> None:
    spec = open_package(tiny.folder).spec
    description = spec.description
    assert [f.name for f in description.functions] == ["prefill", "decode"]
    assert description.defaultFunctionName == "prefill"
    assert spec.specificationVersion == 9
    for function in description.functions:
        assert [f.name for f in function.input] == ["input_ids", "position"]
        assert [f.name for f in function.output] == ["logits"]
        assert len(function.state) == 2 * tiny.spec.layers
        assert all(f.shortDescription for f in (*function.input, *function.output, *function.state))
    metadata = description.metadata
    assert metadata.shortDescription and metadata.license and metadata.versionString == "1"
    assert metadata.userDefined["com.edgewright.compute_units"] == "cpu_and_gpu"
    shapes = description.functions[0].input[0].type.multiArrayType.enumeratedShapes.shapes
    assert [list(s.shape) for s in shapes] == [[1, 16], [1, 64], [1, 256]]


def test_angles_leave_single_precision_before_they_meet_the_heads(tiny: Built) -> None:
    """Tables are made in float32, which a name keeps to; what is made of them for all heads is float16."""
    operations = Function(open_package(tiny.folder), "decode").block.operations
    kinds = {output.name: tensor_type(output.type)[0] for o in operations for output in o.outputs}
    for table in ("cos", "sin"):
        assert kinds[f"float32_rotary_{table}"] == "fp32"
        assert kinds[f"{table}_of_heads_cast_fp16"] == "fp16"


def test_the_swift_snippet_names_what_the_package_has(tiny: Built) -> None:
    page = (tiny.folder / "README.md").read_text(encoding="utf-8")
    (swift,) = re.findall(r"```swift\n(.*?)```", page, re.S)
    package = open_package(tiny.folder)
    names = {f.name for function in package.spec.description.functions for f in (*function.input, *function.output)}
    quoted = set(re.findall(r'"([a-z_]+)"', swift))
    assert names <= quoted
    assert quoted - names == {"prefill", "decode"} == set(package.functions)
    assert f"static let maxTokens = {tiny.max_tokens}" in swift
    assert "let lengths = [1, 16, 64, 256]" in swift
    assert f"[1, 1, {tiny.spec.vocab}], Float16" in swift
    assert "computeUnits = .cpuAndGPU" in swift
    assert swift.count("{") == swift.count("}") and swift.count("(") == swift.count(")")
    assert "$" not in re.sub(r"\$0", "", page)


def test_the_explicit_snippet_passes_every_cache_on(decoder_folder: Path, build: Builder) -> None:
    built = build(decoder_folder, INT4, 80, prompt_lengths=(4, 16), cache="explicit")
    page = (built.folder / "README.md").read_text(encoding="utf-8")
    description = open_package(built.folder).description("prefill")
    inputs = [f.name for f in description.input if "cache" in f.name]
    assert {f"new_{name}" for name in inputs} == {f.name for f in description.output} - {"logits"}
    assert '["key_cache_\\($0)", "value_cache_\\($0)"]' in page
    assert "shape: [1, 2, 80, 32], dataType: .float16" in page


def test_the_tokenizer_lies_beside_the_package(tiny: Built) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tiny.folder / name).read_bytes() == (TINY / name).read_bytes()
    manifest = json.loads((tiny.folder / "model.mlpackage/Manifest.json").read_text())
    assert len(manifest["itemInfoEntries"]) == 2


def test_an_app_ships_the_package_and_the_tokenizer(tiny: Built) -> None:
    payload: Any = tiny.manifest.runtime["payload"]
    (names,) = payload.values()
    assert list(payload) == ["ios"] and "README.md" not in names
    inside = [
        p.relative_to(tiny.folder).as_posix() for p in (tiny.folder / "model.mlpackage").rglob("*") if p.is_file()
    ]
    assert set(inside) | {"tokenizer.json", "tokenizer_config.json"} <= set(names)


def test_the_estimate_is_near_the_package(tiny: Built) -> None:
    (estimate,) = load_target("coreml").estimate(tiny.job)
    size = sum(p.stat().st_size for p in (tiny.folder / "model.mlpackage").rglob("*") if p.is_file())
    assert abs(estimate.file_bytes / size - 1) < 0.1
    states = 2 * tiny.spec.layers * tiny.spec.kv_width * tiny.max_tokens * 2
    assert estimate.state_bytes == states
    assert estimate.app_bytes == {"ios": estimate.file_bytes}
