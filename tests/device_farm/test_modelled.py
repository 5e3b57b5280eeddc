"""The memory verdict over a modelled figure: only its bad end counts."""

from __future__ import annotations

import pytest

from device_farm import MemoryBudget, Verdict, assess_modelled_memory

BUDGET = MemoryBudget("ios", 1_000, 900, None, 0, "a test", "policy")


@pytest.mark.parametrize(
    ("peak", "band", "verdict"),
    [
        (500, (400, 900), Verdict.FITS),
        (500, (400, 901), Verdict.TIGHT),
        (500, (400, 1_000), Verdict.TIGHT),
        (500, (400, 1_001), Verdict.NOT_ASSESSED),
        (1_001, (400, 1_200), Verdict.DOES_NOT_FIT),
    ],
)
def test_the_bad_end_of_the_band_decides(peak: int, band: tuple[int, int], verdict: Verdict) -> None:
    found = assess_modelled_memory(peak, band, BUDGET)
    assert (found.verdict, found.figure, found.limit, found.obtained) == (verdict, peak, 1_000, "modelled")
