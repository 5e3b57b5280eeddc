"""Figures in words."""

from __future__ import annotations

import pytest

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
    assert text.quantity(0.019, "fraction", change=True) == "+1.90 %"
    assert text.quantity(-0.019, "fraction", change=True) == "-1.90 %"


def test_rows_come_in_the_order_of_reading(finished):
    rows = text.rows(finished.report.targets[0])
    groups = list(dict.fromkeys(row.group for row in rows))
    assert groups == ["parity", "quality", "android-4gb", "iphone-12"]
    change = next(row for row in rows if row.name == "perplexity, change")
    assert (change.limit, change.verdict, change.obtained) == ("", "", "measured")  # no limit in this recipe


def test_markdown_tables_are_well_formed(finished):
    lines = markdown(finished.report).splitlines()
    for above, line, below in zip(lines, lines[1:], lines[2:], strict=False):
        if set(line) <= set("|- ") and line.startswith("|"):
            columns = line.count("|")
            assert above.replace("\\|", "").count("|") == columns == below.replace("\\|", "").count("|")
    assert "{" not in markdown(finished.report)
