"""Modelled speed: what has a figure, how wide its band is, and the words where there is none."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import resources

import pytest
import yaml

from artifacts.formats.work import StreamWork, TokenWork, Work
from device_farm import assess_latency, latency_rates, list_profiles, load_profile, modelled, predict, predict_network
from device_farm.calibration.language import geometries
from device_farm.chips import find_chip
from device_farm.latency_model import NETWORK_CLASSES, Geometry
from device_farm.latency_rates import GENIEX, POCKETPAL, Modelled
from device_farm.profile import AndroidProfile, IosProfile

PHI = geometries()["phi-4-mini"]
SMALL = geometries()["qwen2.5-1.5b"]
UNET = dict.fromkeys(NETWORK_CLASSES, 0.0) | {
    "conv": 3.055e9,
    "depthwise": 0.109e9,
    "read": 34.6e6,
    "written": 31.9e6,
    "moved": 6.9e6,
    "kernels": 104,
    "layers": 104,
}
TOKEN = TokenWork(
    weights={"4g128": 1.31e9}, head="8g32", head_weights=0.233e9, layers=28, width=43008, cached=14336, context=512
)


def phone(name: str = "android-8gb") -> AndroidProfile | IosProfile:
    """By default one of the Snapdragon 8 Gen 2."""
    return load_profile(name)


def figure(found: Modelled | str) -> Modelled:
    assert isinstance(found, Modelled), found
    return found


def test_the_context_costs_what_it_cost_on_the_galaxy_s25() -> None:
    short, long = (figure(predict(PHI, "Samsung Galaxy S25", context=n)["decode"]).value for n in (512, 4096))
    assert short == pytest.approx(22.3, rel=0.1) and long == pytest.approx(6.95, rel=0.1)


def test_a_window_caps_what_attention_costs() -> None:
    windowed = replace(PHI, full_layers=4, window_layers=28, window=512)
    whole, capped = (figure(predict(g, "Galaxy S25", context=4096)["decode"]).value for g in (PHI, windowed))
    assert capped > 1.8 * whole


def test_decoding_reads_the_head_and_a_prompt_does_not() -> None:
    wide = replace(PHI, vocab=2 * PHI.vocab)
    one, two = (predict(g, "Galaxy S25") for g in (PHI, wide))
    assert figure(two["decode"]).value < 0.9 * figure(one["decode"]).value
    assert figure(two["prefill"]).value == figure(one["prefill"]).value


def test_every_printed_band_is_narrower_than_half_and_holds_its_value() -> None:
    chips = yaml.safe_load((resources.files("device_farm") / "chips.yaml").read_text())["chips"]
    figures = 0
    for chip in chips:
        for geometry in geometries().values():
            for context in (64, 512, 4096):
                for found in predict(geometry, chip, context=context).values():
                    if isinstance(found, Modelled):
                        figures += 1
                        low, high = found.band[0] / found.value, found.band[1] / found.value
                        assert 0.5 - 1e-9 <= low < 1 < high <= 1.5 + 1e-9, (chip, found)
    assert figures > 1000


def test_a_phone_that_nobody_measured_has_the_widest_band() -> None:
    known, other = (figure(predict(SMALL, name)["decode"]) for name in ("samsung-s23", "Pixel 9"))
    assert known.band[1] / known.value < 1.35 and other.band[1] / other.value == pytest.approx(1.5)
    assert "other models left out" in known.basis and "other phones left out" in other.basis
    assert known.runtime == other.runtime == POCKETPAL


def test_a_long_context_elsewhere_is_said_to_be_unknown() -> None:
    found = predict(SMALL, "Pixel 9", context=4096)
    assert str(found["decode"]).startswith("too uncertain: decode at 4,096 tokens")
    assert "measured on Snapdragon 8 Elite alone" in str(found["decode"])
    assert "beyond 4,096 tokens were not measured" in str(predict(PHI, "Galaxy S25", context=8192)["decode"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Snapdragon 680", "no latency data: nothing was published of phones whose cores lack dotprod"),
        ("Redmi Note 12", "no latency data: nothing was published of phones whose cores lack dotprod"),
        ("Apple A14", "no latency data: nothing was published of iPhones before the A15"),
        ("Kirin 9000", "no latency data: 'Kirin 9000' is no chip whose cores and clocks are known"),
    ],
)
def test_phones_without_data_get_words_and_never_a_number(name: str, words: str) -> None:
    assert all(str(found).startswith(words) for found in predict(SMALL, name).values())
    assert str(predict_network(UNET, name)).startswith(words)


def test_iphones_from_the_a15_decode_with_mlx_by_their_bandwidth() -> None:
    newest, oldest = (figure(predict(SMALL, name)["decode"]) for name in ("iPhone 17 Pro", "Apple A15"))
    assert newest.runtime == "MLX on the GPU" and 1.5 < newest.value / oldest.value < 76.8 / 34.1
    assert str(predict(SMALL, "Apple A15")["prefill"]).startswith("no latency data")
    assert "MLX with 4 bits alone was measured, not q8_0" in str(predict(SMALL, "Apple A15", kernel="q8_0")["decode"])


def test_a_runtime_or_a_kernel_that_nobody_measured_is_named() -> None:
    with pytest.raises(ValueError, match="runtime must be one of"):
        predict(SMALL, "Galaxy S25", runtime="tflite")
    assert "kernel iq4_xs was not measured; iq1_s" in str(predict(SMALL, "Galaxy S23", kernel="iq4_xs")["decode"])
    assert figure(predict(SMALL, "Galaxy S25", runtime=POCKETPAL)["decode"]).runtime == POCKETPAL


def test_without_i8mm_a_prompt_takes_twice_as_long_by_the_same_clock() -> None:
    found = predict(SMALL, "Snapdragon 695", context=64)
    assert "no phone without i8mm was measured" in figure(found["prefill"]).basis
    assert figure(found["decode"]).band[0] / figure(found["decode"]).value == pytest.approx(0.5)


def test_the_chip_of_every_shipped_profile_is_known() -> None:
    for name in list_profiles():
        assert find_chip(load_profile(name).soc.value) is not None, name


def test_the_chips_of_profiles_with_modelled_speed_name_where_their_clocks_are_from() -> None:
    document = yaml.safe_load((resources.files("device_farm") / "chips.yaml").read_text())
    assert {chip["source"] for chip in document["chips"].values() if "source" in chip} <= document["sources"].keys()
    for name in list_profiles():
        chip = find_chip(load_profile(name).soc.value)
        if not chip.apple and chip.dotprod:
            assert "source" in document["chips"][chip.name], name


@pytest.mark.parametrize(
    ("words", "chip"),
    [
        ("samsung-s23", "Snapdragon 8 Gen 2"),
        ("MediaTek MT6899", "Dimensity 8400"),
        ("Snapdragon® 8 Elite Gen 5 (SM8850)", "Snapdragon 8 Elite Gen 5"),
        ("Snapdragon 8+ Gen 1", "Snapdragon 8+ Gen 1"),
        ("iPhone 15 Pro class", "Apple A17 Pro"),
        ("Apple A18 Pro", "Apple A18"),
        ("pixel_9", "Tensor G4"),
        ("Helio G8", None),
    ],
)
def test_a_chip_is_found_by_the_longest_name_in_its_words(words: str, chip: str | None) -> None:
    found = find_chip(words)
    assert (found.name if found else None) == chip


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios that were never measured, of every kind and of two targets."""
    kinds = {"decode": (0.2, [1.0, 1.21]), "prefill": (0.3, [0.5, 0.5])}
    of: dict[str, dict[str, object]] = {}
    for kind, (carried, ends) in kinds.items():
        measured = {"beside": "llama.cpp Q4_0", "carried": carried, "by": {"4g128": ends}}
        of[kind] = {"onnx": measured, "tvm": measured}
    monkeypatch.setattr(latency_rates, "_ratios", lambda: of)


