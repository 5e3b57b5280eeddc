"""What lies in a checkpoint's folder, through the public doors: said in a sentence before any work, no hanging."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import EdgewrightError
from edgewright import api
from edgewright.report import Report
from tests.edgewright.conftest import Workplace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def weights(workplace: Workplace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workplace.folder / "weights", tmp_path / "weights"))


def run(workplace: Workplace, weights: Path) -> Report:
    return api.run(workplace.recipe_file, out=weights.parent / "out", checkpoint=weights, validate=False)


def change_config(weights: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((weights / "config.json").read_text())
    change(config)
    (weights / "config.json").write_text(json.dumps(config))


def test_an_adapter_and_stray_tensors_are_warnings_that_name_them(workplace: Workplace, weights: Path) -> None:
    tensors = load_file(weights / "model.safetensors")
    stray = {f"model.layers.{i}.self_attn.q_proj.bias": torch.ones(4) for i in range(2)}
    save_file(tensors | stray | {"lm_head.weight": torch.ones(4)}, weights / "model.safetensors")
    (weights / "adapter_config.json").write_text("{}")
    (weights / "adapter_model.safetensors").write_bytes(b"")
    report = run(workplace, weights)
    adapter, left = report.warnings
    assert "a LoRA adapter lies beside the weights (adapter_config.json) and is not applied" in adapter
    assert "'lm_head.weight', 'model.layers.*.self_attn.q_proj.bias' (2)" in left
    text = (weights.parent / "out" / "small" / "report.md").read_text()
    assert adapter in text and left in text
    assert api.plan_warnings(workplace.recipe_file, checkpoint=weights) == [adapter]


def test_a_bad_input_leaves_no_folder(workplace: Workplace, weights: Path) -> None:
    change_config(weights, lambda config: config.update(vocab_size="many"))
    with pytest.raises(EdgewrightError, match="vocab_size"):
        run(workplace, weights)
    assert not (weights.parent / "out").exists()


def test_nothing_is_said_of_a_checkpoint_that_is_read_whole(workplace: Workplace, weights: Path) -> None:
    assert run(workplace, weights).warnings == ()


def test_float64_weights_give_the_packages_of_their_float32_ones(workplace: Workplace, weights: Path) -> None:
    digests = []
    for dtype in (torch.float32, torch.float64):
        tensors = load_file(workplace.folder / "weights" / "model.safetensors")
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, weights / "model.safetensors")
        run(workplace, weights)
        manifest = json.loads((weights.parent / "out" / "small" / "quantized" / "edgewright.json").read_text())
        digests.append(manifest["weights_digest"])
    assert digests[0] == digests[1]


def _beyond(weights: Path) -> None:
    tree = json.loads((weights / "tokenizer.json").read_text())
    tree["model"]["vocab"]["a"] = 320
    (weights / "tokenizer.json").write_text(json.dumps(tree))


def _linked(target: str) -> Callable[[Path], None]:
    def link(weights: Path) -> None:
        (weights / "tokenizer.json").unlink()
        (weights / "tokenizer.json").symlink_to(target)

    return link


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: (w / "tokenizer.json").write_text(""), r"tokenizer\.json: is not a tokenizer"),
        (lambda w: (w / "tokenizer.json").write_text("{}"), r"tokenizer\.json: is not a tokenizer"),
        (_beyond, r"tokenizer\.json: the token 'a' has id 320, and the model knows 320 tokens"),
        (_linked("nowhere"), r"tokenizer\.json: cannot be read: No such file"),
        (_linked("/dev/zero"), r"tokenizer\.json: cannot be read: it is a device"),
        (_linked("."), r"tokenizer\.json: cannot be read: it is a folder"),
        (lambda w: change_config(w, lambda c: c.update(rms_norm_eps="x")), "rms_norm_eps must be a number"),
        (lambda w: change_config(w, lambda c: c.update(head_dim=[1])), "head_dim must be a whole number"),
        (
            lambda w: change_config(w, lambda c: c["rope_parameters"].pop("factor")),
            r"rope_parameters\.factor is needed",
        ),
        (lambda w: change_config(w, lambda c: c.update(x=float("nan"))), "NaN is not a JSON number"),
    ],
)
def test_what_is_damaged_is_refused_before_a_weight_is_quantized(
    workplace: Workplace, weights: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(weights)
    with pytest.raises(EdgewrightError, match=message):
        run(workplace, weights)
    assert not [path for path in (weights.parent / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("config.json", ["plan", "RECIPE", "--checkpoint", "WEIGHTS"]),
        ("generation_config.json", ["plan", "RECIPE", "--checkpoint", "WEIGHTS"]),
        ("model.safetensors.index.json", ["run", "RECIPE", "--checkpoint", "WEIGHTS", "--out", "OUT"]),
        ("tokenizer_config.json", ["run", "RECIPE", "--checkpoint", "WEIGHTS", "--out", "OUT"]),
        ("phone.yaml", ["run", "RECIPE", "--profile", "WEIGHTS/phone.yaml", "--out", "OUT"]),
        ("phone.yaml", ["profiles", "show", "WEIGHTS/phone.yaml"]),
        ("recipe.yaml", ["plan", "WEIGHTS/recipe.yaml"]),
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_no_command_waits_for_a_pipe_or_reads_a_device(
    workplace: Workplace, weights: Path, name: str, arguments: list[str], make: Callable[[Path], object]
) -> None:
    (weights / name).unlink(missing_ok=True)
    make(weights / name)
    known = {"RECIPE": str(workplace.recipe_file), "OUT": str(weights.parent / "out")}
    command = [known.get(word, word.replace("WEIGHTS", str(weights))) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "edgewright", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert name in done.stderr


@pytest.mark.parametrize("path", ["~nosuchuser/weights", "x" * 300, "x/" * 3000, r'"a\0b"', r'"\ud800"'])
@pytest.mark.parametrize(
    "place",
    [
        ("path: weights", "path: PATH"),
        ("path: weights", "hub: a/b, config: PATH"),
        ("bits: 4}\n", "bits: 4, method: gptq}\n  calibration: {text: PATH}\n"),
        ("iphone-12:", "? PATH\n    : {}"),
    ],
)
def test_a_path_that_cannot_be_one_is_bad_input(workplace: Workplace, place: tuple[str, str], path: str) -> None:
    ending = ".txt" if "calibration" in place[1] else ".yaml" if "?" in place[1] else ""
    given = path[:-1] + ending + '"' if path.endswith('"') else path + ending
    with pytest.raises(Exception, match=r".") as raised:
        recipe = workplace.recipe(lambda text: text.replace(place[0], place[1].replace("PATH", given)))
        api.run(recipe, out=workplace.folder / "none", validate=False)
    assert getattr(raised.value, "exit_code", None) == 2, raised.value
    assert not [path for path in (workplace.folder / "none").rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "~nosuchuser/weights", "a\0b"])
def test_an_argument_that_cannot_be_a_path_is_bad_input(workplace: Workplace, path: str) -> None:
    for call in (
        lambda: api.plan(workplace.recipe_file, checkpoint=path),
        lambda: api.plan(path + ".yaml"),
        lambda: api.run(workplace.recipe_file, out=workplace.folder / "none", profiles=[path + ".yaml"]),
    ):
        with pytest.raises(Exception, match=r".") as raised:
            call()
        assert getattr(raised.value, "exit_code", None) == 2, raised.value


def test_a_checkpoint_whose_name_is_no_text_is_refused(workplace: Workplace, weights: Path) -> None:
    """A report could not hold its name."""
    renamed = weights.rename(os.fsdecode(os.fsencode(weights.parent) + b"/caf\xe9"))
    with pytest.raises(EdgewrightError, match=r"--checkpoint: .* is not UTF-8 text; rename"):
        run(workplace, renamed)
