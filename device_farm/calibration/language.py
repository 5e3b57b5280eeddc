"""Language models on phones' processors: the rows of PocketPal (three phones, many kernels, short contexts) and of
GenieX (one phone, one kernel, contexts of 512 and 4,096), fitted by ``latency_model``'s own formulas."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_farm.calibration.fitting import Floats, errors, fitted, half_width
from device_farm.chips import find_chip
from device_farm.latency_model import LONG, Decoder, Geometry, Kind, attention_gmac

POCKETPAL, GENIEX = "llama.cpp in PocketPal", "llama.cpp in GenieX"
S25 = "Samsung Galaxy S25"
_SHORT = 128  # tokens that a row of PocketPal has seen on average: it reads 256, and answers with 64
KINDS: tuple[Kind, ...] = ("decode", "prefill")
# kernels' costs beside Q4_0 that the rows start from; Q8_0 in GenieX is by the bytes, 1.89 on the boards that ran both
_Q8_GENIEX = 1.89
_FOLLOWS = {"q4_k_s": "q4_k_m", "q5_k_s": "q5_k_m", "q3_k_s": "q3_k_m", "q3_k_l": "q3_k_m", "q2_k_s": "q2_k"}


@dataclass(frozen=True)
class Row:
    """One published figure: `ms` of a token by kind. geometry: models of the same one are left out together."""

    phone: str
    model: str
    geometry: str
    plain: bool
    kernel: str
    context: int
    decoder: Decoder
    ms: dict[Kind, float]


def geometries() -> dict[str, Geometry]:
    """Of the models in the rows, by name."""
    found = {}
    for row in table("geometries.csv"):
        integers = {k: int(v) for k, v in row.items() if v and k not in ("name", "note", "weights", "layer_cost")}
        weights = float(row["weights"]) if row["weights"] else None
        found[row["name"]] = Geometry(**integers, weights=weights, layer_cost=float(row["layer_cost"] or 1))
    return found


def table(name: str) -> list[dict[str, str]]:
    """A file of the data, row by row."""
    from importlib import resources

    text = (resources.files("device_farm") / "calibration" / "data" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def pocketpal() -> list[Row]:
    known = geometries()
    return [_row(r, known[r["model"]], r["model"], _SHORT) for r in table("pocketpal.csv")]


def geniex(phone: str | None = S25) -> list[Row]:
    known = geometries()
    rows = [r for r in table("geniex.csv") if phone in (None, r["phone"])]
    return [_row(r, known[r["geometry"]], r["geometry"], int(r["context"])) for r in rows]


def _row(row: dict[str, str], geometry: Geometry, name: str, context: int) -> Row:
    ms: dict[Kind, float] = {kind: 1e3 / float(row[f"{kind}_tok_s"]) for kind in KINDS}
    same = "qwen2.5-1.5b" if name.startswith("deepseek-r1-distill-qwen") else name
    decoder = geometry.decoder(row["kernel"])
    return Row(row["phone"], row["model"], same, geometry.plain, row["kernel"], context, decoder, ms)


# -- GenieX: speed, overhead, attention with its exponent ---------------------------------------------------------


def _geniex_residuals(rows: Sequence[Row], kind: Kind, head: float) -> Callable[[Floats], Floats]:
    body = np.array([sum(r.decoder.weights.values()) * 1e-9 for r in rows])
    if kind == "decode":
        body += head * np.array([r.decoder.head[1] * 1e-9 for r in rows])
    layers = np.array([r.decoder.layers for r in rows])
    macs = 1e3 * np.array([attention_gmac(r.decoder, r.context, kind) for r in rows])
    share = np.array([r.context / LONG for r in rows])
    logs = np.log([r.ms[kind] for r in rows])

    def residuals(x: Floats) -> Floats:
        ms = np.exp(x[0]) * body + np.exp(x[1]) * layers + macs * share ** x[3] / np.exp(x[2])
        return np.asarray(np.log(ms) - logs)

    return residuals


def fit_geniex(rows: Sequence[Row], kind: Kind, head: float) -> Floats:
    """log ms for 1e9 weights of Q4_0, log ms of a layer, log 1e9 multiply-adds a second of attention, exponent."""
    return fitted(_geniex_residuals(rows, kind, head), (2.0, -4.6, 2.0, 0.5))


def geniex_left_out(kind: Kind, head: float) -> tuple[list[float], list[float]]:
    """Logarithms of predicted over measured time: of each plain model by a fit without its geometry, and of the models
    that are not plain by a fit without any of them."""
    rows = geniex()
    plain, other = [r for r in rows if r.plain], [r for r in rows if not r.plain]
    out: list[float] = []
    for name in sorted({r.geometry for r in plain}):
        x = fit_geniex([r for r in plain if r.geometry != name], kind, head)
        out += _geniex_residuals([r for r in plain if r.geometry == name], kind, head)(x).tolist()
    return out, _geniex_residuals(other, kind, head)(fit_geniex(plain, kind, head)).tolist()


def attention_beside_body(kind: Kind) -> list[float]:
    """How much a context of 4,096 adds to the time at 512, of one model on every device that ran it, over the same on
    the Galaxy S25: what attention costs on phones where nobody measured it lies in between."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in geniex(None):
        if row.geometry == "qwen3-4b" and row.model in ("qwen3_4b_instruct_2507", "qwen3_vl_4b_instruct"):
            found.setdefault(row.phone, {}).setdefault(row.context, []).append(row.ms[kind])
    shares = {phone: np.mean(at[LONG]) / np.mean(at[512]) - 1 for phone, at in found.items()}
    return [float(share / shares[S25]) for share in shares.values()]