@pytest.mark.parametrize(("target", "runtime"), [("onnx", "ONNX Runtime on the CPU"), ("tvm", "TVM on the CPU")])
def test_packages_are_carried_over_by_the_measured_ratio_and_a_wider_band(
    ratios: None, target: str, runtime: str
) -> None:
    found = modelled(Work(token=TOKEN), target, phone())
    geometry = Geometry(28, 12, 2, 128, 1536, 8960, 151936)
    own, theirs = figure(found["decode"]), figure(predict(geometry, "Snapdragon 8 Gen 2")["decode"])
    assert own.value == pytest.approx(1.1 * theirs.value, rel=0.05)
    wider = math.hypot(math.log(theirs.band[1] / theirs.value), math.log(1.21) / 2 + 0.2)
    assert math.log(own.band[1] / own.value) == pytest.approx(wider, rel=0.05)
    assert own.runtime == runtime and "times 1.1 as measured side by side on x86-64" in own.basis


@pytest.mark.parametrize("target", ["onnx", "tvm"])
def test_the_first_token_follows_from_the_ratio_of_prompts(ratios: None, target: str) -> None:
    found = modelled(Work(token=TOKEN), target, phone())
    geometry = Geometry(28, 12, 2, 128, 1536, 8960, 151936)
    own, theirs = figure(found["time_to_first_token"]), figure(predict(geometry, "Snapdragon 8 Gen 2")["prefill"])
    assert own.unit == "s" and own.at == "a prompt of 512 tokens"
    assert (own.band[0] * own.band[1]) ** 0.5 == pytest.approx(2 * 512 / theirs.value, rel=0.05)
    assert 0.5 <= own.band[0] / own.value < 1 < own.band[1] / own.value <= 1.5
    images = modelled(Work(token=TOKEN, images=True), target, phone())
    assert "the encoder of images has no model" in str(images["time_to_first_token"])


