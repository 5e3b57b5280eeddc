"""`edgewright init`: recipes that fit phones, written from a config alone, and what is said where nothing fits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgewright import api
from recipes.load import shipped
from tests.edgewright.hub_server import HubServer

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
DECODER = {
    "model_type": "qwen3",
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
CONFIGS = {
    "qwen3": DECODER,
    "tiny-ministral3": RECIPES / "checkpoints/tiny-ministral3/config.json",
    "ministral-3-3b": RECIPES / "mistral/ministral-3-3b.config.json",
    "tiny-smolvlm2": RECIPES / "checkpoints/tiny-smolvlm2/config.json",
    "smolvlm2-256m": RECIPES / "smolvlm2/smolvlm2-256m.config.json",
    "smolvlm2-2.2b": RECIPES / "smolvlm2/smolvlm2-2.2b.config.json",
    **{
        name: RECIPES / f"avatar/{name}.config.json"
        for name in ("feathertalk", "feathertalk-mobileone", "audio2expression", "gaussian", "liveportrait")
    },
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_only(folder: Path, name: str) -> str:
    """A folder that holds nothing but a config.json."""
    config = CONFIGS[name]
    folder.mkdir()
    text = json.dumps(config) if isinstance(config, dict) else config.read_text()
    (folder / "config.json").write_text(text)
    return str(folder)


@pytest.mark.parametrize("phones", [["iphone-13-pro"], ["iphone-13-pro", "android-12gb"]])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_it_writes_for_any_family_loads_and_fits_by_plan(edgewright, here, name, phones):
    config_only(here / name, name)
    code, _, error = edgewright("init", name, *(f"--phone={phone}" for phone in phones), "--out", "mine.yaml")
    assert code == 0, error
    text = (here / "mine.yaml").read_text()
    recipe = api.load_recipe(here / "mine.yaml")
    assert list(recipe.validation.profiles) == phones
    code, out, _ = edgewright("plan", "mine.yaml", "--json")
    fits = json.loads(out)["fits"]
    assert code == 0 and {item["profile"] for item in fits if item["verdict"] == "fits by estimate"} == set(phones)
    assert {item["verdict"] for item in fits} <= {"fits by estimate", "not for this platform"}
    for line in text.splitlines():
        assert len(line) <= 80 or not line.lstrip().startswith("#"), line


def test_the_best_that_fits_is_chosen_and_the_next_better_does_not(edgewright, here):
    """Of the phone's budget a fifth is left free: what is chosen stays below that, and the step above goes beyond."""
    from device_farm import load_profile
    from edgewright.init_choice import MARGIN, Phone, Planner

    phone = Phone("android-3gb", load_profile("android-3gb"))
    planner = Planner("x", {"path": "weights"}, DECODER, ["tvm"])
    chosen = planner.first([phone], 4096)
    assert chosen is not None and chosen.scheme[0] == 4 and phone.room <= phone.budget.comfortable_bytes * (1 - MARGIN)
    assert all(phone.need(item) <= phone.room for item in chosen.plans)
    above = planner.schemes()[planner.schemes().index(chosen.scheme) - 1]
    assert all(phone.need(item) > phone.room for item in planner.at(above, chosen.shape).plans)


def test_a_shorter_context_is_taken_where_none_was_asked_for_and_advised_where_one_was(edgewright, here):
    folder = config_only(here / "small", "qwen3")
    code, out, _ = edgewright("init", folder, "--phone=android-3gb", "--target=onnx", "--context=4096")
    assert code == 1 and "a smaller context: --context" in out and not list(here.glob("*.yaml"))
    assert "onnx needs" in out and "another phone: android-" in out and "another checkpoint" in out
    assert max(map(len, out.splitlines())) <= 80
    code, _, _ = edgewright("init", folder, "--phone=android-3gb", "--target=onnx", "--out", "short.yaml")
    assert code == 0 and api.load_recipe(here / "short.yaml").context.max_tokens < 4096
    assert edgewright("plan", "short.yaml")[0] == 0


@pytest.mark.nightly
def test_what_is_written_runs_and_passes(edgewright, here):
    checkpoint = RECIPES / "checkpoints/tiny-ministral3"
    code, out, _ = edgewright("init", str(checkpoint), "--phone=android-4gb", "--phone=iphone-12", "--target=onnx")
    assert code == 0 and out.startswith("tiny-ministral3-int8.yaml: INT8 group 32, onnx\n")
    report = api.run(here / "tiny-ministral3-int8.yaml", out=here / "build")
    assert report.verdict == "passed"
    assert [phone.verdict for phone in report.targets[0].phones] == ["passed", "passed"]


