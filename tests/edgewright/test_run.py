"""A recipe's whole way: from a checkpoint to artifacts, verdicts and a report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from artifacts import EdgewrightError, read_manifest, verify
from edgewright import api
from edgewright.report import Report

from .conftest import half_written
from .hub_server import HubServer

ROOT = Path(__file__).parents[2]


def test_a_run_leaves_an_intact_artifact_and_its_report(finished):
    folder = finished.folder
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "memory-onnx-1.svg",
        "report.html",
        "onnx",
        "quantized",
        "report.json",
        "report.md",
    }
    assert verify(folder / "onnx") == []
    assert Report.model_validate_json((folder / "report.json").read_text()) == finished.report
    assert (folder / "report.md").read_text().startswith(f"# small: {finished.report.verdict}\n")


def test_the_report_holds_every_gate_and_phone(finished):
    target = finished.report.targets[0]
    assert (target.target, finished.report.verdict) == ("onnx", "passed"), target.checks
    names = {check.name for check in target.checks}
    assert {"exact_max_abs_logit", "shipped_mean_kl", "shipped_clear_top1", "genai_greedy_equal"} <= names
    assert [phone.profile for phone in target.phones] == ["android-4gb", "iphone-12"]
    android, iphone = target.phones
    assert android.checks[0].limit == 300_000_000
    assert iphone.checks[0].limit > 1_000_000_000  # the recipe sets none: the phone's own
    for check in (check for phone in target.phones for check in phone.checks):
        assert (check.verdict, check.obtained) == ("fits", "emulated")
        assert check.stand_in == "this machine without a limit, memory by kind"
    assert {phase.phase for phase in android.run.phases} == {"load", "prefill", "steady", "long conversation"}
    assert target.folder_bytes == read_manifest(finished.folder / "onnx").total_bytes


def test_sizes_are_of_what_goes_into_an_app(finished):
    """On each platform the graph, its weights and the tokenizer: no golden vectors, no evidence, no manifest."""
    target = finished.report.targets[0]
    names = {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json"}
    shipped = sum((finished.folder / "onnx" / name).stat().st_size for name in names)
    assert target.app_bytes == {"android": shipped, "ios": shipped}
    assert target.folder_bytes > shipped + (finished.folder / "onnx" / "golden.safetensors").stat().st_size


def test_memory_is_at_the_context_of_the_recipe_and_says_so_everywhere(finished):
    data = json.loads((finished.folder / "report.json").read_text())
    for phone in data["targets"][0]["phones"]:
        assert phone["checks"][0]["at"] == "64 tokens" and phone["run"]["context_tokens"] == 64
        tokens = {phase["phase"]: phase["payload"].get("tokens") for phase in phone["run"]["phases"]}
        assert tokens == {"load": None, "prefill": 32, "steady": 32, "long conversation": 64}
        assert {figure["at"] for figure in phone["figures"]} == {"64 tokens"}
    page = (finished.folder / "report.md").read_text()
    assert page.count("| peak memory at 64 tokens |") == 2
    assert page.count("| emulated: this machine without a limit, memory by kind |") == 2
    assert "Memory on android-4gb and iphone-12, without a limit, 64 tokens of context" in page


def test_the_report_is_of_version_2(finished):
    data = json.loads((finished.folder / "report.json").read_text())
    assert data["schema_version"] == 2
    checks = {check["name"]: check for check in data["targets"][0]["checks"]}
    assert checks["exact_max_abs_logit"]["group"] == "parity"
    assert checks["exact_max_abs_logit"]["direction"] == "at most"
    low, high = checks["perplexity_increase"]["interval"]
    assert low < checks["perplexity_increase"]["value"] < high


def test_progress_is_told_by_stage(finished):
    assert finished.stages[0] == "quantizing"
    assert finished.stages[-2:] == ["measuring speed", "measuring memory"]


def test_the_report_schema_describes_the_file(finished):
    schema = Report.model_json_schema()
    assert set(schema["properties"]) == set(json.loads((finished.folder / "report.json").read_text()))


def test_a_package_that_is_gone_is_built_from_what_is_left(workplace, finished, tmp_path):
    out = Path(shutil.copytree(finished.folder.parent, tmp_path / "out"))
    quantized = (out / "small" / "quantized" / "model.safetensors").stat().st_ino
    shutil.rmtree(out / "small" / "onnx")
    stages: set[str] = set()
    report = api.run(
        workplace.recipe_file, out=out, validate=False, progress=lambda stage, done, total: stages.add(stage)
    )
    assert report.targets[0].reused == () and report.reused == ("quantized weights",)
    assert "quantizing" not in stages and "golden vectors" not in stages
    assert (out / "small" / "quantized" / "model.safetensors").stat().st_ino == quantized
    assert verify(out / "small" / "onnx") == []
    assert read_manifest(out / "small" / "onnx").identity == finished.report.targets[0].manifest


def test_the_check_for_space_counts_the_golden_vectors(workplace, tmp_path, monkeypatch):
    package = api.plan(workplace.recipe_file)[0].file_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=package + 1_000_000))
    with pytest.raises(EdgewrightError, match=r"small/onnx: no space left on the disk"):
        api.run(workplace.recipe_file, out=tmp_path, validate=False)
    assert not (tmp_path / "small" / "onnx").exists()


def test_a_folder_that_is_not_ours_is_refused_before_any_work(workplace, tmp_path):
    foreign = tmp_path / "small" / "onnx"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("precious")
    with pytest.raises(EdgewrightError, match="move it away or choose another --out"):
        api.run(workplace.recipe_file, out=tmp_path)
    assert (foreign / "thesis.txt").read_text() == "precious"
    assert not (tmp_path / "small" / "quantized").exists()


def test_a_limit_that_is_missed_fails_the_run_and_says_by_how_much(workplace, finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "small")
    recipe = workplace.recipe(lambda text: text.replace("300MB", "1MB"))
    report = api.run(recipe, out=tmp_path, profiles=["android-4gb"])
    check = report.targets[0].phones[0].checks[0]
    assert report.verdict == "failed"
    assert (check.verdict, check.limit) == ("does not fit", 1_000_000)


def test_a_checkpoint_without_a_tokenizer_builds_with_a_warning(workplace, tmp_path):
    shutil.copytree(workplace.folder / "weights", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    report = api.run(workplace.recipe_file, out=tmp_path, checkpoint=tmp_path / "bare", validate=False)
    assert "has no tokenizer.json" in report.warnings[0]
    assert report.checkpoint.source == str(tmp_path / "bare")
    assert report.warnings[0] in (tmp_path / "small" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ["onx"]}, r'there is no target \'onx\'; did you mean "onnx"\?'),
        ({"profiles": ["iphone-21"]}, "iphone-12"),
        ({"checkpoint": "nowhere"}, "nowhere: no such checkpoint folder"),
    ],
)
def test_what_does_not_exist_is_named(workplace, tmp_path, arguments, message):
    with pytest.raises(EdgewrightError, match=message):
        api.run(workplace.recipe_file, out=tmp_path, **arguments)


def test_an_artifact_is_validated_on_its_own(finished, tmp_path):
    shutil.copytree(finished.folder / "onnx", tmp_path / "onnx")
    report = api.validate(tmp_path / "onnx", profiles=["iphone-12"])
    assert report.verdict == "passed"
    assert [phone.profile for phone in report.phones] == ["iphone-12"]


def test_a_run_whose_phones_are_all_of_another_platform_is_not_assessed(workplace, finished, tmp_path):
    """MLX has no runtime for Android: it is shown, and neither passes nor fails."""
    report = api.run(workplace.recipe_file, out=tmp_path, targets=["mlx"], profiles=["android-4gb"])
    target = report.targets[0]
    assert (report.verdict, target.verdict) == ("not assessed", "not assessed"), target.checks
    assert [(phone.profile, phone.verdict) for phone in target.phones] == [("android-4gb", "not for this platform")]
    page = (tmp_path / "small" / "report.md").read_text()
    assert "| android-4gb | peak memory: not for this platform |" in page
    assert list(target.app_bytes) == ["ios"]
    assert {check.name for check in target.checks} >= {"mlx_lm_tokens_equal", "mlx_lm_greedy_equal"}
    assert all(check.verdict in ("passed", None) for check in target.checks), target.checks


def test_a_damaged_artifact_is_never_run(finished, tmp_path):
    shutil.copytree(finished.folder / "onnx", tmp_path / "onnx")
    with (tmp_path / "onnx" / "model.onnx.data").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(EdgewrightError, match=r"model\.onnx\.data: sha256 differs"):
        api.validate(tmp_path / "onnx")


def _start(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgewright", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _interrupted(recipe: Path, out: Path, by: signal.Signals) -> tuple[int, str]:
    """Start a run, send it a signal while an artifact is half-written, and wait: exit code and stderr."""
    process = half_written(recipe, out)
    process.send_signal(by)
    _, errors = process.communicate(timeout=60)
    assert not (out / "small" / "report.json").exists()
    return process.returncode, errors


def test_ctrl_c_ends_with_130_one_line_and_nothing_half_written(workplace, tmp_path):
    code, errors = _interrupted(workplace.recipe_file, tmp_path, signal.SIGINT)
    assert code == 130, errors
    assert errors.strip().splitlines()[-1].startswith("interrupted; ")
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("small/.*.partial-*"))


@pytest.mark.nightly
def test_after_a_kill_the_next_run_works_and_cleans_up(workplace, tmp_path):
    code, _ = _interrupted(workplace.recipe_file, tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "small" / "mlx").exists()
    api.run(workplace.recipe_file, out=tmp_path, targets=["mlx"], validate=False)
    assert verify(tmp_path / "small" / "mlx") == []
    assert not list(tmp_path.glob("small/.*.partial-*"))


def test_an_output_that_is_a_file_is_refused(workplace, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(EdgewrightError, match="choose another --out"):
        api.run(workplace.recipe_file, out=tmp_path / "out")


def test_a_recipe_that_publishes_is_told_that_a_run_does_not(workplace, finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "small")
    recipe = workplace.recipe(lambda text: text + "publish: {repo: acme/small-edge}\n")
    report = api.run(recipe, out=tmp_path, validate=False)
    assert report.warnings == (
        "publish: a run publishes nothing; acme/small-edge is as it was; `edgewright publish` does",
    )


def test_a_hub_recipe_is_locked_to_the_commit_that_it_fetched(workplace, tmp_path):
    files = {path.name: path.read_bytes() for path in (workplace.folder / "weights").iterdir()}
    recipe = tmp_path / "hub.yaml"
    recipe.write_text((workplace.recipe_file.read_text()).replace("path: weights", "hub: acme/tiny, revision: null"))
    with HubServer() as hub:
        commit = hub.commit(files)
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = ("run", str(recipe), "--target", "mlx", "--out", str(tmp_path / "out"), "--no-validate", "--json")
        process = _start(*command, env=env)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    report = json.loads(output)
    assert report["checkpoint"] == {"source": "acme/tiny", "revision": commit}
    folder = tmp_path / "out" / "small"
    assert json.loads((folder / "recipe.lock.json").read_text())["revision"] == commit
    assert read_manifest(folder / "mlx").checkpoint.revision == commit