@pytest.mark.parametrize(
    ("weights", "target", "words"),
    [
        ("4g128", "coreml", "decode of coreml was not measured beside llama.cpp's"),
        ("8g32", "onnx", "weights of 8 bits, group 32, were not measured"),
        ("4g16", "tvm", "weights of 4 bits, group 16, were not measured"),
    ],
)
def test_what_was_not_measured_side_by_side_is_said(ratios: None, weights: str, target: str, words: str) -> None:
    token = TOKEN.model_copy(update={"weights": {weights: 1.31e9}})
    assert words in str(modelled(Work(token=token), target, phone())["decode"])


def test_the_shipped_ratios_name_what_was_measured_and_how_far_it_may_be_off() -> None:
    shipped = yaml.safe_load((resources.files("device_farm") / "ratios.yaml").read_text())
    assert shipped["decode"].keys() >= {"onnx"}
    for kind in ("decode", "prefill"):
        for target, of in shipped[kind].items():
            assert of["beside"] == "llama.cpp Q4_0" and of["carried"] >= 0.2, (kind, target)
            assert all(0 < low <= high for low, high in of["by"].values())


def test_a_profile_without_dotprod_has_no_figure() -> None:
    found = modelled(Work(token=TOKEN), "onnx", phone("android-4gb"))
    assert {str(text)[:15] for text in found.values()} == {"no latency data"}


def test_a_network_is_within_a_factor_of_two_and_slower_on_slower_phones() -> None:
    calibrated, class_8 = (figure(predict_network(UNET, name)) for name in ("Snapdragon 7 Gen 4", "Snapdragon 8 Gen 2"))
    assert calibrated.band[1] / calibrated.value < 1.6 and class_8.band[1] / class_8.value == pytest.approx(2)
    assert class_8.value < calibrated.value
    assert figure(predict_network(UNET, "Snapdragon 695")).value > 1.5 * calibrated.value
    assert figure(predict_network(UNET, "Galaxy S24")).band[1] < 0.15


def test_an_avatar_hears_and_draws_its_first_frame_and_looks_ahead_apart() -> None:
    stream = StreamWork(window={**UNET, "conv": 0.9e9}, frame=UNET, frames=5, lookahead_ms=280)
    found = modelled(Work(stream=stream), "onnx", phone())
    first, each = figure(found["first_frame"]), figure(found["frame_time"])
    assert "280 ms of look-ahead apart" in first.at and first.value > each.value
    assert str(modelled(Work(stream=stream), "coreml", phone())["frame_time"]).endswith("in coreml")


@pytest.mark.parametrize(
    ("limit", "direction", "verdict"),
    [
        (7.0, "at least", "passed"),
        (9.0, "at least", "tight"),
        (11.0, "at least", "tight"),
        (13.0, "at least", "failed"),
        (13.0, "at most", "passed"),
        (9.0, "at most", "tight"),
        (7.0, "at most", "failed"),
    ],
)
def test_a_modelled_figure_passes_only_if_the_bad_end_of_its_band_does(
    limit: float, direction: str, verdict: str
) -> None:
    found = Modelled(10.0, (8.0, 12.0), "tok/s", "512 tokens", GENIEX, "calibrated")
    check = assess_latency("p", "decode", "decode", limit, direction, "tok/s", found)  # type: ignore[arg-type]
    assert (check.verdict, check.obtained, check.band) == (verdict, "modelled", (8.0, 12.0))


def test_a_figure_without_a_limit_is_reported_and_a_limit_without_a_figure_is_not_assessed() -> None:
    found = Modelled(10.0, (8.0, 12.0), "tok/s", "512 tokens", GENIEX, "calibrated")
    assert assess_latency("p", "decode", "decode", None, "at least", "tok/s", found).verdict is None
    check = assess_latency("p", "decode", "decode", 12.0, "at least", "tok/s", "no latency data: none")
    assert (check.verdict, check.value, check.reason) == ("not assessed", None, "No latency data: none.")
