"""INT8 scales of the KV cache, measured: what keys and values look like on calibration text, after the rotation.

One scale for each channel of each key-value head, or one for each cache tensor. The cache of the dialect's reference
is what is looked at, so keys are the rotated ones that runtimes store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compiler.models.base import Component, Entry
from compiler.slots import Schemes, Weights

Float32 = NDArray[np.float32]
Granularity = Literal["channel", "tensor"]

TOKENS = 1024
# text that was not looked at goes a little further; what goes further still is clipped
_HEADROOM = 1.25


@dataclass(frozen=True)
class CacheScales:
    """Scales of one layer, float32 [kv_heads * head_dim] or [1]: a cached value is code * scale.

    key_snr_db, value_snr_db: signal-to-noise ratio of the rounded cache on the text that was looked at.
    """

    key: Float32
    value: Float32
    key_snr_db: float
    value_snr_db: float


def measure(
    component: Component,
    entry: Entry,
    schemes: Schemes,
    weights: Weights,
    inputs: Mapping[str, NDArray[Any]],
    granularity: Granularity,
) -> list[CacheScales]:
    """Run an entry over `inputs` from empty caches; scales of each pair of states that it wrote.

    The component's states are keys and values [batch, kv_heads, max_tokens, head_dim] of one attention after another.
    """
    import torch

    from compiler import dialect

    empty = [torch.zeros(state.sized({})) for state in component.states]
    with torch.no_grad(), dialect.weights(weights):
        given = [torch.from_numpy(inputs[port.name]) for port in entry.inputs]
        caches = component.module(entry, schemes)(*given, *empty)[len(entry.outputs) :]
    found = []
    for key, value in zip(caches[0::2], caches[1::2], strict=True):
        keys, values = key.numpy()[0], value.numpy()[0]
        first, second = np.split(keys, 2, -1)
        # the rotation turns each pair of channels: how far it can reach at other positions is its length
        reach = np.tile(np.hypot(first, second), 2)
        key_scale, key_snr = _scale(keys, reach, granularity)
        value_scale, value_snr = _scale(values, np.abs(values), granularity)
        found.append(CacheScales(key_scale, value_scale, key_snr, value_snr))
    return found


def _scale(cache: Float32, reach: Float32, granularity: Granularity) -> tuple[Float32, float]:
    """Scale of a cache [kv_heads, positions, head_dim], and the signal-to-noise ratio in dB that it gives.

    reach: the magnitude to cover, shaped like the cache.
    """
    axes = (1,) if granularity == "channel" else (0, 1, 2)
    largest = reach.max(axes, keepdims=True)
    scale = np.where(largest > 0, largest * _HEADROOM / 127, 1.0).astype(np.float32)
    wrong = np.clip(np.round(cache / scale), -128, 127) * scale - cache
    signal, noise = float(np.square(cache).sum()), float(np.square(wrong).sum())
    snr = 10 * math.log10(signal / noise) if noise else math.inf
    return scale.reshape(-1), snr
