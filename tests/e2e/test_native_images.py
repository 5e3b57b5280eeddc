"""A Ministral 3 with its tower, random weights, through everything that users do: plan, run, reports."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgewright import api
from runtime_tests.validate import validate
from tests.artifacts.media import reference as ref
from tests.compiler.pixtral import SMALL, write_pixtral
from tests.compiler.test_processor import pixtral, written
from tests.runtime_tests.conftest import sign_again

RECIPE = """\
name: whole
checkpoint: {{path: source}}
quantize:
  rules:
    {rules}
    - {{match: "*", bits: 4, group: 32, method: mse}}
context: {{max_tokens: 64}}
{vision}
targets: {{{targets}}}
validate:
  profiles: {{iphone-12: {{peak_memory: 100MB}}}}
"""
ENTRIES = ("vision.image", "embed.embed", "decoder.prefill", "decoder.decode")
BOUND = "vision: {max_image: 100}"
RULES = '- {match: "*.patch_conv", bits: 16}\n    - {match: "model.vision_tower.*", bits: 8, group: 32}'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    encoder = ref.tokenizer()
    token = encoder.convert_tokens_to_ids("[IMG]")
    write_pixtral(folder / "source", dataclasses.replace(SMALL, image=112, vocab=len(encoder), image_token=token), 3)
    documents = pixtral()
    written(folder / "source", {name: documents[name] for name in documents if name != "config.json"})
    encoder.save_pretrained(folder / "source")
    return folder


def recipe(place: Path, targets: tuple[str, ...], vision: str = BOUND) -> Path:
    path = place / "whole.yaml"
    listed = ", ".join(f"{name}: {{}}" for name in targets)
    path.write_text(RECIPE.format(targets=listed, vision=vision, rules=RULES if vision else ""))
    return path


def test_a_plan_grows_with_the_bound_on_images(place: Path) -> None:
    found = {}
    for bound in (28, 56, 112):
        (plan,) = api.plan(recipe(place, ("onnx",), f"vision: {{max_image: {bound}}}"))
        assert [part.component for part in plan.components] == ["vision", "embed", "decoder"]
        found[bound] = plan.components[0].activation_bytes
    assert found[28] < found[56] / 3 and found[56] < found[112] / 3
    (text,) = api.plan(recipe(place, ("onnx",), ""))
    assert [part.component for part in text.components] == ["decoder"]


@pytest.mark.nightly
@pytest.mark.parametrize("targets", [("onnx", "mlx"), ("coreml", "tvm")], ids=str)
def test_a_checkpoint_compiles_whole_and_is_judged_with_its_largest_image(
    place: Path, targets: tuple[str, ...]
) -> None:
    report = api.run(recipe(place, targets), out=place / "build")
    for target in report.targets:
        labels = {check.label for check in target.checks}
        kinds = ("exact: max |Δ|", "as shipped: RMS Δ")
        genai = {"genai: same tokens", "genai: same answer"} if target.target == "onnx" else set()
        assert labels == {f"{entry}, {kind}" for entry in ENTRIES for kind in kinds} | genai
        assert all(check.verdict == "passed" for check in target.checks)
        folder = place / "build" / "whole" / target.target
        description = json.loads((folder / "preprocessing.json").read_text())
        assert (description["rule"], description["images"]["longest_edge"]) == ("pixtral", 100)
        (phone,) = target.phones
        if target.target == "onnx":
            genai_is_shown_a_picture(folder, place / "swapped")
        if target.target in ("onnx", "mlx"):
            assert phone.checks[0].verdict == "fits"
            assert phone.run is not None
            assert [phase.phase for phase in phone.run.phases] == [
                "load",
                "vision",
                "prefill",
                "steady",
                "long conversation",
            ]


def genai_is_shown_a_picture(package: Path, copy: Path) -> None:
    """With red for blue it says something else, and fails."""
    shutil.copytree(package, copy)
    config = json.loads((copy / "processor_config.json").read_text())
    config["processor"]["transforms"].insert(1, {"operation": {"name": "swap", "type": "ConvertRGB"}})
    (copy / "processor_config.json").write_text(json.dumps(config))
    sign_again(copy)
    found = validate(copy)
    assert [check.name for check in found.checks if check.verdict == "failed"] == ["genai_greedy_equal"]


@pytest.mark.nightly
def test_it_is_asked_about_images_of_any_size(place: Path) -> None:
    """At half precision the artifact gives the answers that PyTorch gives, whatever the image's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
    Image.fromarray(pixels).save(place / "wide.png")
    Image.fromarray(pixels[:40, :30]).save(place / "small.png")
    lines = [
        {"prompt": "look: [IMG] and", "answer": "x", "image": "wide.png"},
        {"prompt": "[IMG][IMG] which", "answer": "x", "images": ["small.png", "wide.png"]},
        {"prompt": "no image", "answer": "x"},
    ]
    (place / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = place / "asked.yaml"
    text = RECIPE.format(targets="onnx: {}", vision=BOUND, rules="").replace("bits: 4", "bits: 16")
    path.write_text(text.replace("validate:", "validate:\n  task: {file: questions.jsonl, min_agreement: 100%}"))
    (target,) = api.run(path, out=place / "asked").targets
    assert target.value("task_agreement") == 1.0 and target.verdict == "passed"