# -- PocketPal: kernels that all phones share, speeds and overheads of their own ------------------------------------


class PocketPal:
    """The fit over rows of any of its phones. attention: (rate on the Galaxy S25, exponent, ms there for 1e9 weights),
    which is carried to a phone by its own speed."""

    def __init__(self, kind: Kind, attention: tuple[float, float, float], by_clock: bool = False) -> None:
        rows = pocketpal()
        self.kind, self.by_clock = kind, by_clock
        self.phones = sorted({r.phone for r in rows})
        self.kernels = sorted({r.kernel for r in rows})
        self._rate, self._exponent, self._reference = attention

    def fit(self, rows: Sequence[Row]) -> Floats:
        """log ms for 1e9 weights of each kernel on a phone of speed 1; then logs of each phone's speed (the first is
        1) and its overhead of a layer. by_clock: kernels and one overhead, both in ms at 1 GHz."""
        kernels = [3.0] * len(self.kernels)
        rest = [0.0] if self.by_clock else [0.0] * (len(self.phones) - 1) + [-1.6] * len(self.phones)
        return fitted(self.residuals(rows), kernels + rest)

    def residuals(self, rows: Sequence[Row]) -> Callable[[Floats], Floats]:
        n, p = len(self.kernels), len(self.phones)
        at = np.array([self.phones.index(r.phone) for r in rows])
        body = np.array([[r.decoder.weights.get(k, 0) * 1e-9 for k in self.kernels] for r in rows])
        if self.kind == "decode":
            body += [[r.decoder.head[1] * 1e-9 * (k == r.decoder.head[0]) for k in self.kernels] for r in rows]
        layers = np.array([r.decoder.layers for r in rows])
        macs = 1e3 * np.array([attention_gmac(r.decoder, r.context, self.kind) for r in rows])
        attention = macs * (_SHORT / LONG) ** self._exponent / self._rate / self._reference
        logs = np.log([r.ms[self.kind] for r in rows])
        plain, clocks = self.kernels.index("q4_0"), np.array([clock(phone) for phone in self.phones])

        def residuals(x: Floats) -> Floats:
            costs = np.exp(x[:n])
            speed = 1 / clocks if self.by_clock else np.exp(np.append(0.0, x[n : n + p - 1]))
            layer = np.exp(x[n]) * speed if self.by_clock else np.exp(x[n + p - 1 :])
            ms = speed[at] * (body @ costs + costs[plain] * attention) + layer[at] * layers
            return np.asarray(np.log(ms) - logs)

        return residuals

    def models_left_out(self) -> list[float]:
        """Logarithms of predicted over measured time, each geometry by a fit without it."""
        rows, out = pocketpal(), []
        for name in sorted({r.geometry for r in rows}):
            x = self.fit([r for r in rows if r.geometry != name])
            out += self.residuals([r for r in rows if r.geometry == name])(x).tolist()
        return out

    def phones_left_out(self) -> list[float]:
        """The same by the clocks alone, each phone by a fit without it and without the model."""
        rows, out = pocketpal(), []
        for phone in self.phones:
            for name in sorted({r.geometry for r in rows}):
                x = self.fit([r for r in rows if r.phone != phone and r.geometry != name])
                out += self.residuals([r for r in rows if r.phone == phone and r.geometry == name])(x).tolist()
        return out


