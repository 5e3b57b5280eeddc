"""Convnets and encoders in ONNX Runtime on phones' processors (AI Hub Models), by classes of work.

Two Android phones and a Linux board ran all models. A class costs the same beside the others on all three where
products are of integers (w8a8), and each device has its own rates where they are of floats (w8a16). Four more phones
ran two of the graphs, which say how fast these are beside the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_farm.calibration.fitting import Floats, errors, fitted, half_width
from device_farm.calibration.language import significant, table
from device_farm.chips import Chip, find_chip
from device_farm.latency_model import network_terms

PHONES = ("Snapdragon 7 Gen 4 QRD", "Dragonwing Q-6690 MTP")
DEVICES = (*PHONES, "Dragonwing RB3 Gen 2 Vision Kit")
# ms that a class starts from: 1e9 multiply-adds, 1e6 elements, 1e2 operators
_START = {"conv": 4.5, "conv3d": 6.0, "products": 4.5, "grouped": 6.0, "depthwise": 20.0, "matmul": 20.0}
_PRIOR = {"w8a8": 0.1, "w8a16": 0.05}


@dataclass(frozen=True)
class Run:
    device: str
    model: str
    terms: dict[str, float]
    ms: float


def runs(precision: str) -> list[Run]:
    work = {r["model"]: {k: float(v) for k, v in r.items() if k != "model"} for r in table("network_work.csv")}
    return [
        Run(
            r["device"],
            r["model"],
            network_terms(work[r["model"]] | {"layers": float(r["layers"])}, precision),
            float(r["ms"]),
        )
        for r in table("networks.csv")
        if r["precision"] == precision and r["model"] in work
    ]


class Fit:
    """Rates of classes on one or several devices: the first has speed 1, the others are slower by a factor."""

    def __init__(self, precision: str, devices: Sequence[str]) -> None:
        self.devices, self.precision = devices, precision
        self.rows = [run for run in runs(precision) if run.device in devices]
        self.classes = list(self.rows[0].terms)

    def fit(self, rows: Sequence[Run]) -> Floats:
        start = [float(np.log(_START.get(name, 0.22))) for name in self.classes]
        others = len(self.devices) - 1
        held = [_PRIOR[self.precision]] * len(start) + [0.01] * others
        return fitted(self.residuals(rows), start + [0.0] * others, held)

    def residuals(self, rows: Sequence[Run]) -> Callable[[Floats], Floats]:
        terms = np.array([[run.terms[name] for name in self.classes] for run in rows])
        at = np.array([self.devices.index(run.device) for run in rows])
        logs = np.log([run.ms for run in rows])
        n = len(self.classes)

        def residuals(x: Floats) -> Floats:
            slower = np.append(0.0, x[n:])
            return np.asarray(np.log(terms @ np.exp(x[:n])) + slower[at] - logs)

        return residuals

    def models_left_out(self) -> list[float]:
        """Logarithms of predicted over measured time, each model by a fit without it."""
        out: list[float] = []
        for model in sorted({run.model for run in self.rows}):
            x = self.fit([run for run in self.rows if run.model != model])
            out += self.residuals([run for run in self.rows if run.model == model])(x).tolist()
        return out

    def rates(self) -> dict[str, dict[str, float]]:
        """ms of each class by device."""
        x = self.fit(self.rows)
        n = len(self.classes)
        slower = np.exp(np.append(0.0, x[n:]))
        return {
            device: {name: significant(rate * factor) for name, rate in zip(self.classes, np.exp(x[:n]), strict=True)}
            for device, factor in zip(self.devices, slower, strict=True)
        }


def fits(precision: str, devices: Sequence[str] = DEVICES) -> list[Fit]:
    """Together where classes cost the same beside each other, else one for each device."""
    return [Fit(precision, devices)] if precision == "w8a8" else [Fit(precision, [device]) for device in devices]


def phones_left_out(precision: str) -> list[float]:
    """Each phone by the rates of the other and the throughput of both chips."""
    out: list[float] = []
    for phone, other in (PHONES, PHONES[::-1]):
        known = Fit(precision, [other])
        shift = float(np.log(_chip(other).throughput() / _chip(phone).throughput()))
        rows = [run for run in runs(precision) if run.device == phone]
        aside = Fit(precision, [phone])
        for model in sorted({run.model for run in rows}):
            x = known.fit([run for run in known.rows if run.model != model])
            out += (aside.residuals([run for run in rows if run.model == model])(x) + shift).tolist()
    return out


def beside_first() -> dict[str, float]:
    """How much longer the same graphs take than on the first phone, by chip, of phones that ran but these."""
    found: dict[tuple[str, str], float] = {
        (r["model"], r["device"]): float(r["ms"]) for r in table("networks.csv") if r["model"] in ("eyegaze", "movenet")
    }
    ratios: dict[str, list[float]] = {}
    for (model, device), ms in found.items():
        if device not in DEVICES:
            ratios.setdefault(device, []).append(ms / found[model, PHONES[0]])
    return {_chip(device).name: significant(np.exp(np.mean(np.log(ratio)))) for device, ratio in ratios.items()}


def calibrate() -> dict[str, Any]:
    """Rates by device, and the errors on what was left out."""
    found: dict[str, Any] = {"beside_first": beside_first()}
    for precision in ("w8a8", "w8a16"):
        several = fits(precision)
        models = [error for fit in several for error in fit.models_left_out()]
        left = phones_left_out(precision)
        found[precision] = {
            "devices": {_chip(d).name: rates for fit in several for d, rates in fit.rates().items()},
            "band": significant(half_width(models)),
            "left_out": {
                "model": errors(models, "time"),
                "phone": errors(left, "time") | {"within": round(float(np.mean(np.abs(left) <= np.log(2))), 4)},
            },
        }
    return found


def _chip(device: str) -> Chip:
    chip = find_chip(device)
    assert chip is not None, device
    return chip
