"""The coefficients are what the committed script makes of the committed rows, and as good as they have to be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from device_farm import predict
from device_farm.calibration import __main__ as script
from device_farm.calibration import language, networks
from device_farm.latency_rates import GENIEX, POCKETPAL, Modelled


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return script.calibrate()


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{where}/{key}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from leaves(inner, f"{where}/{at}")
    else:
        yield where, value


def test_the_committed_coefficients_are_those_of_the_script(found: dict[str, Any]) -> None:
    committed = dict(leaves(json.loads(script.FILE.read_text())))
    fitted = dict(leaves(found))
    assert committed.keys() == fitted.keys()
    for where, value in fitted.items():
        assert committed[where] == (pytest.approx(value, rel=2e-3) if isinstance(value, float) else value), where


@pytest.mark.parametrize(
    ("app", "kind", "median", "p90", "rows"),
    [
        (GENIEX, "decode", 0.05, 0.15, 9),
        (GENIEX, "prefill", 0.10, 0.25, 9),
        (POCKETPAL, "decode", 0.08, 0.18, 172),
        (POCKETPAL, "prefill", 0.10, 0.25, 172),
    ],
)
def test_language_models_that_were_left_out_are_met(
    found: dict[str, Any], app: str, kind: str, median: float, p90: float, rows: int
) -> None:
    reached = found["language"][app][kind]["left_out"]["model"]
    assert (reached["rows"], reached["median"] <= median, reached["p90"] <= p90) == (rows, True, True), reached


def test_integer_networks_that_were_left_out_are_met(found: dict[str, Any]) -> None:
    whole, half = (found["networks"][precision]["left_out"]["model"] for precision in ("w8a8", "w8a16"))
    assert whole["rows"] == 66 and whole["median"] <= 0.11 and whole["p90"] <= 0.28
    assert half["rows"] == 57 and half["median"] <= 0.055 and half["p90"] <= 0.20


def test_rows_of_phones_that_were_left_out_lie_in_the_printed_band(found: dict[str, Any]) -> None:
    for kind in language.KINDS:
        assert found["language"][POCKETPAL][kind]["left_out"]["phone"]["within"] >= 0.9
    for precision in ("w8a8", "w8a16"):
        assert found["networks"][precision]["left_out"]["phone"]["within"] >= 0.9
    assert found["mlx"]["left_out"]["phone"]["within"] >= 0.9


def test_bands_of_left_out_models_hold_nine_rows_of_ten(found: dict[str, Any]) -> None:
    import numpy as np

    for kind in language.KINDS:
        of = found["language"]
        attention = of[GENIEX][kind]
        speed = attention["phones"]["Snapdragon 8 Elite"]["speed"]
        carried = attention["attention"]["of"] / speed, attention["attention"]["exponent"], speed
        logs = language.PocketPal(kind, carried).models_left_out()
        assert np.mean(np.abs(logs) <= of[POCKETPAL][kind]["band"]) >= 0.9
    logs = [error for fit in networks.fits("w8a8") for error in fit.models_left_out()]
    assert np.mean(np.abs(logs) <= found["networks"]["w8a8"]["band"]) >= 0.9


@pytest.mark.parametrize("row", language.geniex(), ids=lambda row: f"{row.model}-{row.context}")
def test_the_landed_coefficients_meet_the_rows_that_they_were_fitted_on(row: language.Row) -> None:
    geometry = language.geometries()[row.geometry]
    figures = predict(geometry, language.S25, kernel=row.kernel, context=row.context)
    for kind in language.KINDS:
        figure = figures[kind]
        assert isinstance(figure, Modelled) and figure.runtime == GENIEX
        assert figure.band[0] <= 1e3 / row.ms[kind] <= figure.band[1], kind
