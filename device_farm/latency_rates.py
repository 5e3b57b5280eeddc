"""Figures of counted work on a chip: the formulas of ``latency_model.py`` with the coefficients of ``calibration``.

What lives here: which coefficients stand for a chip, and how wide a figure's band is. What must not: profiles and
packages (``latency.py``), and fitting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from artifacts.figures import Figure
from device_farm.chips import Chip, find_chip
from device_farm.latency_model import LONG, Decoder, Kind, Rates, network_terms, streamed_ms, token_ms

POCKETPAL, GENIEX = "llama.cpp in PocketPal", "llama.cpp in GenieX"
ONNX, TVM, MLX = "ONNX Runtime on the CPU", "TVM on the CPU", "MLX on the GPU"
NO_DATA = "no latency data"
LOW, HIGH = 0.5, 1.5  # the widest band of a language model's figure
_FACTOR = 2.0  # of a network's
# smmla multiplies twice the bytes of sdot: a prompt takes twice as long without it; by the instructions, not measured
_WITHOUT_I8MM: dict[Kind, float] = {"decode": 1.0, "prefill": 2.0}
_FIRST_APPLE = 15
# that ran all networks: two phones, and a Linux board, which stands for phones that lack i8mm
_PHONES, _BOARD = ("Snapdragon 7 Gen 4", "Dragonwing Q-6690"), "QCS6490"
Precision = Literal["w8a8", "w8a16"]


@dataclass(frozen=True)
class Modelled:
    """A modelled figure. band: (low, high) in `unit`; runtime: whose; basis: what it and its band rest on."""

    value: float
    band: tuple[float, float]
    unit: str
    at: str
    runtime: str
    basis: str

    def figure(self, name: str) -> Figure:
        """As reports have it."""
        return Figure(name=name, value=self.value, unit=self.unit, obtained="modelled", at=self.at, band=self.band)


class Unknown(Exception):
    """There is no figure; the message says why."""


@dataclass(frozen=True)
class Beside:
    """Another runtime's rate over that of the coefficients', and by which logarithm it may be off on a phone."""

    ratio: float
    off: float
    runtime: str


def too_wide(what: str, low: float, high: float) -> str:
    return f"too uncertain: {what} would lie between {low:.2f} and {high:.2f} of the modelled figure"


# -- tokens on processors ------------------------------------------------------------------------------------------


def token_rate(
    decoder: Decoder,
    chip: Chip,
    kind: Kind,
    context: int,
    runtime: str | None = None,
    plain: bool = True,
    other: Beside | None = None,
) -> Modelled:
    """tok/s of decoding at, or of reading, a context; other: in another runtime. Raises Unknown."""
    known = _coefficients()["language"]
    if runtime not in (None, *known):
        raise ValueError(f"runtime must be one of {', '.join(known)}, not {runtime!r}")
    app = runtime or next((name for name, of in known.items() if chip.name in of[kind]["phones"]), POCKETPAL)
    found, measured = known[app][kind], chip.name in known[app][kind]["phones"]
    if context > LONG:
        raise Unknown(f"{NO_DATA}: contexts beyond {LONG:,} tokens were not measured")
    own = found["phones"][chip.name] if measured else found["clock"]
    slower = 1.0 if measured else 1 / chip.clock() * (1.0 if chip.i8mm else _WITHOUT_I8MM[kind])
    kernels = own.get("kernels", found["kernels"])
    unknown = sorted({*decoder.weights, decoder.head[0]} - kernels.keys())
    if unknown:
        raise Unknown(f"{NO_DATA}: kernel {unknown[0]} was not measured; {', '.join(kernels)} were")
    attention, speed = found["attention"], own["speed"] * slower
    rates = Rates(speed, kernels, own["layer"] * slower, attention["of"] / speed, attention["exponent"])
    base, looked = token_ms(decoder, rates, context, kind)
    # between the least and the most of the devices that ran both contexts, but for the phone that did
    least, most = (1.0, 1.0) if measured and app == GENIEX else attention["beside"]
    few = not plain and "band_not_plain" in found
    if measured:
        away = found["band_not_plain"] if few else found["band"]
        basis = f"calibrated on {chip.name}, other models left out"
        basis += "; of models like this one few were measured" if few else ""
    else:
        away, basis = found["band_phone"], f"by the clock of {chip.name}, other phones left out"
        basis += "" if chip.i8mm else "; no phone without i8mm was measured"
    faster, name = 1.0, app
    if other is not None:
        faster, name, away = other.ratio, other.runtime, math.hypot(away, other.off)
        basis = f"{app}, {basis}; times {faster:.3g} as measured side by side on x86-64"
    ms = base + looked * math.sqrt(least * most)
    slowest, fastest = (base + looked * most) * math.exp(away), (base + looked * least) * math.exp(-away)
    value, low, high = (1e3 * faster / each for each in (ms, slowest, fastest))
    if low < LOW * value or high > HIGH * value:
        cost = f"what such a context costs was measured on {', '.join(known[GENIEX][kind]['phones'])} alone"
        cost += f", and {name} beside llama.cpp on x86-64 alone" if other is not None else ""
        raise Unknown(f"{too_wide(f'{kind} at {context:,} tokens', low / value, high / value)}; {cost}")
    # of three phones, or of eight rows, how others lie around them nobody knows better than this
    band = (low, high) if measured and not few else (LOW * value, HIGH * value)
    return Modelled(value, band, "tok/s", f"{context:,} tokens", name, basis)


def streamed_rate(decoder: Decoder, chip: Chip, context: int, bytes_per_weight: float | None = None) -> Modelled:
    """tok/s of decoding with MLX on an iPhone; bytes_per_weight: None for 4 bits at group 64."""
    assert chip.bandwidth is not None
    found = _coefficients()["mlx"]
    stored = bytes_per_weight or found["bytes_4_bit"]
    ms = streamed_ms(decoder, stored, context, found["share"] * chip.bandwidth, found["layer"])
    basis = f"by the memory bandwidth of {chip.name}, calibrated on an iPhone 17 Pro and an M4 Max"
    value = 1e3 / ms
    return Modelled(value, (LOW * value, HIGH * value), "tok/s", f"{context:,} tokens", MLX, basis)


def beside(target: str, kind: Kind, scheme: str) -> Beside:
    """Of the largest group that was measured and is not larger than the scheme's. Raises Unknown."""
    ratios = _ratios()[kind].get(target)
    if ratios is None:
        raise Unknown(f"{NO_DATA}: {kind} of {target} was not measured beside llama.cpp's, which is known of phones")
    bits, _, group = scheme.partition("g")
    known = {int(name.partition("g")[2]): pair for name, pair in ratios["by"].items() if name.startswith(f"{bits}g")}
    fitting = [size for size in known if size <= int(group or 0)]
    if not fitting:
        stored = f"{bits} bits, {f'group {group}' if int(group or 0) else 'one scale a row'},"
        raise Unknown(f"{NO_DATA}: weights of {stored} were not measured beside {ratios['beside']}")
    low, high = known[max(fitting)]
    return Beside(
        math.sqrt(low * high), math.log(high / low) / 2 + ratios["carried"], {"onnx": ONNX, "tvm": TVM}[target]
    )


