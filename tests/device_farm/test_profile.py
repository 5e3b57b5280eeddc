"""Profiles: the shipped ones say where every number is from, and a wrong one says where it is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_farm import AndroidProfile, IosProfile, ProfileError, list_profiles, load_profile
from device_farm.limiter import LimiterLimits
from device_farm.profile_file import parse_profile

SHIPPED = Path(__file__).parents[2] / "device_farm" / "profiles"
ANDROID = (SHIPPED / "android-4gb.yaml").read_text()
IPHONE = (SHIPPED / "iphone-12.yaml").read_text()


def figures(data: Any) -> list[dict[str, Any]]:
    if isinstance(data, dict):
        return [data] if "confidence" in data else [found for value in data.values() for found in figures(value)]
    return [found for value in data for found in figures(value)] if isinstance(data, list | tuple) else []


def bare_numbers(data: Any) -> list[Any]:
    if isinstance(data, dict):
        return [] if "confidence" in data else [found for value in data.values() for found in bare_numbers(value)]
    if isinstance(data, list | tuple):
        return [found for value in data for found in bare_numbers(value)]
    return [data] if isinstance(data, int | float) else []


@pytest.mark.parametrize("name", list_profiles())
def test_every_number_of_a_shipped_profile_has_a_source(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    data = profile.model_dump()
    assert len(figures(data)) > 8
    assert bare_numbers(data) == []


def test_the_shipped_profiles_are_these() -> None:
    iphones = [f"iphone-{name}" for name in ("11", "12", "13-pro", "15-pro", "se-2", "xr")]
    androids = [f"android-{size}gb" for size in (12, 2, 3, 4)] + ["android-4gb-helio-g85", "android-6gb"]
    androids += ["android-6gb-4-gen-2", "android-8gb", "android-8gb-778g", "pixel-9", "poco-x7"]
    assert list_profiles() == sorted([*androids, *iphones])
    assert {type(load_profile(name)) for name in androids} == {AndroidProfile}
    assert {type(load_profile(name)) for name in iphones} == {IosProfile}


def test_the_chips_that_people_ask_about_have_a_phone() -> None:
    chips = {phone.soc.value for name in list_profiles() if (phone := load_profile(name)).soc}
    named = {f"Snapdragon {name}" for name in ("680", "695", "4 Gen 2", "778G", "8 Gen 2", "8 Elite")} | {"Helio G85"}
    assert named <= chips
    assert {f"Apple A{number}" for number in (12, 13, 14, 15, "17 Pro")} <= chips
    assert {load_profile(name).ram_bytes.value >> 30 for name in list_profiles()} == {2, 3, 4, 6, 8, 12}


def test_androids_budget_is_a_policy_and_a_recipe_can_only_ask_for_less() -> None:
    profile = load_profile("android-4gb")
    budget = profile.budget()
    assert (budget.rule, budget.confidence, budget.thrashing_limit_percent) == ("android", "policy", 100.0)
    assert (budget.limit_bytes, budget.comfortable_bytes) == (1_500_000_000, 1_200_000_000)
    assert profile.budget(9_000_000_000) == budget
    wish = profile.budget(1_000_000_000)
    assert (wish.limit_bytes, wish.comfortable_bytes) == (1_000_000_000, 1_000_000_000)
    with pytest.raises(ProfileError, match="on iOS only"):
        profile.budget(increased=True)


def test_a_phone_with_less_memory_is_held_to_the_rules_of_low_ram_phones() -> None:
    """AOSP's lmkd has other settings where the maker says low_ram: they come together."""
    small, large = load_profile("android-3gb"), load_profile("android-4gb")
    assert isinstance(small, AndroidProfile) and isinstance(large, AndroidProfile)

    def lmkd(profile: AndroidProfile) -> tuple[bool, float, float, int]:
        of = profile.memory
        return (
            of.low_ram.value,
            of.thrashing_limit_percent.value,
            of.thrashing_decay_percent.value,
            of.psi_partial_stall_ms.value,
        )

    assert (lmkd(small), lmkd(large)) == ((True, 30, 50, 200), (False, 100, 10, 70))
    budget = small.budget()
    assert (budget.rule, budget.confidence, budget.thrashing_limit_percent) == ("android", "policy", 30.0)
    assert (budget.limit_bytes, budget.comfortable_bytes) == (900_000_000, 702_000_000)
    assert budget.limit_bytes < 0.45 * small.ram_bytes.value


def test_ios_budgets_are_per_version_and_never_made_up() -> None:
    profile = load_profile("iphone-12")
    budget = profile.budget()
    assert (budget.rule, budget.limit_bytes, budget.confidence) == ("ios", 2_348_000_000, "weak")
    assert "iPhone 13" in budget.source
    assert 2_000_000_000 < budget.comfortable_bytes < 2_040_000_000
    with pytest.raises(ProfileError, match="no figure is known for increased-memory-limit"):
        profile.budget(increased=True)
    with pytest.raises(ProfileError, match=r"no memory limit is known for iOS 13\.7"):
        profile.budget(os_version="13.7")


