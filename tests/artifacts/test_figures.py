"""Figures and checks: how each was obtained is part of it, and a number without that cannot be made."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from artifacts import Check, Figure, checked, passes, ran_here


def figure(**changes: Any) -> Figure:
    return Figure(**{"name": "kl", "value": 0.1, "unit": "nat", "obtained": "measured", **changes})


def test_a_modelled_figure_never_appears_without_its_band() -> None:
    with pytest.raises(ValidationError, match="band"):
        figure(obtained="modelled")
    with pytest.raises(ValidationError, match="band"):
        figure(band=(0.0, 1.0))
    assert figure(obtained="modelled", band=(9.0, 15.0)).band == (9.0, 15.0)


def test_an_emulated_figure_never_appears_without_its_stand_in() -> None:
    with pytest.raises(ValidationError, match="stand-in"):
        figure(obtained="emulated")
    with pytest.raises(ValidationError, match="stand-in"):
        figure(stand_in="an executor")
    assert figure(obtained="emulated", stand_in="an executor").stand_in == "an executor"


def test_what_ran_here_is_measured_unless_something_stood_in() -> None:
    assert ran_here("kl", 0.1, "nat").obtained == "measured"
    stood_in = ran_here("kl", 0.1, "nat", "an executor")
    assert (stood_in.obtained, stood_in.stand_in) == ("emulated", "an executor")


def test_nothing_but_numbers_is_a_figure() -> None:
    with pytest.raises(ValidationError, match="finite"):
        figure(value=float("nan"))


@pytest.mark.parametrize(
    ("value", "direction", "verdict"),
    [
        (0.1, "at most", "passed"),
        (0.1001, "at most", "failed"),
        (0.1, "at least", "passed"),
        (0.09, "at least", "failed"),
    ],
)
def test_a_figure_meets_its_limit(value: float, direction: Any, verdict: str) -> None:
    found = checked(figure(value=value), "parity", "mean KL", 0.1, direction)
    assert (found.verdict, found.value, found.limit, found.direction) == (verdict, value, 0.1, direction)
    assert (found.name, found.unit, found.obtained, found.group, found.label) == (
        "kl", "nat", "measured", "parity", "mean KL",
    )  # fmt: skip


def test_without_a_limit_there_is_no_verdict() -> None:
    assert checked(figure(), "quality", "mean KL", None, "at most").verdict is None


@pytest.mark.parametrize(("limit", "crosses"), [(0.05, True), (0.1, True), (0.0, False), (0.2, False)])
def test_a_limit_inside_of_the_interval_is_told_and_the_figure_decides(limit: float, crosses: bool) -> None:
    found = checked(figure(interval=(0.02, 0.15)), "quality", "mean KL", limit, "at most")
    assert ("lies inside of the 95 % interval" in found.reason) is crosses
    assert found.verdict == ("passed" if limit >= 0.1 else "failed")
    assert found.interval == (0.02, 0.15)


def test_a_value_and_only_that_was_obtained_somehow() -> None:
    fields: dict[str, Any] = {
        "group": "a", "name": "n", "label": "l", "limit": 1.0, "direction": "at most", "unit": "s", "verdict": "failed",
    }  # fmt: skip
    with pytest.raises(ValidationError, match="says how it was obtained"):
        Check(value=1.0, obtained=None, **fields)
    with pytest.raises(ValidationError, match="says how it was obtained"):
        Check(value=None, obtained="measured", **fields)
    assert Check(value=None, obtained=None, **fields).value is None


@pytest.mark.parametrize(
    ("verdicts", "plain", "strict", "allowing"),
    [
        (["fits", "fits"], True, True, True),
        (["passed", None, "not for this platform"], True, True, True),
        (["fits", "tight"], True, False, True),
        (["fits", "not assessed"], False, False, True),
        (["fits", "does not fit"], False, False, False),
        (["passed", "failed"], False, False, False),
    ],
)
def test_what_passes(verdicts: list[Any], plain: bool, strict: bool, allowing: bool) -> None:
    one = checked(figure(), "a", "b", None, "at most")
    checks = [one.model_copy(update={"verdict": verdict}) for verdict in verdicts]
    assert passes(checks) is plain
    assert passes(checks, strict=True) is strict
    assert passes(checks, allow_unassessed=True) is allowing
