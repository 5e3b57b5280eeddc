"""A plan says whether it fits the recipe's phones, before anything is built, and refuses what a run refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifacts import EdgewrightError
from edgewright import api, cli
from recipes.errors import RecipeError

LARGE = "ministral-3-3b-int4"


def test_weights_that_a_runtime_copies_do_not_fit_a_phone_that_is_smaller() -> None:
    """1.93 GB of weights against a limit of 1.9 GB: onnxruntime packs them into anonymous memory."""
    found = {f.target: f for f in api.plan_fits(LARGE, targets=["onnx", "mlx", "coreml", "tvm"])}
    assert {name: f.verdict for name, f in found.items()} == {
        "onnx": "does not fit",
        "mlx": "does not fit",
        "coreml": "fits by estimate",
        "tvm": "fits by estimate",
    }
    assert found["onnx"].longest_context == 0 and found["onnx"].needed_bytes > 2.6e9


def test_the_shipped_recipes_name_phones_that_they_can_meet() -> None:
    from recipes.load import shipped

    for name in shipped():
        assert all(f.verdict in ("fits by estimate", "not for this platform") for f in api.plan_fits(name)), name


def test_the_longest_context_is_the_longest() -> None:
    (fit,) = [f for f in api.plan_fits(LARGE, targets=["tvm"]) if f.profile == "iphone-12"]
    assert fit.longest_context is not None

    def needed(tokens: int) -> int:
        recipe = api.load_recipe(LARGE)
        recipe = recipe.model_copy(update={"context": recipe.context.model_copy(update={"max_tokens": tokens})})
        return api.plan_fits(recipe, targets=["tvm"])[0].needed_bytes

    assert needed(fit.longest_context) <= fit.limit_bytes < needed(fit.longest_context + 1)


def test_mapped_weights_beyond_an_android_budget_are_for_a_run_to_judge() -> None:
    fits = api.plan_fits(LARGE, targets=["tvm", "coreml"], profiles=["android-4gb"])
    assert [f.verdict for f in fits] == ["not assessed", "not for this platform"]


def test_plan_shows_it_and_exits_as_a_failed_gate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", LARGE, "--target", "onnx"])
    shown = capsys.readouterr().out
    assert ended.value.code == 1 and "does not fit" in shown and "iphone-12" in shown
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", LARGE, "--profile", "iphone-12", "--json"])
    assert ended.value.code == 0
    assert {f["profile"] for f in json.loads(capsys.readouterr().out)["fits"]} == {"iphone-12"}


def test_limits_of_speed_are_shown_and_said_to_be_not_assessed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-ministral3"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"name: mine\ncheckpoint: {{path: {checkpoint}}}\ncontext: {{max_tokens: 256}}\n"
        "targets: {onnx: {}, tvm: {}}\n"
        'quantize: {rules: [{match: "*", bits: 4}]}\n'
        "validate: {profiles: {iphone-12: {first_frame: 2s, frame_time: 40ms, decode: 12 tok/s}}}\n"
    )
    with pytest.raises(SystemExit):
        cli.main(["plan", str(recipe)])
    shown = " ".join(capsys.readouterr().out.split())
    for limit in ("first frame ≤ 2.0 s", "frame time ≤ 40 ms"):
        assert shown.count(f"not assessed: {limit}. No latency data: nothing of this model counts such a figure.") == 1
    old = "No latency data: nothing was published of iPhones before the A15."
    assert shown.count(f"not assessed: decode ≥ 12 tok/s. {old}") == 1
    with pytest.raises(SystemExit):
        cli.main(["plan", str(recipe), "--json"])
    found = json.loads(capsys.readouterr().out)["fits"][0]["latency"]
    assert [(check["name"], check["verdict"]) for check in found] == [
        ("decode", "not assessed"),
        ("first_frame", "not assessed"),
        ("frame_time", "not assessed"),
    ]


def test_a_budget_is_named_where_its_sizes_are_not_known(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-ministral3"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"name: mine\ncheckpoint: {{path: {checkpoint}}}\ncontext: {{max_tokens: 256}}\ntargets: {{onnx: {{}}}}\n"
        'quantize:\n  budget: {size: 4MB}\n  rules: [{match: "*", bits: 4}]\n'
    )
    with pytest.raises(SystemExit):
        cli.main(["plan", str(recipe)])
    assert "quantize.budget chooses bits and groups to a size of 4.00 MB" in " ".join(capsys.readouterr().out.split())


def test_mlx_affine_without_zero_points_is_refused_where_the_recipe_is_read(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\ncheckpoint: {path: x}\ncontext: {max_tokens: 256}\ntargets: {mlx: {}}\n"
        'quantize:\n  rules:\n    - {match: "*", bits: 4, method: mlx_affine}\n'
    )
    with pytest.raises(RecipeError, match=r"mine\.yaml:7.*symmetric: false"):
        api.load_recipe(recipe)


def test_a_plan_shows_modelled_speed_with_its_band_and_judges_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = Path(__file__).parents[2] / "recipes" / "mistral" / "ministral-3-3b.config.json"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"name: mine\ncheckpoint: {{path: gone, config: {config}}}\ncontext: {{max_tokens: 4096}}\n"
        'targets: {onnx: {}, tvm: {}}\nquantize: {rules: [{match: "*", bits: 4, group: 128}]}\n'
        f"validate: {{profiles: {{android-12gb: {{decode: 12 tok/s, time_to_first_token: 9s}}}}}}\n"
    )
    with pytest.raises(SystemExit):
        cli.main(["plan", str(recipe), "--json"])
    found, other = json.loads(capsys.readouterr().out)["fits"]
    checks = {check["name"]: check for check in found["latency"]}
    decode, first = checks["decode"], checks["time_to_first_token"]
    assert (decode["verdict"], decode["obtained"], decode["at"]) == ("failed", "modelled", "4,096 tokens")
    assert decode["band"][0] < decode["value"] < decode["band"][1] < 12
    assert checks["decode_short"]["verdict"] is None and checks["decode_short"]["value"] > 2 * decode["value"]
    assert first["verdict"] == "passed" and first["band"][0] < first["value"] < first["band"][1] < 9
    assert found["unknown"]["load_cold"].startswith("no latency data")
    checks = {check["name"]: check for check in other["latency"]}
    first = checks["time_to_first_token"]
    assert first["verdict"] == "passed" and first["band"][0] < first["value"] < first["band"][1] < 9
    slower = checks["decode"]
    assert slower["obtained"] == "modelled" and slower["value"] < decode["value"]
    with pytest.raises(SystemExit):
        cli.main(["plan", str(recipe)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "decode at 4,096 tokens" in shown and "≥ 12 tok/s ✗ failed" in shown
    assert "Modelled for ONNX Runtime on the CPU: llama.cpp in GenieX, calibrated on Snapdragon 8 Elite" in shown


def test_the_low_end_avatar_answers_in_300_ms_on_a_phone_of_the_8_gen_2_class() -> None:
    for name in ("feathertalk-int8", "feathertalk-mobileone-int8"):
        (fit,) = api.plan_fits(name, targets=["onnx"], profiles=["android-8gb"])
        first = next(check for check in fit.latency if check.name == "first_frame")
        assert first.band is not None and first.band[1] < 0.3
        assert first.at is not None and "280 ms of look-ahead apart" in first.at


GEOMETRY = "--layers 16 --heads 32 --kv-heads 8 --head-dim 64 --hidden 2048 --intermediate 8192 --vocab 128256"


def test_any_geometry_is_modelled_on_any_phone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["latency", "Galaxy S23", *GEOMETRY.split(), "--kernel", "q4_k_m", "--json"])
    found = json.loads(capsys.readouterr().out)["figures"]
    assert ended.value.code == 0 and found["decode"]["obtained"] == "modelled"
    assert found["decode"]["band"][0] < found["decode"]["value"] < found["decode"]["band"][1]
    with pytest.raises(SystemExit):
        cli.main(["latency", "Redmi Note 12", *GEOMETRY.split()])
    lines = capsys.readouterr().out.replace("\n  ", " ").splitlines()  # what goes on below is of the same line
    assert len(lines) == 4 and all("no latency data: nothing was published of phones" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--context 0", "--context: must be above 0"),
        ("--runtime tflite", "--runtime: runtime must be one of llama.cpp"),
    ],
)
def test_what_no_geometry_has_is_refused(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["latency", "Galaxy S23", *GEOMETRY.split(), *arguments.split()])
    assert ended.value.code == 2 and words in capsys.readouterr().err


TILES = """
name: tiles
checkpoint: {{path: {checkpoint}}}
quantize: {{rules: [{{match: "*", bits: 8, group: 32}}]}}
context: {{max_tokens: 32}}
vision: {{max_tiles: 5}}
targets: {{onnx: {{}}}}
validate: {{profiles: {{android-4gb: {{max_tiles: {tiles}}}, iphone-12: {{}}}}}}
"""


def test_a_phone_may_see_fewer_tiles(tmp_path: Path) -> None:
    def needed(tiles: int, checkpoint: str = "tiny-smolvlm2") -> dict[str, int]:
        path = tmp_path / "r.yaml"
        folder = Path(__file__).parents[2] / "recipes" / "checkpoints" / checkpoint
        path.write_text(TILES.format(tiles=tiles, checkpoint=folder))
        return {f.profile: f.needed_bytes for f in api.plan_fits(path)}

    few, most = needed(1), needed(5)
    assert few["android-4gb"] < most["android-4gb"] == most["iphone-12"] == few["iphone-12"]
    with pytest.raises(
        EdgewrightError, match=r"android-4gb.max_tiles is 6, and the model is compiled for 5 at the most"
    ):
        needed(6)


def test_tiles_of_a_model_that_sees_none(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    folder = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-ministral3"
    path.write_text(TILES.format(tiles=1, checkpoint=folder).replace("vision: {max_tiles: 5}\n", ""))
    with pytest.raises(EdgewrightError, match=r"max_tiles is 1, and the model sees no tiles"):
        api.plan(path)


@pytest.mark.parametrize("section", ["task: {file: gone.jsonl}", "quality: {text: gone.jsonl, max_mean_kl: 1.0}"])
def test_a_plan_names_a_file_that_is_missing(section: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    folder = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-smolvlm2"
    text = TILES.format(tiles=1, checkpoint=folder).replace("validate: {", f"validate: {{{section}, ")
    path.write_text(text)
    with pytest.raises(EdgewrightError, match=r"validate.(task.file|quality.text): .*gone.jsonl: no such file"):
        api.plan(path)