def test_the_newest_limit_that_is_not_newer_counts() -> None:
    newer = IPHONE.replace(
        "  single_mapping_bytes:",
        """    - since: "26.4"
      footprint_bytes: {value: 1_000_000_000, source: made up for a test, date: 2026-11, confidence: weak}
      increased_footprint_bytes: {value: 1_500_000_000, source: made up for a test, date: 2026-11, confidence: weak}
  single_mapping_bytes:""",
    )
    profile = parse_profile(newer.encode(), "mine.yaml")
    assert profile.budget(os_version="26.3").limit_bytes == 2_348_000_000
    assert profile.budget(os_version="26.10").limit_bytes == 1_000_000_000
    assert profile.budget(os_version="26.4", increased=True).limit_bytes == 1_500_000_000


def test_a_profile_of_ones_own_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(ANDROID.replace("name: android-4gb", "name: mine"))
    assert load_profile(path).name == load_profile(str(path)).name == "mine"
    with pytest.raises(ProfileError, match=r"gone\.yaml: cannot be read: No such file.*as a phone profile"):
        load_profile(tmp_path / "gone.yaml")


def test_a_profile_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for path, what in [
        (tmp_path / "pipe.yaml", "it is a pipe"),
        (Path("/dev/zero"), "it is a device"),
        (tmp_path, "it is a folder"),
        (tmp_path / "loop.yaml", "Too many levels"),
        (tmp_path / "a\0.yaml", "null"),
        (tmp_path / ("x" * 300 + ".yaml"), "too long"),
    ]:
        with pytest.raises(ProfileError, match=rf"cannot be read: .*{what}.*phone profile"):
            load_profile(path)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(
        ProfileError, match=r"no profile 'iphone12' \(did you mean 'iphone-12'\?\); known: android-12gb"
    ):
        load_profile("iphone12")


def line_of(text: str, word: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if word in line)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  budget_bytes:", "  budgetbytes:", r"key 'memory\.budgetbytes': unknown \(did you mean 'budget_bytes'\?\)"),
        ("soc:", "socs:", r"key 'socs': unknown \(did you mean 'soc'\?\); valid here: name, title"),
        (
            "    value: 20\n",
            "    valeu: 20\n",
            r"key 'memory\.swap_free_low_percent\.valeu': unknown \(did you mean 'value'",
        ),
        (
            "    value: 20\n",
            "    value: -20\n",
            r"key 'memory\.swap_free_low_percent\.value': input should be greater than 0",
        ),
        (
            "    value: 20\n",
            "    value: .inf\n",
            r"key 'memory\.swap_free_low_percent\.value': input should be a finite",
        ),
        ("    value: false\n", "    value: 'no'\n", r"key 'memory\.low_ram\.value': input should be a valid boolean"),
        ("    value: 8\n", "    value: true\n", r"key 'cpu\.cores\.value': input should be a valid integer"),
        ("    value: []\n", "    value: [sve3]\n", r"key 'cpu\.isa\.value\.0': input should be 'dotprod' or 'i8mm'"),
        (
            "platform: android",
            "platform: andriod",
            r"key 'platform': must be one of android, ios \(did you mean 'android'",
        ),
        ("platform: android", "platform: [android]", r"key 'platform': must be one of android, ios"),
        ("ram_bytes:", "title: again\nram_bytes:", r"key 'title': given twice"),
        ("ram_bytes:", "2026-11-01: x\nram_bytes:", r"key '2026-11-01': given twice, or not a word"),
        ("  value: Snapdragon 680", "  value: *other", r"aliases and deep nesting are not allowed"),
        ("soc:", "soc: [", r"line \d+: not valid YAML"),
    ],
)
def test_errors_name_file_line_key_and_the_nearest_valid_key(old: str, new: str, message: str) -> None:
    assert old in ANDROID
    text = ANDROID.replace(old, new, 1)
    with pytest.raises(ProfileError, match=r"^mine\.yaml, line \d+") as raised:
        parse_profile(text.encode(), "mine.yaml")
    assert raised.value.exit_code == 2
    assert raised.match(message)
    if "unknown" in message:
        assert f"line {line_of(text, new.strip())}, " in str(raised.value)


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (
            ANDROID,
            "value: Snapdragon 680",
            "value: Snapdragon 690",
            r"key 'soc\.value': unknown chip 'Snapdragon 690' \(",
        ),
        (
            ANDROID,
            "[4x Cortex-A73, 4x",
            "[6x Cortex-A73, 2x",
            r"key 'cpu\.clusters\.value': Snapdragon 680 has 4x Cort",
        ),
        (
            ANDROID,
            "[4x Cortex-A73,",
            "[4x Cortex-A37,",
            r"key 'cpu\.clusters\.value\.0': unknown core 'Cortex-A37' \(did",
        ),
        (ANDROID, "[4x Cortex-A73,", "[Cortex-A73,", r"'cpu\.clusters\.value\.0': 'Cortex-A73' is not a number of cor"),
        (ANDROID, "    value: 8\n", "    value: 6\n", r"key 'cpu\.cores\.value': 6, and the clusters have 8"),
        (
            ANDROID,
            "    value: []\n",
            "    value: [dotprod]\n",
            r"key 'cpu\.isa\.value': \[dotprod\], and what every core",
        ),
        (
            ANDROID,
            "1_500_000_000",
            "5_500_000_000",
            r"key 'memory\.budget_bytes\.value': 5,500,000,000 bytes, more than",
        ),
        (
            ANDROID,
            "1_073_741_824",
            "3_073_741_824",
            r"key 'memory\.limiter\.not_visible_bytes\.value': 3,073,741,824 b",
        ),
        (
            ANDROID,
            "2_147_483_648",
            "5_147_483_648",
            r"key 'memory\.limiter\.visible_bytes\.value': 5,147,483,648 bytes",
        ),
        (
            IPHONE,
            "2_348_000_000",
            "4_348_000_000",
            r"key 'memory\.limits\.0\.footprint_bytes\.value': 4,348,000,000 bytes",
        ),
        (
            IPHONE,
            "increased_footprint_bytes: null",
            "increased_footprint_bytes: {value: 5, source: a source that is wrong, date: 2026-11, confidence: weak}",
            r"key 'memory\.limits\.0\.increased_footprint_bytes\.value': 5 bytes, less than the 2,348,000,000",
        ),
    ],
)
def test_what_cannot_be_true_together_is_an_error(text: str, old: str, new: str, message: str) -> None:
    assert old in text
    with pytest.raises(
        ProfileError, match=rf"(?m)^mine\.yaml, line \d+, {'' if message[0] == 'k' else 'key '}{message}"
    ):
        parse_profile(text.replace(old, new, 1).encode(), "mine.yaml")


