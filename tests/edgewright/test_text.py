"""Figures in words."""

from __future__ import annotations

import pytest

from artifacts import ran_here
from device_farm import not_for_platform
from edgewright import text
from edgewright.markdown import markdown


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.00 kB"), (13_906_352, "13.9 MB"), (1_930_000_000, "1.93 GB")],
)
def test_sizes_are_decimal_and_three_digits_long(count, words):
    assert text.size(count) == words


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (None, "logit", "none"),
        (8.1e-6, "logit", "8.1e-06"),
        (0.98143, "fraction", "98.14 %"),
        (1.0, "boolean", "yes"),
        (300e6, "bytes", "300 MB"),
        (0.107, "s", "107 ms"),
        (4.0, "s", "4.0 s"),
        (760.7, "tok/s", "761 tok/s"),
        (7.04, "tok/s", "7.0 tok/s"),
        (49.98282, "perplexity", "49.983"),
        (4096, "positions", "4,096 positions"),
    ],
)
def test_quantities_carry_their_unit(value, unit, words):
    assert text.quantity(value, unit) == words


def test_a_change_has_a_sign():
    assert text.quantity(0.019, "change") == "+1.90 %"
    assert text.quantity(-0.019, "change") == "-1.90 %"
    assert text.quantity(0.02, "fraction") == "2.00 %"


def test_a_sampled_figure_has_half_of_its_interval_beside_it():
    change = ran_here("perplexity_increase", 0.0162, "change", interval=(0.0067, 0.0256))
    assert text.figure(change) == "+1.62 ± 0.95 %"
    assert text.figure(ran_here("n", 0.5, "", interval=(0.25, 0.75))) == "0.5 ± 0.25"


def test_a_figure_comes_with_its_load_and_with_what_stood_in():
    first = ran_here("host_time_to_first_token", 0.107, "s", at="512 tokens")
    assert (text.figure(first), text.obtained(first)) == ("107 ms at 512 tokens", "measured")
    decode = ran_here("host_decode", 12.0, "tok/s", "an executor", at="after 512 tokens")
    assert (text.figure(decode), text.obtained(decode)) == ("12 tok/s after 512 tokens", "emulated: an executor")


@pytest.mark.parametrize(
    ("app", "folder", "words"),
    [
        ({"android": 5_400_000, "ios": 5_400_000}, 10_000_000, "5.40 MB in an app (android, ios)"),
        ({"ios": 4_450_000}, 10_000_000, "4.45 MB in an app (ios)"),
        ({"android": 5_850_000, "ios": 7_310_000}, 14_000_000, "android 5.85 MB, ios 7.31 MB in an app"),
        ({}, 14_000_000, "14.0 MB, for no phone"),
        ({}, None, "for no phone"),
        (None, 14_000_000, "14.0 MB in its folder"),
    ],
)
def test_sizes_are_those_of_an_app(app, folder, words):
    assert text.sizes(app, folder) == words


def test_rows_come_in_the_order_of_reading(finished):
    rows = text.rows(finished.report.targets[0])
    groups = list(dict.fromkeys(row.group for row in rows))
    assert groups == ["parity", "quality", "android-4gb", "iphone-12"]
    change = next(row for row in rows if row.name == "perplexity, change")
    assert (change.limit, change.verdict, change.obtained) == ("", "", "measured")  # no limit in this recipe
    assert " ± " in change.figure
    assert next(row.name for row in rows if row.group == "android-4gb") == "peak memory at 64 tokens"


def test_a_phone_of_another_platform_is_a_row_without_a_verdict(finished):
    target = finished.report.targets[0]
    phone = target.phones[0].model_copy(update={"checks": (not_for_platform("android-4gb", "android", ["ios"]),)})
    row = text.rows(target.model_copy(update={"phones": (phone,)}))[-1]
    assert (row.name, row.figure, row.limit, row.verdict) == ("peak memory: not for this platform", "", "", "")
    assert row.remarkable and "runs on ios alone" in row.reason


def test_what_stood_in_is_named_once_with_the_groups_that_it_serves(finished):
    rows = text.rows(finished.report.targets[0])
    assert text.stand_ins(rows) == ["emulated (android-4gb, iphone-12): this machine without a limit, memory by kind"]


def test_markdown_tables_are_well_formed(finished):
    lines = markdown(finished.report).splitlines()
    for above, line, below in zip(lines, lines[1:], lines[2:], strict=False):
        if set(line) <= set("|- ") and line.startswith("|"):
            columns = line.count("|")
            assert above.replace("\\|", "").count("|") == columns == below.replace("\\|", "").count("|")
    assert "{" not in markdown(finished.report)


def test_half_precision_is_named_where_it_is_more_than_norms(finished):
    target = finished.report.targets[0]
    (first, *_) = target.quantization
    whole = sum(group.parameters for group in target.quantization)
    for parameters, named in ((whole // 200, False), (whole, True)):
        half = first.model_copy(update={"bits": 16, "group": None, "method": "none", "parameters": parameters})
        others = tuple(group for group in target.quantization if group.bits < 16)
        found = text.scheme(target.model_copy(update={"quantization": (*others, half)}))
        assert ("half precision" in found) == named
