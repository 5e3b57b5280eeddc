"""Decoding with MLX on Apple's GPUs: one iPhone and one Mac. Memory bounds it: weights and cache at a share of the
chip's bandwidth, and an overhead for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_farm.calibration.fitting import Floats, errors, fitted, half_width
from device_farm.calibration.language import geometries, significant, table, within
from device_farm.latency_model import Decoder

IPHONE, MAC = DEVICES = "iPhone 17 Pro", "M4 Max"
_BANDWIDTH = {IPHONE: 76.8, MAC: 546.0}  # 1e9 bytes a second; weak, and what Apple states
BYTES_4_BIT = 0.5625  # with float16 scales and biases at group 64


@dataclass(frozen=True)
class Run:
    device: str
    geometry: str
    decoder: Decoder
    context: float
    ms: float


def runs() -> list[Run]:
    """Answers of 128 to 256 tokens; what ran for minutes to measure energy is no burst."""
    known = geometries()
    return [
        Run(
            r["device"],
            r["geometry"],
            known[r["geometry"]].decoder("q4_0"),
            float(r["prompt_tokens"]) + float(r["answer_tokens"]) / 2,
            1e3 / float(r["decode_tok_s"]),
        )
        for r in table("mlx.csv")
        if r["task"] != "energy"
    ]


def fit(rows: Sequence[Run]) -> Floats:
    """log of the share of the bandwidth, which both devices reach; log ms of a layer on each of `DEVICES`."""
    return fitted(residuals(rows), (-0.2, -3.0, -3.0))


def residuals(rows: Sequence[Run], layer_of: str | None = None) -> Callable[[Floats], Floats]:
    """layer_of: the device whose overhead counts on all; None: each its own."""
    weights = np.array([sum(r.decoder.weights.values()) + r.decoder.head[1] for r in rows]) * BYTES_4_BIT
    cache = np.array([2 * r.decoder.cached * r.context for r in rows])
    streamed = 1e-6 * (weights + cache) / np.array([_BANDWIDTH[r.device] for r in rows])
    layers = np.array([r.decoder.layers for r in rows])
    at = np.array([1 + DEVICES.index(layer_of or r.device) for r in rows])
    logs = np.log([r.ms for r in rows])
    return lambda x: np.asarray(np.log(streamed / np.exp(x[0]) + np.exp(x[at]) * layers) - logs)


def calibrate() -> dict[str, Any]:
    rows = runs()
    iphone = [r for r in rows if r.device == IPHONE]
    models: list[float] = []
    for name in sorted({r.geometry for r in iphone}):
        x = fit([r for r in rows if r.geometry != name])
        models += residuals([r for r in iphone if r.geometry == name])(x).tolist()
    left = residuals(iphone, MAC)(fit([r for r in rows if r.device == MAC])).tolist()
    share, layer, _ = np.exp(fit(rows))
    return {
        "bytes_4_bit": BYTES_4_BIT,
        "share": significant(share),
        "layer": significant(layer),
        "band": significant(half_width(models)),
        "left_out": {"model": errors(models), "phone": errors(left) | {"within": within(left)}},
    }