def test_a_chip_that_nobody_knows_is_left_out() -> None:
    before, _, after = ANDROID.partition("soc:\n")
    text = f"{before}soc: null\n{after[after.index('ram_bytes:') :]}"
    assert parse_profile(text.encode(), "mine.yaml").soc is None


def test_a_bare_number_is_asked_for_its_source() -> None:
    text = ANDROID.partition("bandwidth_bytes_per_s:")[0] + "bandwidth_bytes_per_s: 17.1e+9\n"
    with pytest.raises(
        ProfileError, match=r"'bandwidth_bytes_per_s': 17100000000.0 needs its source: \{value: …, sour"
    ):
        parse_profile(text.encode(), "x.yaml")


def test_the_memory_limiter_counts_from_its_version_on_and_by_what_the_app_is_doing() -> None:
    older, pixel = load_profile("android-8gb"), load_profile("pixel-9")
    assert older.budget().limiter is None, "Android 16"
    assert older.budget(os_version="17").limiter == LimiterLimits("visible", 5120 << 20, 0)
    assert older.budget(os_version="17.1", app_state="not visible").limiter == LimiterLimits(
        "not visible", 3072 << 20, 0
    )
    assert pixel.budget().limiter == LimiterLimits("visible", 8192 << 20, 0)
    assert load_profile("android-3gb").budget(os_version="17").limiter is None, "none below 3,200 MiB"
    with pytest.raises(ProfileError, match="belongs to Android's Memory Limiter"):
        load_profile("iphone-12").budget(app_state="not visible")


def test_an_iphone_with_the_entitlement_may_hold_more() -> None:
    phone = load_profile("iphone-13-pro")
    assert phone.budget().limit_bytes == 3072 << 20
    assert phone.budget(increased=True).limit_bytes == 4096 << 20
    assert phone.budget().single_mapping_bytes == 2_000_000_000


def test_a_missing_source_is_an_error() -> None:
    with pytest.raises(ProfileError, match=r"line \d+, key 'bandwidth_bytes_per_s\.source': missing; add it"):
        text = ANDROID.partition("bandwidth_bytes_per_s:")[0]
        parse_profile(
            f"{text}bandwidth_bytes_per_s: {{value: 1.0, date: 2026-11, confidence: weak}}".encode(), "x.yaml"
        )


@pytest.mark.parametrize(
    "content", [b"", b"- a list", b"\xff\xfe\x00", b"[" * 5000, b"a: !!python/name:os.system", b"x" * 2_000_000]
)
def test_what_is_no_profile_is_refused(content: bytes) -> None:
    with pytest.raises(ProfileError, match=r"^x\.yaml"):
        parse_profile(content, "x.yaml")


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_profile_error(content: bytes) -> None:
    with pytest.raises(ProfileError):
        parse_profile(content, "x.yaml")


@given(st.data())
def test_any_damage_ends_in_a_profile_or_a_profile_error(data: st.DataObject) -> None:
    lines = IPHONE.splitlines()
    index = data.draw(st.integers(0, len(lines) - 1))
    lines[index] = data.draw(st.text(max_size=30))
    try:
        parse_profile("\n".join(lines).encode(errors="replace"), "x.yaml")
    except ProfileError as error:
        assert str(error).startswith("x.yaml")