def clock(phone: str) -> float:
    chip = find_chip(phone)
    assert chip is not None, phone
    return chip.clock()


# -- what is written ----------------------------------------------------------------------------------------------


def _kernels(names: Sequence[str], costs: Iterable[float]) -> tuple[dict[str, float], float]:
    found = dict(zip(names, map(float, costs), strict=True))
    unit = found["q4_0"]
    beside = {name: significant(cost / unit) for name, cost in found.items()}
    return beside | {name: beside[other] for name, other in _FOLLOWS.items()}, unit


def calibrate() -> dict[str, Any]:
    """Coefficients of both runtimes, and the errors on what was left out."""
    found: dict[str, Any] = {POCKETPAL: {}, GENIEX: {}}
    for kind in KINDS:
        head = _head_cost()
        s25 = np.exp(fit_geniex([r for r in geniex() if r.plain], kind, head) * (1, 1, 1, 0))
        exponent = float(fit_geniex([r for r in geniex() if r.plain], kind, head)[3])
        attention = (float(s25[2]), exponent, float(s25[0]))
        phones, clocks = PocketPal(kind, attention), PocketPal(kind, attention, by_clock=True)
        x, by_clock = phones.fit(pocketpal()), clocks.fit(pocketpal())
        n, p = len(phones.kernels), len(phones.phones)
        kernels, unit = _kernels(phones.kernels, np.exp(x[:n]))
        at_1_ghz, unit_at_1_ghz = _kernels(phones.kernels, np.exp(by_clock[:n]))
        speeds = unit * np.exp(np.append(0.0, x[n : n + p - 1]))
        models, left = phones.models_left_out(), clocks.phones_left_out()
        beside = np.log(attention_beside_body(kind))
        found[POCKETPAL][kind] = {
            "kernels": kernels,
            "phones": {
                _chip(phone): {"speed": significant(speed), "layer": significant(layer)}
                for phone, speed, layer in zip(phones.phones, speeds, np.exp(x[n + p - 1 :]), strict=True)
            },
            "clock": {
                "kernels": at_1_ghz,
                "speed": significant(unit_at_1_ghz),
                "layer": significant(np.exp(by_clock[n])),
            },
            # carried from the S25 by speed; elsewhere between the least and the most of the devices that ran both
            "attention": {
                "of": significant(attention[0] * attention[2]),
                "exponent": significant(exponent),
                "beside": [significant(v) for v in np.exp([beside.min(), beside.max()])],
            },
            "band": significant(half_width(models)),
            "band_phone": significant(half_width(left)),
            "left_out": {"model": errors(models), "phone": errors(left) | {"within": within(left)}},
        }
        plain, other = geniex_left_out(kind, head)
        band = max(half_width(plain), found[POCKETPAL][kind]["band"])
        found[GENIEX][kind] = {
            # the one kernel of its rows; the others beside it as PocketPal has them
            "kernels": kernels | ({"q6_k": significant(head), "q8_0": _Q8_GENIEX} if kind == "decode" else {}),
            "phones": {_chip(S25): {"speed": significant(s25[0]), "layer": significant(s25[1])}},
            # one phone: others by its clock, as far off as PocketPal's are by theirs
            "clock": {"speed": significant(s25[0] * clock(S25)), "layer": significant(s25[1] * clock(S25))},
            "band_phone": found[POCKETPAL][kind]["band_phone"],
            "attention": found[POCKETPAL][kind]["attention"],
            # four geometries alone: not narrower than that of PocketPal's phones
            "band": significant(band),
            "band_not_plain": significant(max(half_width(other), band)),
            "left_out": {"model": errors(plain), "model that is not plain": errors(other)},
        }
    return found


def _head_cost() -> float:
    """Of Q6_K beside Q4_0: GenieX has no row that tells it from the rest, PocketPal's decoding has."""
    costs = PocketPal("decode", (1e9, 0.0, 1.0))
    x = costs.fit(pocketpal())
    return float(np.exp(x[costs.kernels.index("q6_k")] - x[costs.kernels.index("q4_0")]))


def within(logs: Sequence[float]) -> float:
    """The share of rates between half and one and a half times the predicted."""
    ratio = np.exp(np.asarray(logs))
    return round(float(np.mean((ratio >= 0.5) & (ratio <= 1.5))), 4)


def _chip(phone: str) -> str:
    chip = find_chip(phone)
    assert chip is not None, phone
    return chip.name


def significant(value: float | np.floating[Any]) -> float:
    """Four digits: more would pretend, and differ between machines."""
    return float(f"{float(value):.4g}")
