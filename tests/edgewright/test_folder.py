"""A recipe's folder over several runs: reports and manifests say what is so, whatever was built when."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from artifacts import Check, MissingTool, read_manifest, record_validation, verify
from artifacts.manifest import MANIFEST, ValidationRecord
from edgewright import api, cli, folder, judging, standing
from edgewright.report import Report
from tests.compiler.conftest import MINISTRAL3, random_tensors, save


@pytest.fixture
def again(finished, tmp_path) -> Path:
    """A copy of the folder that a run with the onnx target left; `tmp_path` is its --out."""
    shutil.copytree(finished.folder, tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def other_checkpoint(workplace, tmp_path) -> Path:
    """The workplace's checkpoint with other weights."""
    path = shutil.copytree(workplace.folder / "weights", tmp_path / "tuned")
    config = {**MINISTRAL3, "vocab_size": 320}
    return save(path, config, random_tensors(config, seed=1))


def fail(artifact: Path) -> None:
    """Have the artifact's manifest say that it failed."""
    manifest = read_manifest(artifact)
    check = Check(
        group="quality",
        name="perplexity_increase",
        label="perplexity, change",
        value=0.05,
        limit=0.02,
        direction="at most",
        unit="change",
        obtained="measured",
        verdict="failed",
    )
    failed = ValidationRecord(
        verdict="failed",
        created="2030-01-02T03:04:05+00:00",
        host="a machine",
        edgewright="0.1.0",
        limits=manifest.recipe,
        checks=(check,),
    )
    record_validation(artifact, manifest, failed)


def on_disk(place: Path) -> Report:
    return Report.model_validate_json((place / "report.json").read_text())


def test_a_run_writes_its_verdict_into_the_manifest(finished):
    manifest = read_manifest(finished.folder / "onnx")
    (found,) = manifest.validations
    assert manifest.verdict == found.verdict == finished.report.targets[0].verdict
    assert found.limits == manifest.recipe and found.created == finished.report.targets[0].created
    assert {check.group for check in found.checks if check.verdict} == {"parity", "android-4gb", "iphone-12"}
    peak = next(check for check in found.checks if check.group == "android-4gb")
    assert (peak.limit, peak.unit, peak.verdict) == (300_000_000, "bytes", "fits")
    assert verify(finished.folder / "onnx") == []


def test_what_was_found_out_holds_for_the_same_bytes_built_again(workplace, again):
    fail(again / "onnx")
    report = api.run(workplace.recipe_file, out=again.parent, validate=False)
    (found,) = report.targets
    assert report.verdict == found.verdict == read_manifest(again / "onnx").verdict == "failed"
    assert found.kept and verify(again / "onnx") == []


def test_without_validation_the_manifest_says_so(workplace, again):
    fail(again / "onnx")
    shorter = workplace.recipe(lambda text: text.replace("max_tokens: 64", "max_tokens: 48"))
    report = api.run(shorter, out=again.parent, validate=False)
    assert report.verdict == read_manifest(again / "onnx").verdict == "not validated"


def test_a_run_of_one_target_keeps_what_is_true_of_the_others(workplace, finished, again):
    report = api.run(workplace.recipe_file, out=again.parent, targets=["mlx"], validate=False)
    assert [(item.target, item.kept, item.verdict) for item in report.targets] == [
        ("mlx", False, "not validated"),
        ("onnx", True, "passed"),
    ]
    before, kept = finished.report.targets[0], report.targets[1]
    assert (kept.checks, kept.figures, kept.phones, kept.created) == (
        before.checks,
        before.figures,
        before.phones,
        before.created,
    )
    assert report.verdict == "not validated" and report.stale == () and on_disk(again) == report
    text = (again / "report.md").read_text()
    assert f"## onnx: {text.split('## onnx: ')[1]}".count(f"Kept from {before.created}: this run did not") == 1


def test_a_target_that_failed_in_an_earlier_run_is_not_forgotten(workplace, again, capsys):
    fail(again / "onnx")
    with pytest.raises(SystemExit) as ended:
        cli.main(
            [
                "run",
                str(workplace.recipe_file),
                "--out",
                str(again.parent),
                "--target",
                "mlx",
                "--no-validate",
                "--quiet",
            ]
        )
    assert ended.value.code == 1
    verdict, reason, *_ = capsys.readouterr().out.splitlines()
    assert verdict.startswith("small: ✗ failed in ")
    assert reason.startswith("  onnx, kept from 2030-01-02T03:04:05+00:00: ")
    assert on_disk(again).targets[1].verdict == "failed"


def test_packages_of_another_checkpoint_are_named_and_in_no_verdict(workplace, again, other_checkpoint):
    fail(again / "onnx")
    before = (again / "onnx" / MANIFEST).read_bytes()
    report = api.run(
        workplace.recipe_file, out=again.parent, targets=["mlx"], checkpoint=other_checkpoint, validate=False
    )
    assert [item.target for item in report.targets] == ["mlx"] and report.verdict == "not validated"
    (stale,) = report.stale
    assert (stale.target, stale.artifact) == ("onnx", str(again / "onnx"))
    assert stale.reason == "built from another checkpoint (weights)"
    assert (again / "onnx" / MANIFEST).read_bytes() == before and verify(again / "onnx") == []
    assert f"- **Stale**, in no verdict here: `{again / 'onnx'}`: {stale.reason}" in (again / "report.md").read_text()


def test_packages_with_another_tokenizer_are_stale(workplace, again, tmp_path):
    tuned = shutil.copytree(workplace.folder / "weights", tmp_path / "same-weights")
    config = json.loads((tuned / "tokenizer_config.json").read_text())
    (tuned / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 60}))
    report = api.run(workplace.recipe_file, out=again.parent, targets=["mlx"], checkpoint=tuned, validate=False)
    assert [item.target for item in report.targets] == ["mlx"]
    assert report.stale[0].reason == "built with another tokenizer (weights)"