# -- networks ---------------------------------------------------------------------------------------------------


def network_time(work: Mapping[str, float], chip: Chip, precision: Precision) -> Modelled | str:
    if chip.apple:
        return f"{NO_DATA}: no network's time was published of an iPhone's processor"
    found = _coefficients()["networks"]
    devices, graphs = found[precision]["devices"], found["beside_first"]
    first = _PHONES[0]
    away, slower, near = math.log(_FACTOR), 1.0, chip.name
    if chip.name in _PHONES:
        away, basis = found[precision]["band"], f"calibrated on {chip.name}, other models left out"
    elif chip.name in devices:
        basis = f"calibrated on a Linux board with {chip.name}"
    elif chip.name in graphs:
        near, slower = first, graphs[chip.name]
        basis = f"{first}'s rates, {chip.name} beside it by two graphs that both ran"
    else:
        near = first if chip.i8mm else _BOARD
        reference = find_chip(near)
        assert reference is not None
        slower = reference.throughput() / chip.throughput()
        basis = f"{near}'s rates by the clocks and widths of both, other phones left out"
    terms = network_terms(work, precision)
    seconds = 1e-3 * slower * sum(devices[near][name] * amount for name, amount in terms.items())
    band = seconds * math.exp(-away), seconds * math.exp(away)
    return Modelled(seconds, band, "s", "one call", ONNX, basis)


# -- chips ----------------------------------------------------------------------------------------------------


def known_chip(words: str) -> Chip | str:
    chip = find_chip(words)
    if chip is None:
        return f"{NO_DATA}: {words!r} is no chip whose cores and clocks are known (device_farm/chips.yaml)"
    if chip.apple is not None:
        return chip if chip.apple >= _FIRST_APPLE else f"{NO_DATA}: nothing was published of iPhones before the A15"
    return chip if chip.dotprod else NO_DOTPROD


NO_DOTPROD = f"{NO_DATA}: nothing was published of phones whose cores lack dotprod"
NO_CHIP = f"{NO_DATA}: the profile names no chip"


@cache
def _coefficients() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((resources.files("device_farm") / "coefficients.json").read_text("utf-8"))
    return found


@cache
def _ratios() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((resources.files("device_farm") / "ratios.yaml").read_text("utf-8"))
    return found
