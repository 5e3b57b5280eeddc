"""Seconds of a call from counted work and a phone's rates: the formulas, and nothing that was fitted.

What lives here: what a token and a network's call consist of, and how their time adds up; ``calibration`` fits the
rates by the same functions, ``latency`` predicts with them. What must not: coefficients, phones, bands.

Decode: t = speed · Σ over kernels (weights · cost of the kernel) + layers · overhead + attention, where the kernel of a
quantization counts and not its bytes: a bandwidth term added nothing on the phones that were measured. The embedding
look-up is left out; decode includes the head, prefill does not. Attention over a context of c positions is
2 · layers · heads · head_dim · c multiply-adds, windows capped, and costs more a position the longer the context is:
· (c / 4096) ** exponent. A prompt sees half of its length on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["decode", "prefill"]
LONG = 4096  # positions at which the attention rate is stated
# llama.cpp keeps the head in Q6_K, whatever the file is called, but for Q8_0
_HEAD = {"q8_0": "q8_0"}


@dataclass(frozen=True)
class Decoder:
    """One token through a text decoder.

    weights: multiply-adds of its layers by kernel, without embedding and head; head: kernel and multiply-adds.
    layers: in layers of a plain decoder (see `Geometry.layer_cost`). full: heads times head_dim over all layers that
    look at the whole context; windowed: over those that look at the last `window` positions. cached: values of keys and
    values that one position adds.
    """

    weights: Mapping[str, float]
    head: tuple[str, float]
    layers: float
    full: float
    windowed: float = 0.0
    window: int = 0
    cached: float = 0.0


@dataclass(frozen=True)
class Geometry:
    """A decoder by its config: what `predict` takes for a model that is no recipe.

    weights: multiply-adds of one token in all layers, where these are not plain (hybrids, mixtures: the active ones);
    None: counted. full_layers: those that look at the whole context (None: all), with heads of full_head_dim (None:
    head_dim); window_layers: those that look at the last `window` positions. layer_cost: operators of a layer beside
    those of a plain one: 1.9 for three gated-delta layers in four, 1.7 for Gemma 3n and 4, 0.9 for LFM2.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    weights: float | None = None
    full_layers: int | None = None
    full_head_dim: int | None = None
    window_layers: int = 0
    window: int = 0
    layer_cost: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether all layers are full attention and a gated MLP: what the narrow bands were found on."""
        return self.weights is None and self.full_layers in (None, self.layers) and not self.window_layers

    def decoder(self, kernel: str) -> Decoder:
        """The work of a token, quantized by one of llama.cpp's kernels, as in "q4_0"."""
        width = self.heads * self.head_dim
        layer = 2 * self.hidden * (width + self.kv_heads * self.head_dim) + 3 * self.hidden * self.intermediate
        full = self.layers if self.full_layers is None else self.full_layers
        full_dim = self.full_head_dim or self.head_dim
        return Decoder(
            weights={kernel: float(self.layers * layer) if self.weights is None else self.weights},
            head=(_HEAD.get(kernel, "q6_k"), float(self.vocab * self.hidden)),
            layers=self.layers * self.layer_cost,
            full=float(full * self.heads * full_dim),
            windowed=float(self.window_layers * width),
            window=self.window,
            cached=2.0 * self.kv_heads * (full * full_dim + self.window_layers * self.head_dim),
        )


def attention_gmac(decoder: Decoder, context: float, kind: Kind) -> float:
    """1e9 multiply-adds of one token's attention where `context` tokens are there (decode) or are to be read."""
    seen = context if kind == "decode" else context / 2
    return 2e-9 * (decoder.full * seen + decoder.windowed * min(seen, decoder.window))


@dataclass(frozen=True)
class Rates:
    """A phone's, of one runtime: ms for 1e9 weights of Q4_0, kernels beside that, ms of a layer's overhead, and 1e9
    multiply-adds a second of attention at a context of 4,096 with the exponent of its growth."""

    speed: float
    kernels: Mapping[str, float]
    layer: float
    attention: float
    exponent: float


def token_ms(decoder: Decoder, rates: Rates, context: float, kind: Kind) -> tuple[float, float]:
    """ms of one token without attention, and of attention alone; `kind` prefill: of each token of a prompt of `context`
    tokens. Raises KeyError for a kernel without a rate."""
    work = sum(weights * rates.kernels[kernel] for kernel, weights in decoder.weights.items())
    if kind == "decode":
        work += decoder.head[1] * rates.kernels[decoder.head[0]]
    attention = 1e3 * attention_gmac(decoder, context, kind) / rates.attention * (context / LONG) ** rates.exponent
    return rates.speed * work * 1e-9 + rates.layer * decoder.layers, attention


def streamed_ms(decoder: Decoder, bytes_per_weight: float, context: float, rate: float, layer: float) -> float:
    """ms of one token where memory is the limit, as on Apple's GPUs: bytes of weights and of the cache in float16 at
    `rate` 1e9 bytes a second, and `layer` ms of each layer."""
    weights = (sum(decoder.weights.values()) + decoder.head[1]) * bytes_per_weight
    return 1e-6 * (weights + 2 * decoder.cached * context) / rate + layer * decoder.layers


NETWORK_CLASSES = (
    "conv",
    "conv3d",
    "grouped",
    "depthwise",
    "matmul",
    "normed",
    "activated",
    "moved",
    "read",
    "written",
    "kernels",
    "layers",
)
"""Work of a network's call. Multiply-adds: conv (one and two dimensions, one group), conv3d, grouped, depthwise, matmul
(linear layers and attention). Elements: normed (norms tenfold, gelu fourfold, softmax twofold: what they take),
activated (all of these and sigmoids once), moved (additions, pooling, resizing, concatenation), read and written by
convolutions and matmuls. kernels: operators that compute; layers: all operators."""


def network_terms(work: Mapping[str, float], precision: str) -> dict[str, float]:
    """What costs something, in 1e9 multiply-adds, 1e6 elements and 1e2 operators.

    precision "w8a8": integer convolutions, matmuls at float rates. "w8a16": every product at float rates, 1-D to 3-D.
    """
    g, m, n = 1e-9, 1e-6, 1e-2
    terms = {"depthwise": g * work["depthwise"]}
    if precision == "w8a8":
        return terms | {
            "grouped": g * work["grouped"],
            "conv": g * work["conv"],
            "conv3d": g * work["conv3d"],
            "matmul": g * work["matmul"],
            "activated": m * (work["normed"] + work["activated"]),
            "touched": m * (work["read"] + work["written"]),
            "operators": n * work["kernels"],
        }
    return terms | {
        "products": g * (work["conv"] + work["conv3d"] + work["grouped"] + work["matmul"]),
        "activated": m * (work["normed"] + 3 * work["activated"]),
        "touched": m * (work["moved"] + work["read"] + work["written"]),
        "operators": n * work["layers"],
    }