def test_an_avatar_that_ships_runs_and_passes_too(edgewright, here):
    checkpoint = RECIPES / "checkpoints/tiny-avatar/audio2expression"
    assert edgewright("init", str(checkpoint), "--phone=android-4gb", "--out", "face.yaml")[0] == 0
    assert api.run(here / "face.yaml", out=here / "build").verdict == "passed"


def test_nothing_is_overwritten_without_being_told(edgewright, here):
    folder = config_only(here / "mine", "tiny-ministral3")
    assert edgewright("init", folder, "--phone=iphone-12")[0] == 0
    file = here / "mine-int8.yaml"
    file.write_text("precious")
    code, _, error = edgewright("init", folder, "--phone=iphone-12")
    assert code == 2 and "is there already; --force" in error and file.read_text() == "precious"
    assert edgewright("init", folder, "--phone=iphone-12", "--force")[0] == 0
    assert api.load_recipe(file).checkpoint.path == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine", "--phone=iphone-21"], "did you mean 'iphone-12'"),
        (["mime", "--phone=iphone-12"], "did you mean mine?"),
        (["./mistralai", "--phone=iphone-12"], "no such checkpoint folder"),
        (["mistral/Ministral-3-3B", "--phone=iphone-12"], "did you mean mistralai/Ministral-3-3B-Instruct-2512-BF16?"),
        (["mine", "--phone=iphone-12", "--target=onx"], 'did you mean "onnx"?'),
        (["mine", "--phone=iphone-12", "--context=9999999"], "must be from 2 to 4096"),
        (["face", "--phone=iphone-12", "--context=64"], "counts no tokens of a text"),
        (["mine", "--phone=iphone-12", "--out=recipe.txt"], "ends in .yaml"),
        (["mine", "--phone=iphone-12", "--out=none/a.yaml"], "no such folder"),
        (["mine"], "required: --phone"),
        (["odd", "--phone=iphone-12"], "model_type 'bert' is not supported"),
    ],
)
def test_bad_input_is_one_message(edgewright, here, arguments, words):
    config_only(here / "mine", "tiny-ministral3")
    config_only(here / "face", "gaussian")
    (here / "odd").mkdir()
    (here / "odd" / "config.json").write_text('{"model_type": "bert"}')
    code, out, error = edgewright("init", *arguments)
    assert (code, out) == (2, "") and words in error and error.startswith("error: ")
    assert not list(here.glob("*.yaml"))


def test_a_repository_of_a_recipe_that_ships_needs_no_network(edgewright, here):
    code, out, _ = edgewright("init", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "--phone=iphone-12", "--json")
    document = json.loads(out)["document"]
    assert code == 0 and document["checkpoint"]["hub"] == "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
    assert (here / document["checkpoint"]["config"]).read_bytes()
    assert edgewright("plan", f"{document['name']}.yaml")[0] == 0


def test_of_a_repository_the_config_alone_is_downloaded_and_its_commit_pinned(here):
    config = (RECIPES / "checkpoints/tiny-ministral3/config.json").read_bytes()
    with HubServer() as hub:
        commit = hub.commit({"config.json": config, "model.safetensors": b"weights", "README.md": b""})
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(here / "home"), "PYTHONPATH": str(ROOT)}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}

        def init(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "edgewright", "init", *arguments]
            return subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=120)

        done = init("acme/tiny", "--phone", "iphone-12")
        assert done.returncode == 0, done.stderr
        assert hub.fetched() == ["config.json"]
        recipe = api.load_recipe(here / "tiny-int8.yaml")
        assert (recipe.checkpoint.hub, recipe.checkpoint.revision) == ("acme/tiny", commit)
        assert [item.verdict for item in api.plan_fits(recipe)] == ["fits by estimate"]
        done = init("acme/gone", "--phone", "iphone-12")
        assert done.returncode == 2 and "check CHECKPOINT" in done.stderr and "Traceback" not in done.stderr


def test_a_phone_of_ones_own(edgewright, here):
    folder = config_only(here / "mine", "tiny-ministral3")
    shutil.copyfile(ROOT / "device_farm/profiles/android-4gb.yaml", here / "my-phone.yaml")
    assert edgewright("init", folder, "--phone=my-phone.yaml")[0] == 0
    assert edgewright("plan", "mine-int8.yaml")[0] == 0


def test_recipes_that_ship_could_be_begun_by_it(edgewright, here):
    """Those of four runtimes too: every checkpoint with a config fits some phone."""
    for path in shipped().values():
        checkpoint = api.load_recipe(path).checkpoint
        if checkpoint.hub:
            assert edgewright("init", checkpoint.hub, "--phone=iphone-15-pro", "--force")[0] == 0