def test_a_result_that_a_run_did_not_find_is_said_to_be_kept(workplace, again, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(workplace.recipe_file), "--out", str(again.parent), "--no-validate", "--quiet"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("; found by an earlier run: onnx")


def test_packages_of_an_earlier_recipe_are_stale_too(workplace, again):
    recipe = workplace.recipe(lambda text: text.replace("300MB", "200MB"))
    report = api.run(recipe, out=again.parent, targets=["mlx"], validate=False)
    assert [item.target for item in report.targets] == ["mlx"]
    assert report.stale[0].reason.startswith("built by another state of the recipe (small, digest ")


def test_a_damaged_manifest_beside_the_run_is_named_and_stops_nothing(workplace, again):
    (again / "onnx" / MANIFEST).write_text("{")
    report = api.run(workplace.recipe_file, out=again.parent, targets=["mlx"], validate=False)
    assert "not valid JSON" in report.stale[0].reason and report.targets[0].target == "mlx"


def test_which_targets_are_built_beside_it_changes_nothing_in_a_package(workplace, again):
    recipe = api.load_recipe(workplace.recipe_file)
    api.run(recipe, out=again.parent / "apart", targets=["mlx", "onnx"], validate=False)
    apart, alone = (read_manifest(place / "onnx") for place in (again.parent / "apart" / "small", again))
    assert apart.recipe == alone.recipe
    assert apart.recipe.digest == api.narrowed(recipe, "onnx").digest


def test_a_run_that_ends_in_the_middle_leaves_no_report_of_what_is_gone(workplace, again, monkeypatch):
    """The package was built anew and its test never came to an end: the earlier verdict is not its own."""

    def missing(*_: object, **__: object) -> None:
        raise MissingTool("onnxruntime is not installed")

    monkeypatch.setattr(judging, "validate", missing)
    shorter = workplace.recipe(lambda text: text.replace("max_tokens: 64", "max_tokens: 48"))
    with pytest.raises(MissingTool):
        api.run(shorter, out=again.parent)
    report = on_disk(again)
    assert report.verdict == "not validated" and report.targets[0].checks == ()
    assert report.targets[0].manifest == read_manifest(again / "onnx").identity


def test_a_report_that_cannot_be_read_leaves_the_manifests_verdict(workplace, again):
    (again / "report.json").unlink()
    os.mkfifo(again / "report.json")  # opening it would wait for a writer for ever
    assert folder._earlier_results(again) == {}
    report = api.run(workplace.recipe_file, out=again.parent, targets=["mlx"], validate=False)
    kept = report.targets[1]
    assert (kept.target, kept.kept, kept.verdict, kept.checks) == ("onnx", True, "passed", ())
    assert on_disk(again) == report


def test_a_validation_of_its_own_is_recorded_beside_the_recipes(again):
    artifact = again / "onnx"
    report = api.validate(artifact, profiles=["iphone-12"])
    by_recipe, own = read_manifest(artifact).validations
    assert by_recipe.limits is not None and own.limits is None
    assert own.created == report.created
    assert {check.group for check in own.checks if check.verdict} == {"parity", "iphone-12"}
    assert verify(artifact) == [] and report.warnings == ()


def test_an_artifact_that_cannot_be_written_is_validated_with_a_warning(again, monkeypatch):
    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("artifacts.store.locked", read_only)
    report = api.validate(again / "onnx")
    assert report.verdict == "passed"
    assert report.warnings[-1].startswith("the artifact's manifest holds no record of this validation: ")
    assert len(read_manifest(again / "onnx").validations) == 1


def sentences(artifact: Path) -> list[str]:
    return [f"{item.verdict}: {item.words}" for item in standing.standings(read_manifest(artifact), artifact)]


def test_the_manifest_in_words(again, finished):
    artifact = again / "onnx"
    created = finished.report.targets[0].created
    assert sentences(artifact) == [
        f"passed: passed on {created} by the limits of recipe small; judged: parity, android-4gb, iphone-12"
    ]
    fail(artifact)
    assert sentences(artifact) == [
        "failed: failed on 2030-01-02T03:04:05+00:00 by the limits of recipe small; judged: quality. "
        "Failed: quality: perplexity, change +5.00 % (limit +2.00 %): failed"
    ]
    edited = json.loads((artifact / MANIFEST).read_text())
    (artifact / MANIFEST).write_text(json.dumps({**edited, "validations": []}))
    assert sentences(artifact) == [
        f"not validated: never validated: nothing shows yet that it works. Run: edgewright validate {artifact}"
    ]
    assert sentences(again / "quantized")[0].startswith("not validated: quantized weights: packages are built from")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_inspect_and_verify_show_a_failed_artifact_as_one(again, capsys, command):
    def shown(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, str(again / "onnx"), *arguments])
        assert not ended.value.code  # the digests are right
        return " ".join(capsys.readouterr().out.split())

    assert "✓ passed on " in shown()
    fail(again / "onnx")
    assert "✗ failed on 2030-01-02T03:04:05+00:00 by the limits of recipe small" in shown()
    found = json.loads(shown("--json"))
    assert found["verdict" if command == "verify" else "validations"] in ("failed", found.get("validations"))
    if command == "verify":
        assert "perplexity, change" in shown("--quiet")


def test_verify_speaks_of_no_verdict_where_the_files_are_others(again, capsys):
    (again / "onnx" / "model.onnx").write_bytes(b"x")
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", str(again / "onnx"), "--json"])
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["verdict"] is None
