"""A second run does what changed and nothing else, says so, and never uses what is damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import read_manifest, verify
from artifacts.stages import Store
from compiler import targets
from edgewright import api, cli, judging
from edgewright.report import Report

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(finished, tmp_path) -> Path:
    """A copy of the --out that a run with the onnx target left, with its store."""
    return Path(shutil.copytree(finished.folder.parent, tmp_path / "out"))


@pytest.fixture
def did(monkeypatch) -> list[str]:
    """The work that is done from here on: which targets are checked and built, and which packages are tested."""
    done: list[str] = []
    for name in ("mlx", "onnx"):
        target = targets.load_target(name)
        for step in ("check", "build"):
            real = getattr(type(target), step)
            told = lambda *args, real=real, word=f"{step} {name}": [done.append(word), real(*args)][1]  # noqa: E731
            monkeypatch.setattr(type(target), step, told)
    real = judging.validate
    monkeypatch.setattr(judging, "validate", lambda *args, **more: [done.append("test"), real(*args, **more)][1])
    return done


def stamps(out: Path) -> dict[str, int]:
    """Which folders and weights there are: others after they were made again."""
    names = ("quantized/model.safetensors", "onnx", "onnx/model.onnx.data")
    return {name: (out / "small" / name).stat().st_ino for name in names}


def test_a_run_with_nothing_changed_does_nothing_and_says_so(workplace, finished, out, did):
    before = stamps(out)
    report = api.run(workplace.recipe_file, out=out)  # a copy: nothing has the identity that it had
    assert did == [] and stamps(out) == before
    (target,) = report.targets
    assert (report.reused, target.reused) == (("quantized weights",), ("package", "validation"))
    assert target.created == finished.report.targets[0].created and target.checks == finished.report.targets[0].checks
    page = (out / "small" / "report.md").read_text()
    assert "- Reused from an earlier run: quantized weights\n" in page
    assert (
        "Reused, since nothing changed that it depends on: package and validation, its figures of "
        f"{target.created}.\n" in page
    )
    assert read_manifest(out / "small" / "onnx").verdict == "passed" and verify(out / "small" / "onnx") == []


WITHOUT_FRAMEWORKS = """
import resource, sys
from edgewright import cli
try:
    cli.main(sys.argv[1:])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    loaded = {"torch", "transformers", "onnxruntime", "onnx", "mlx", "tokenizers"} & sys.modules.keys()
    print(sorted(loaded), used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def test_it_is_decided_before_a_framework_is_imported(workplace, out):
    """Two seconds are the promise; of processor time here, since other tests may have the machine meanwhile."""
    api.run(workplace.recipe_file, out=out)
    command = [sys.executable, "-c", WITHOUT_FRAMEWORKS, "run", str(workplace.recipe_file), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, seconds = done.stderr.splitlines()[-1].rsplit(" ", 1)
    assert loaded == "[]" and float(seconds) < 2
    last = " ".join(done.stdout.split())
    assert last.endswith("; reused: quantized weights, onnx (package and validation)")
    assert Report.model_validate_json((out / "small" / "report.json").read_text()).targets[0].reused


def test_another_limit_rebuilds_nothing_and_judges_again(workplace, out, did):
    before = stamps(out)
    recipe = workplace.recipe(lambda text: text.replace("300MB", "1MB"))
    report = api.run(recipe, out=out, profiles=["android-4gb"])
    assert did == ["test"] and stamps(out) == before
    assert (report.verdict, report.targets[0].reused) == ("failed", ("package",))
    manifest = read_manifest(out / "small" / "onnx")
    assert manifest.recipe.digest == recipe.digest == read_manifest(out / "small" / "quantized").recipe.digest
    (record,) = manifest.validations
    assert (record.verdict, record.limits) == ("failed", manifest.recipe) and verify(out / "small" / "onnx") == []
    again = api.run(recipe, out=out, profiles=["android-4gb"])  # a gate that failed is found out once
    assert did == ["test"] and (again.verdict, again.targets[0].reused) == ("failed", ("package", "validation"))


def test_one_target_more_is_all_that_is_built(workplace, out, did):
    before = stamps(out)
    report = api.run(workplace.recipe_file, out=out, targets=["onnx", "mlx"], validate=False)
    assert did == ["check mlx", "build mlx"] and stamps(out) == before
    assert [(item.target, item.reused) for item in report.targets] == [("onnx", ("package",)), ("mlx", ())]


def test_an_option_that_is_put_back_finds_the_kept_package(workplace, out, did):
    before = stamps(out)
    other = workplace.recipe(lambda text: text.replace("max_tokens: 64", "max_tokens: 48"))
    api.run(other, out=out, validate=False)
    assert did == ["check onnx", "build onnx"] and stamps(out)["onnx"] != before["onnx"]
    assert [item.kept for item in Store(out).listed("package")].count(True) == 1
    report = api.run(workplace.recipe_file, out=out)
    assert len(did) == 2 and stamps(out) == before
    assert report.targets[0].reused == ("package", "validation") and report.verdict == "passed"


@pytest.mark.parametrize("name", ["quantized/model.safetensors", "onnx/model.onnx.data", ".golden"])
def test_what_is_damaged_is_made_again(workplace, finished, out, did, name):
    file = next((out / "small").glob(".golden-*")) if name == ".golden" else out / "small" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if name == ".golden":
        shutil.rmtree(out / "small" / "onnx")
    api.run(workplace.recipe_file, out=out, validate=False)
    assert verify(out / "small" / "quantized") == verify(out / "small" / "onnx") == []
    for part in ("quantized", "onnx"):
        assert read_manifest(out / "small" / part).identity == read_manifest(finished.folder / part).identity
    assert did == (["check onnx"] if name.startswith("quantized") else ["check onnx", "build onnx"])


def test_a_fresh_run_does_everything_again(workplace, finished, out, did):
    before = stamps(out)
    held = [os.open(out / "small" / name, os.O_RDONLY) for name in before]  # or their numbers would be given again
    report = api.run(workplace.recipe_file, out=out, validate=False, fresh=True)
    assert did == ["check onnx", "build onnx"] and not set(stamps(out).values()) & set(before.values())
    for descriptor in held:
        os.close(descriptor)
    assert report.reused == report.targets[0].reused == ()
    assert read_manifest(out / "small" / "onnx").identity == read_manifest(finished.folder / "onnx").identity


def test_recipes_below_one_output_share_weights_and_vectors(workplace, out, tmp_path):
    other = workplace.folder / "other.yaml"
    other.write_text(workplace.recipe_file.read_text().replace("name: small", "name: other").replace("onnx:", "mlx:"))
    stages: set[str] = set()
    report = api.run(other, out=out, validate=False, progress=lambda stage, *_: stages.add(stage))
    assert report.reused == ("quantized weights",)
    assert not {"quantizing", "golden vectors"} & stages and "packing" not in stages
    one, two = (read_manifest(out / name / "quantized") for name in ("small", "other"))
    assert (one.weights_digest, two.recipe.name) == (two.weights_digest, "other")
    assert (out / "other" / "quantized" / "model.safetensors").stat().st_nlink == 1  # onnxruntime refuses links


def test_the_store_in_the_command_line(workplace, out, capsys):
    def shown(code: int, *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["cache", *arguments, "--out", str(out)])
        captured = capsys.readouterr()
        assert (ended.value.code or 0) == code, captured.err
        return captured.out

    listing = shown(0, "ls")
    for words in ("package ", "small/onnx", "weights ", "validation ", "recipe small, target onnx, checkpoint weights"):
        assert words in listing
    assert json.loads(shown(0, "ls", "--json"))["kept_bytes"] == 0
    assert shown(0, "verify").endswith("every digest matches\n")
    (out / "small" / "onnx" / "model.onnx").write_bytes(b"x")
    assert f"{out}/small/onnx (package): model.onnx is not what it was" in " ".join(shown(1, "verify").split())
    assert json.loads(shown(0, "verify", "--json")) == {"intact": True, "problems": []}
    assert "kept" in shown(0, "gc", "--limit", "5MB") and Store(out).limit == 5_000_000
    with pytest.raises(SystemExit) as ended:
        cli.main(["cache", "gc", "--out", str(out), "--limit", "much"])
    assert ended.value.code == 2 and "--limit must be a size" in capsys.readouterr().err
    (Store(out).path / "limit").unlink()
    (Store(out).path / "limit").mkdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(["cache", "gc", "--out", str(out), "--limit", "5MB"])
    assert ended.value.code == 2 and "cannot be changed" in capsys.readouterr().err


def test_a_change_of_a_file_that_the_recipe_names_is_seen(workplace, tmp_path):
    from edgewright.again import Asked

    text = tmp_path / "own.txt"
    text.write_text("one")
    (tmp_path / "small.yaml").write_text(
        workplace.recipe_file.read_text().replace("validate:\n", "validate:\n  quality: {text: own.txt}\n")
    )
    recipe = api.load_recipe(tmp_path / "small.yaml")
    asked = Asked(Store(tmp_path), recipe, recipe, [], tmp_path, None, True)
    asked.begin(workplace.folder / "weights")
    before = dict(asked._before)
    assert str(text) in before and str(workplace.folder / "weights" / "tokenizer.json") in before
    os.utime(text)
    asked.begin(workplace.folder / "weights")
    assert asked._before == before  # a small file is known by its content
    text.write_text("two")
    asked.begin(workplace.folder / "weights")
    assert asked._before != before
