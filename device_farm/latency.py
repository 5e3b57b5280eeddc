"""How fast a model is on a phone, modelled: every figure with its band, how it was obtained, and for which runtime.

What lives here: from counted work, a phone and the coefficients of ``calibration`` to figures, or to the reason why
there is none. What must not: fitting, the formulas (``latency_model.py``), and a recipe's limits (``verdict.py``).

A band holds nine of ten figures of what was left out when the coefficients were fitted: on a phone that was measured,
other models; on another, other phones, which makes it wider. Wider than half of the value (networks: than a factor of
2) none is printed: the figure is then said to be unknown. So are phones without dotprod, for which no data exists.

>>> from device_farm.latency import predict
>>> from device_farm.latency_model import Geometry
>>> llama = Geometry(layers=16, heads=32, kv_heads=8, head_dim=64, hidden=2048, intermediate=8192, vocab=128256)
>>> found = predict(llama, "Samsung Galaxy S25", kernel="q4_0", context=512)
>>> found["decode"].unit, found["decode"].runtime
('tok/s', 'llama.cpp in GenieX')
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from artifacts.formats.work import StreamWork, TokenWork, Work
from device_farm.chips import Chip
from device_farm.latency_model import Decoder, Geometry, Kind
from device_farm.latency_rates import (
    GENIEX,
    HIGH,
    LOW,
    NO_CHIP,
    NO_DATA,
    NO_DOTPROD,
    POCKETPAL,
    Modelled,
    Precision,
    Unknown,
    beside,
    known_chip,
    network_time,
    streamed_rate,
    token_rate,
    too_wide,
)
from device_farm.profile import Profile

__all__ = ["GENIEX", "NO_DATA", "POCKETPAL", "Found", "Modelled", "modelled", "predict", "predict_network"]

SHORT = 512  # tokens of a prompt to which the first answer is timed, and of the shorter context that is shown
_NO_LOAD = f"{NO_DATA}: of one iPhone alone were times of loading published, and its repeats differ twofold"
# what stays of the burst's rate after ten minutes: an iPhone 17 Pro (apple-silicon-llm-bench); nothing else is known
_SUSTAINED = (0.38, 0.67)

Found = dict[str, Modelled | str]
"""Figures by name; the reason, which begins with `NO_DATA` or says what is too uncertain, where there is none."""


# -- a bare geometry on a phone --------------------------------------------------------------------------------------


def predict(
    geometry: Geometry, phone: str, *, kernel: str = "q4_0", context: int = SHORT, runtime: str | None = None
) -> Found:
    """decode and prefill in tok/s, first_token in s and decode_sustained, of a model that is no recipe.

    phone: words that name a phone or a chip, as in "samsung-s23" or "Snapdragon 7 Gen 3". kernel: of llama.cpp, as in
    "q4_k_m"; on Apple's chips "4-bit", which is MLX's at group 64, or "q4_0" for the same. context: tokens that are
    there while decoding, or that the prompt has. runtime: POCKETPAL or GENIEX; None: the one that the phone was
    measured with, else PocketPal's.
    """
    chip = known_chip(phone)
    if isinstance(chip, str):
        return dict.fromkeys(("decode", "prefill", "first_token", "decode_sustained"), chip)
    if chip.apple:
        if kernel not in ("q4_0", "4-bit"):
            return _complete({"decode": f"{NO_DATA}: on iPhones MLX with 4 bits alone was measured, not {kernel}"})
        return _complete({"decode": streamed_rate(geometry.decoder("q4_0"), chip, context)})
    decoder = geometry.decoder(kernel)
    found: Found = {}
    for kind in ("decode", "prefill"):
        try:
            found[kind] = token_rate(decoder, chip, kind, context, runtime, geometry.plain)
        except Unknown as why:
            found[kind] = str(why)
    return _complete(found, context)


def _complete(found: Found, prompt: int = SHORT) -> Found:
    """With what follows from decode and prefill."""
    prefill = found.setdefault("prefill", f"{NO_DATA}: no prompt of a known length was timed on such a phone")
    decode = found["decode"]
    found["first_token"] = prefill if isinstance(prefill, str) else _turned(prefill, prompt)
    found["decode_sustained"] = decode if isinstance(decode, str) else _sustained(decode)
    return found


def _turned(rate: Modelled, tokens: int) -> Modelled:
    """Seconds for so many tokens at a rate: the middle of what its band comes to, which keeps the band as narrow."""
    low, high = (tokens / end for end in reversed(rate.band))
    at = f"a prompt of {tokens:,} tokens"
    return replace(rate, value=(low + high) / 2, band=(low, high), unit="s", at=at)


def _sustained(burst: Modelled) -> Modelled | str:
    """The rate after minutes of load."""
    low, high = _SUSTAINED
    value = burst.value * (low + high) / 2
    away = [
        math.hypot(math.log(high / low) / 2, math.log(ratio))
        for ratio in (burst.value / burst.band[0], burst.band[1] / burst.value)
    ]
    band = value * math.exp(-away[0]), value * math.exp(away[1])
    if band[0] < LOW * value or band[1] > HIGH * value:
        return too_wide("the rate after minutes of load, known of one phone alone", *(end / value for end in band))
    basis = f"{burst.basis}; {low:.0%} to {high:.0%} of the burst stay after ten minutes, as on an iPhone 17 Pro"
    return replace(burst, value=value, band=band, at=f"{burst.at}, after minutes of load", basis=basis)


# -- packages on phones --------------------------------------------------------------------------------------------


def modelled(work: Work, target: str, profile: Profile) -> Found:
    """Figures of a package on a phone, by the names of a recipe's limits, and more beside them.

    A decoder: decode (tok/s, at the end of its context), decode_short (at 512 tokens), decode_sustained and
    time_to_first_token (s, of a prompt of 512 tokens or of the context). An avatar: first_frame (s, once its sound and
    the look-ahead are there: the window is heard and the frame drawn) and frame_time (s, its part of a window counted).
    Both: load_cold and load_warm, of which nothing is known yet.
    """
    found: Found = {}
    if work.token is not None:
        found = _decoder(work.token, work.images, target, profile)
    elif work.stream is not None:
        found = _stream(work.stream, target, profile)
    return found | dict.fromkeys(("load_cold", "load_warm"), _NO_LOAD)


def _decoder(token: TokenWork, images: bool, target: str, profile: Profile) -> Found:
    names = ("decode", "decode_short", "decode_sustained", "time_to_first_token")
    chip = _of(profile)
    if isinstance(chip, str):
        return dict.fromkeys(names, chip)
    short = min(SHORT, token.context)

    def rate(kind: Kind, context: int) -> Modelled | str:
        try:
            return _package_rate(token, target, chip, kind, context)
        except Unknown as why:
            return str(why)

    first = rate("prefill", short)
    if images:
        first = f"{NO_DATA}: the encoder of images has no model of its speed"
    decode = rate("decode", token.context)
    found: Found = {
        "decode": decode,
        "decode_sustained": decode if isinstance(decode, str) else _sustained(decode),
        "time_to_first_token": first if isinstance(first, str) else _turned(first, short),
    }
    return found if short == token.context else {**found, "decode_short": rate("decode", short)}


def _package_rate(token: TokenWork, target: str, chip: Chip, kind: Kind, context: int) -> Modelled:
    schemes = {*token.weights, token.head}
    if chip.apple:
        if target != "mlx" or kind == "prefill":
            raise Unknown(f"{NO_DATA}: of iPhones only decoding with MLX was published of enough models")
        weights = {**token.weights}
        weights[token.head] = weights.get(token.head, 0.0) + token.head_weights
        stored = sum(count * _mlx_bytes(scheme) for scheme, count in weights.items()) / sum(weights.values())
        return streamed_rate(_as_decoder(token, dict.fromkeys(schemes, "q4_0")), chip, context, stored)
    other = beside(target, kind, max(token.weights, key=token.weights.__getitem__))
    if "16" in schemes:
        raise Unknown(f"{NO_DATA}: weights in half precision were not measured on phones")
    kernels = {scheme: "q4_0" if scheme.startswith("4") else "q8_0" for scheme in schemes}
    return token_rate(_as_decoder(token, kernels), chip, kind, context, other=other)


def _as_decoder(token: TokenWork, kernels: Mapping[str, str]) -> Decoder:
    weights: dict[str, float] = {}
    for scheme, count in token.weights.items():
        weights[kernels[scheme]] = weights.get(kernels[scheme], 0.0) + count
    head = kernels[token.head], token.head_weights
    return Decoder(weights, head, token.layers, token.width, cached=token.cached)


def _mlx_bytes(scheme: str) -> float:
    """Of a weight, with scale and bias in float16 for each group."""
    bits, _, group = scheme.partition("g")
    return 2.0 if bits == "16" else int(bits) / 8 + (4 / int(group) if int(group) else 0)


# -- networks ------------------------------------------------------------------------------------------------------


def predict_network(work: Mapping[str, float], phone: str, precision: Precision = "w8a8") -> Modelled | str:
    """Seconds of a network's call in ONNX Runtime on a phone's processor.

    work: by the classes of `latency_model.NETWORK_CLASSES`. precision: "w8a8", products of integers; "w8a16", all
    products in float, as packages with 8-bit weights alone compute. Else the reason why there is none.
    """
    chip = known_chip(phone)
    return chip if isinstance(chip, str) else network_time(work, chip, precision)


def _stream(stream: StreamWork, target: str, profile: Profile) -> Found:
    names = ("first_frame", "frame_time")
    chip = _of(profile)
    if isinstance(chip, str):
        return dict.fromkeys(names, chip)
    if target != "onnx":
        return dict.fromkeys(names, f"{NO_DATA}: networks were published in ONNX Runtime alone, not in {target}")
    window, frame = (network_time(part, chip, "w8a16") if part else None for part in (stream.window, stream.frame))
    if isinstance(window, str) or isinstance(frame, str):
        return dict.fromkeys(names, str(window if isinstance(window, str) else frame))
    ahead = f", {stream.lookahead_ms} ms of look-ahead apart" if stream.lookahead_ms else ""
    first = _summed([(window, 1.0), (frame, 1.0)], f"once its sound is there{ahead}")
    each = _summed([(window, 1.0 / stream.frames), (frame, 1.0)], "its part of a window counted")
    return {} if first is None or each is None else {"first_frame": first, "frame_time": each}


def _summed(parts: list[tuple[Modelled | None, float]], at: str) -> Modelled | None:
    """Calls one after another: what one is off, the other is as well."""
    found = [(part, times) for part, times in parts if part is not None]
    if not found:
        return None
    value, low, high = (
        sum(times * end for end, times in ends)
        for ends in (
            [(part.value, times) for part, times in found],
            [(part.band[0], times) for part, times in found],
            [(part.band[1], times) for part, times in found],
        )
    )
    return replace(found[0][0], value=value, band=(low, high), at=at)


# -- phones --------------------------------------------------------------------------------------------------------


def _of(profile: Profile) -> Chip | str:
    """The profile's chip, or why there are no data of it. What the profile says of instruction sets counts."""
    if profile.platform == "android" and "dotprod" not in profile.cpu.isa.value:
        return NO_DOTPROD
    if profile.soc is None:
        return NO_CHIP
    return known_chip(profile.soc.value)
