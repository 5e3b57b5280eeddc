"""What a recipe says, and how its parts are found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import quantities
from recipes.errors import RecipeError
from recipes.load import find, load, shipped
from recipes.schema import Recipe

from .conftest import MINIMAL, LearnedOptions


def test_a_minimal_recipe_has_sensible_defaults(read):
    recipe = read(MINIMAL)
    rule = recipe.quantize.rules[0]
    assert (rule.bits, rule.group, rule.symmetric, rule.method) == (4, 32, True, "rtn")
    assert recipe.targets["phone"].kv_bits == 16
    assert recipe.validation.profiles == {}
    assert recipe.publish is None


def test_a_method_brings_its_own_options_to_the_rule(read):
    recipe = read(MINIMAL.replace("bits: 4", "bits: 4, method: learned, damping: 0.5"))
    rule = recipe.quantize.rules[0]
    assert isinstance(rule, LearnedOptions)
    assert rule.damping == 0.5


def test_targets_keep_the_order_of_the_recipe_and_may_be_bare(read):
    recipe = read(MINIMAL.replace("  phone: {}", "  watch:\n  phone: {kv_bits: 8}"))
    assert list(recipe.targets) == ["watch", "phone"]
    assert recipe.targets["phone"].kv_bits == 8


def test_quantities_are_read_with_their_units(read):
    recipe = read(
        MINIMAL + "validate:\n"
        "  quality: {max_perplexity_increase: 3%, min_top1_agreement: 0.95, max_mean_kl: 0.01}\n"
        "  profiles:\n"
        "    iphone-12: {peak_memory: 1.5GiB, time_to_first_token: 800ms, decode: 12 tok/s}\n"
        "    android-4gb:\n"
        "    ./my-phone.yaml: {peak_memory: 1400MB, first_frame: 0.5, frame_time: 40ms}\n"
    )
    quality, profiles = recipe.validation.quality, recipe.validation.profiles
    assert quality.max_perplexity_increase == pytest.approx(0.03)
    assert quality.min_top1_agreement == 0.95
    assert profiles["iphone-12"].peak_memory == 1.5 * 2**30
    assert profiles["iphone-12"].time_to_first_token == pytest.approx(0.8)
    assert profiles["iphone-12"].decode == 12
    assert profiles["android-4gb"].peak_memory is None
    mine = profiles["./my-phone.yaml"]
    assert (mine.peak_memory, mine.first_frame, mine.frame_time) == (1_400_000_000, 0.5, pytest.approx(0.04))


def test_the_digest_follows_the_meaning_not_the_layout(read):
    first = read(MINIMAL).digest
    assert read("# a comment\n" + MINIMAL.replace("bits: 4", "bits: 4, group: 32")).digest == first
    assert read(MINIMAL.replace("bits: 4", "bits: 8")).digest != first
    assert read(MINIMAL.replace("phone: {}", "phone: {kv_bits: 8}")).digest != first


def test_what_a_recipe_dumps_is_the_same_recipe(read, model):
    recipe = read(MINIMAL + "validate:\n  profiles: {iphone-12: {peak_memory: 300MB, decode: 12 tok/s}}\n")
    again = model.model_validate_json(recipe.model_dump_json(by_alias=True))
    assert again.digest == recipe.digest


def test_paths_are_relative_to_the_recipe(read, tmp_path):
    recipe = read(MINIMAL)
    assert recipe.resolve("weights") == tmp_path / "weights"
    assert recipe.resolve("/elsewhere") == Path("/elsewhere")


def test_the_json_schema_knows_every_method_and_target(model):
    schema = model.model_json_schema()
    text = json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert {"phone", "watch"} <= set(schema["$defs"]["Targets"]["properties"])
    assert '"damping"' in text and '"learned"' in text


def test_recipes_that_ship_are_found_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find("quickstart") == shipped()["quickstart"]
    ministral = {"ministral-3-3b-int4", "ministral-3-3b-int8", "ministral-3-3b-vision-int4"}
    smolvlm2 = {f"smolvlm2-{size}-int{bits}" for size in ("256m", "500m", "2.2b") for bits in (4, 8)}
    avatars = {f"{name}-int8" for name in ("feathertalk", "feathertalk-mobileone", "audio2expression", "gaussian")}
    assert {"quickstart", "quickstart-int8", *ministral, *smolvlm2, *avatars} <= set(shipped())


def test_a_path_is_never_taken_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"no such recipe file.*ships with the package"):
        find("quickstart.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        find(tmp_path)


@pytest.mark.parametrize("path", ["a\0b.yaml", "x" * 300 + ".yaml", "x/" * 5000, "\ud800.yaml"])
def test_a_path_that_no_file_can_have_is_no_recipe_file(path):
    with pytest.raises(RecipeError, match="no such recipe file"):
        find(path)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path / "loop.yaml", Path("/dev/zero")):
        with pytest.raises(RecipeError, match="is no file that can be read"):
            find(path)


def test_a_path_of_nobodys_home_is_taken_as_it_stands_when_a_recipe_is_made_in_python(model):
    recipe = model.model_validate(
        {
            "name": "small",
            "checkpoint": {"path": "weights"},
            "quantize": {"rules": [{"match": "*", "bits": 4}]},
            "context": {"max_tokens": 2},
            "targets": {"phone": {}},
        }
    )
    assert recipe.resolve("~nosuchuser/x") == Path("~nosuchuser/x")
    assert recipe.resolve("~/x") == Path.home() / "x"


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(RecipeError, match='did you mean "quickstart"'):
        find("quickstrat")


def test_an_unreadable_recipe_says_so(tmp_path, model, monkeypatch):
    def denied(self, mode):
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "secret.yaml").write_text(MINIMAL)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(RecipeError, match=r"secret\.yaml: cannot be read: Permission denied"):
        load(tmp_path / "secret.yaml", model)


def test_a_recipe_can_be_loaded_through_its_class(model, tmp_path):
    (tmp_path / "r.yaml").write_text(MINIMAL)
    recipe = model.load(tmp_path / "r.yaml")
    assert isinstance(recipe, Recipe)
    assert recipe.origin == (tmp_path / "r.yaml").resolve()


def test_the_config_of_ministral_3_3b_is_the_real_geometry(tmp_path):
    from transformers import AutoConfig

    shutil.copy(shipped()["ministral-3-3b-int4"].parent / "ministral-3-3b.config.json", tmp_path / "config.json")
    config = AutoConfig.from_pretrained(tmp_path)
    text = config.text_config
    assert (config.model_type, text.model_type) == ("mistral3", "ministral3")
    assert text.num_attention_heads * text.head_dim == 4096 != text.hidden_size
    assert text.rope_parameters["llama_4_scaling_beta"] == 0.1
    layer = text.hidden_size * (2 * 4096 + 2 * 1024 + 3 * text.intermediate_size + 2)
    parameters = text.vocab_size * text.hidden_size + text.num_hidden_layers * layer + text.hidden_size
    assert parameters == pytest.approx(3.429e9, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "parameters", "tokens", "cache"),
    [("256m", 256.5e6, 64, 23_040), ("500m", 507.5e6, 64, 40_960), ("2.2b", 2.247e9, 81, 196_608)],
)
def test_the_configs_of_smolvlm2_are_the_real_geometries(tmp_path, size, parameters, tokens, cache):
    """Parameters, tokens of a tile and bytes of cache for each token are those of the checkpoints on the Hub."""
    import torch
    from transformers import AutoConfig, SmolVLMForConditionalGeneration

    from compiler.models.base import read_model
    from recipes.schema import Vision

    path = shipped()[f"smolvlm2-{size}-int4"].parent / f"smolvlm2-{size}.config.json"
    shutil.copy(path, tmp_path / "config.json")
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=1e-3)
    ours = read_model(json.loads(path.read_text()), None, 1024, Vision(max_tiles=3))
    assert {slot.tensor: slot.shape for slot in ours.slots} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert ours.constants["tokens_per_tile"] == tokens
    assert ours.component("decoder").state_values * 2 == cache * 1024


@pytest.mark.parametrize(
    ("text", "size"),
    [("1400MB", 1_400_000_000), ("1.5 GiB", 1_610_612_736), ("64KiB", 65_536), ("12 kB", 12_000), (7, 7), ("9B", 9)],
)
def test_sizes(text, size):
    assert quantities.parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "1e9", "1,5GB", "300mb", "0MB", 0, -3, True, None, 1.5, "9" * 40, "nan"]
)
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="must be"):
        quantities.parse_bytes(text)


@pytest.mark.parametrize("value", [3, 1.01, -0.1, "3", "-3%", "3 percent", True, None, float("nan")])
def test_a_fraction_that_could_mean_two_things_is_refused(value):
    with pytest.raises(ValueError, match="must be a percentage"):
        quantities.parse_fraction(value)


@given(st.integers(1, 10**12), st.sampled_from(["B", "kB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_sizes_scale_with_their_unit(amount, unit):
    size = quantities._SIZES[unit] * amount
    if size < quantities._BYTES_LIMIT:
        assert quantities.parse_bytes(f"{amount}{unit}") == size
        assert quantities.parse_bytes(f" {amount} {unit} ") == size
    else:
        with pytest.raises(ValueError):
            quantities.parse_bytes(f"{amount}{unit}")


@given(
    st.sampled_from(
        [quantities.parse_bytes, quantities.parse_fraction, quantities.parse_seconds, quantities.parse_rate]
    ),
    st.text(max_size=40)
    | st.from_regex(r"[0-9.]{1,12} ?(MB|%|s|ms|tok/s|min)", fullmatch=True)
    | st.floats()
    | st.integers(),
)
def test_any_input_is_a_quantity_or_a_value_error(parse, value):
    try:
        number = parse(value)
    except ValueError:
        return
    assert 0 <= number < 2**50
