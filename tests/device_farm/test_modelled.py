"""The memory verdict over a modelled figure: only its bad end counts."""

from __future__ import annotations

import pytest

from artifacts import Figure
from device_farm import MemoryBudget, assess_modelled_memory

BUDGET = MemoryBudget("ios", 1_000, 900, None, 0, "a test", "policy")


@pytest.mark.parametrize(
    ("peak", "band", "verdict"),
    [
        (500, (400, 900), "fits"),
        (500, (400, 901), "tight"),
        (500, (400, 1_000), "tight"),
        (500, (400, 1_001), "not assessed"),
        (1_001, (400, 1_200), "does not fit"),
    ],
)
def test_the_bad_end_of_the_band_decides(peak: int, band: tuple[int, int], verdict: str) -> None:
    figure = Figure(name="footprint", value=peak, unit="bytes", obtained="modelled", band=band, at="2,048 tokens")
    found = assess_modelled_memory(figure, BUDGET, "a phone")
    assert (found.verdict, found.value, found.limit, found.obtained) == (verdict, peak, 1_000, "modelled")
    assert (found.band, found.label) == (band, "peak memory at 2,048 tokens")
