"""The command line: what it prints, what it exits with, and how little it loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts import GateFailed, MissingTool
from edgewright import api, cli
from edgewright.report import Report
from recipes.load import shipped

HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "onnxruntime_genai", "coremltools", "mlx", "tvm"}
NOT_FOR_HELP = HEAVY | {"numpy", "pydantic", "rich", "yaml", "huggingface_hub", "safetensors", "tokenizers"}


def _loads(code: str) -> tuple[set[str], str, float]:
    """Top-level modules that a fresh interpreter has loaded after `code`, its output, and its seconds."""
    report = "\nfinally:\n    import sys; print(' '.join({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "try:\n    " + code.replace("\n", "\n    ") + report],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    return set(done.stderr.splitlines()[-1].split()), done.stdout, time.monotonic() - started


def test_help_loads_the_standard_library_only():
    loaded, output, seconds = _loads("from edgewright.cli import main\nmain(['--help'])")
    print(f"edgewright --help: {seconds:.3f} s")
    assert not loaded & NOT_FOR_HELP
    for command in ("run", "plan", "validate", "inspect", "verify", "recipes", "profiles"):
        assert f"\n    {command}" in output


def test_threads_of_a_command_leave_the_core_while_they_wait_unless_one_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for given in (None, "ACTIVE"):
        if given:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        with pytest.raises(SystemExit):
            cli.main(["--version"])
        assert os.environ["OMP_WAIT_POLICY"] == (given or "PASSIVE")


def test_importing_the_package_loads_nothing_heavy():
    loaded, _, _ = _loads("import edgewright\nassert 'Recipe' in dir(edgewright)")
    assert not loaded & NOT_FOR_HELP


def test_the_public_names_are_what_they_say():
    loaded, output, _ = _loads("from edgewright import Recipe, plan\nprint(plan(Recipe.load('ministral-3-3b-int4')))")
    assert "TargetPlan(target='coreml'" in output
    assert not loaded & HEAVY


def test_a_plan_of_the_real_3b_needs_no_weights_and_no_framework():
    loaded, output, seconds = _loads("from edgewright.cli import main\nmain(['plan', 'ministral-3-3b-int4', '--json'])")
    print(f"edgewright plan ministral-3-3b-int4: {seconds:.3f} s")
    assert not loaded & HEAVY
    target = json.loads(output)["targets"][0]
    assert target["refused"] is None
    assert 1.80e9 < target["file_bytes"] <= 1.85e9
    assert target["app_bytes"] == {"ios": target["file_bytes"]}
    assert target["state_bytes"] == 106_496 * 4096  # 106,496 B a token in fp16


def test_a_plan_is_shown_as_a_table(edgewright):
    code, out, _ = edgewright("plan", "ministral-3-3b-int8")
    assert code == 0
    assert "ministral-3-3b-int8" in out and "onnx" in out and "GB" in out


def test_every_shipped_recipe_is_valid_and_named_like_its_file(edgewright):
    code, out, _ = edgewright("recipes", "list", "--json")
    assert code == 0
    found = {recipe["name"] for recipe in json.loads(out)["recipes"]}
    assert found == set(shipped())
    for name, path in shipped().items():
        assert api.load_recipe(path).name == name


def test_no_recipe_names_a_commit_that_nobody_fetched():
    assert all(api.load_recipe(path).checkpoint.revision is None for path in shipped().values())


def test_every_target_and_method_refuses_unknown_options():
    from compiler.quantize.methods import method_options
    from compiler.targets import target_options

    for options in (*target_options().values(), *method_options().values()):
        assert options.model_config.get("extra") == "forbid"
        assert options.model_config.get("frozen") is True


def test_recipes_are_listed_and_shown(edgewright):
    _, out, _ = edgewright("recipes", "list")
    assert "quickstart-int8" in out and "ministral-3-3b-int4" in out
    _, out, _ = edgewright("recipes", "show", "quickstart")
    assert api.load_recipe("quickstart").digest in out
    shown, own = out.splitlines()[3:], shipped()["quickstart"].read_text().splitlines()
    assert [line for line in shown if line not in own] == [
        f'checkpoint: {{path: "{shipped()["quickstart"].parent}/checkpoints/tiny-ministral3"}}'
    ]
    assert len(shown) == len(own)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_recipe_that_is_shown_and_saved_elsewhere_works(edgewright, tmp_path, name):
    (tmp_path / "mine.yaml").write_text(edgewright("recipes", "show", name)[1])
    saved, original = api.load_recipe(tmp_path / "mine.yaml"), api.load_recipe(name)
    for read in (lambda recipe: recipe.checkpoint.path, lambda recipe: recipe.checkpoint.config):
        assert (path := read(original)) is None or saved.resolve(read(saved)) == original.resolve(path).absolute()
    assert edgewright("plan", str(tmp_path / "mine.yaml"), "--json")[0] == 0


def test_every_path_of_a_shown_recipe_is_absolute_whatever_its_style(edgewright, workplace, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("x")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "name: small\ncheckpoint:\n  path:   'we\"ights'  # mine\n"
        "quantize:\n  calibration: {text: text.txt}\n  rules: [{match: '*', bits: 4}]\ncontext: {max_tokens: 64}\n"
        "targets: {onnx: }\nvalidate:\n  profiles: {phone.yaml: {peak_memory: 1MB}, android-4gb: }\n"
    )
    monkeypatch.chdir(tmp_path.parent)
    code, out, _ = edgewright("recipes", "show", str(recipe.relative_to(tmp_path.parent)))
    assert code == 0 and "checkpoint.path, quantize.calibration.text, validate.profiles.phone.yaml" in out
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.yaml").write_text(out)
    saved = api.load_recipe(tmp_path / "elsewhere" / "mine.yaml")
    assert saved.checkpoint.path == str(tmp_path / 'we"ights')
    assert saved.quantize.calibration.text == str(tmp_path / "text.txt")
    assert list(saved.validation.profiles) == [str(tmp_path / "phone.yaml"), "android-4gb"]


def test_the_doctor_names_what_is_missing_and_how_to_get_it(edgewright, monkeypatch):
    code, out, _ = edgewright("doctor")
    assert code == 0
    assert "✓ target onnx" in out and "memory sandbox" in out
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    _, out, _ = edgewright("doctor", "--json")
    advice = {f["subject"]: f["advice"] for f in json.loads(out)["findings"]}
    assert advice["target onnx"] is None
    assert "apt-get install qemu-user-static" in advice["ARM64 emulation"]


def test_the_recipe_schema_is_json_schema(edgewright):
    _, out, _ = edgewright("recipes", "schema")
    schema = json.loads(out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    sections = {"checkpoint", "quantize", "context", "vision", "targets", "validate", "baseline", "publish"}
    assert {"name", *sections} == set(schema["properties"])


def test_profiles_are_listed_and_shown_with_their_sources(edgewright):
    _, out, _ = edgewright("profiles", "list")
    assert "android-4gb" in out and "iphone-12" in out
    _, out, _ = edgewright("profiles", "show", "iphone-12")
    assert "ram_bytes:" in out and "source:" in out and "confidence:" in out
    _, out, _ = edgewright("profiles", "list", "--json")
    assert {profile["name"] for profile in json.loads(out)["profiles"]} >= {"android-4gb", "iphone-12"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum", "quickstart"], "did you mean 'run'?"),
        (["run"], "required: NAME|PATH"),
        (["run", "quickstart", "--jsn"], "--jsn"),
        (["run", "quickstart", "--json", "--quiet"], "not allowed with"),
        (["run", "quikstart"], 'did you mean "quickstart"?'),
        (["plan", "nowhere/x.yaml"], "nowhere/x.yaml: no such recipe file"),
        (["inspect", "nowhere"], "nowhere: no such artifact folder"),
        (["verify", "tests"], "not an Edgewright artifact"),
        (["profiles", "show", "iphone-21"], "iphone-12"),
        (["publish", "--repo", "a/b"], "required: ARTIFACT"),
        (["publish", "nowhere"], "no repository is named; give --repo OWNER/NAME"),
        (["publish", "nowhere", "--repo", "a/b"], "nowhere: no such artifact folder"),
        (["publish", "nowhere", "--recipe", "quickstart"], "quickstart has no section `publish`"),
        (["pull", "a/b", "--out", "x"], "required: --profile"),
        (["pull", "a", "--profile", "iphone-12", "--out", "x"], "REPO: must be owner/name"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(edgewright, arguments, message):
    code, out, err = edgewright(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err


def test_no_command_shows_the_help(edgewright):
    assert edgewright() == edgewright("--help")
    assert edgewright("--version")[1].startswith("edgewright 0.")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MissingTool("onnxruntime is not installed"), 3, "error: onnxruntime is not installed"),
        (GateFailed("1.0 is more than 0.5"), 1, "error: 1.0 is more than 0.5"),
        (KeyboardInterrupt(), 130, "interrupted; no half-written package is left, and the next run goes on from here"),
    ],
)
def test_exit_codes(edgewright, monkeypatch, error, code, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(api, "run", fail)
    assert edgewright("run", "quickstart") == (code, "", line + "\n")


def test_a_defect_is_told_from_bad_input_and_keeps_its_traceback(edgewright, monkeypatch):
    monkeypatch.setattr(api, "run", lambda *_, **__: 1 / 0)
    code, _, err = edgewright("run", "quickstart")
    assert code == 70
    assert "Traceback" in err and "this is a defect of Edgewright" in err


def test_an_error_is_one_json_object_too(edgewright):
    code, out, err = edgewright("run", "quikstart", "--json")
    assert code == json.loads(out)["error"]["exit_code"] == 2
    assert json.loads(out)["error"]["message"] in err


def test_json_is_exactly_the_report(edgewright, ran):
    report = ran()
    code, out, err = edgewright("run", "quickstart", "--json")
    assert (code, err) == (0, "")
    assert Report.model_validate_json(out) == report


def test_quiet_is_the_verdict_line_alone_when_all_is_well(edgewright, ran):
    ran()
    code, out, err = edgewright("run", "quickstart", "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("small: ✓ passed in ") and out.count("\n") == 1


def test_quiet_leaves_no_warning_out(edgewright, ran, monkeypatch):
    found = ran().model_copy(update={"warnings": ("something is left out",)})
    monkeypatch.setattr(api, "run", lambda *_, **__: found)
    assert edgewright("run", "quickstart", "--quiet")[1].splitlines()[1:] == [" warning: something is left out"]


def test_every_exit_code_is_in_the_help(edgewright):
    _, out, _ = edgewright("--help")
    listed = out[out.index("exit codes:") :]
    for code in ("0", "1", "2", "3", "70", "129, 130, 143"):
        assert f"\n  {code} " in listed
    assert "a defect of Edgewright" in listed
