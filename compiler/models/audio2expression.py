"""Audio2Expression of LAM: 16 kHz speech through a wav2vec2 encoder to ARKit blendshapes, 30 times a second.

One component, `expression`: a window of raw samples and who speaks, one-hot over the identities of training, to a
weight of 0 … 1 for each blendshape and frame. Tensors keep their published names; the weight norm of `pos_conv_embed`
is folded (`edgewright adopt`). What its forward never reads, a head for letters, a mask and a GRU, may lie beside them
and is left out. The variant with a transformer behind the encoder, `use_transformer`, is not supported.

config.json, with the published geometry as the default: `wav2vec2`, its encoder's own config, `num_identity_classes`,
`identity_feat_dim`, `hidden_dim`, `decoder_depth`, and `streaming` {window, hop, ahead} in frames: what is heard at
once, by how much it moves on, and how many at its end only give context.

Topology: github.com/aigc3d/LAM_Audio2Expression, models/network.py and models/encoder/wav2vec.py (Apache-2.0), and
transformers' modeling_wav2vec2.py, with features resampled from 50 to 30 a second before the transformer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from compiler.config import Keys
from compiler.models.base import Component, Entry, Model, Port
from compiler.models.network import Layers, Shapes, Tensors, Value
from compiler.slots import Schemes, Slot
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

V = TypeVar("V")
MODEL_TYPES = ("audio2expression",)
PREFIX = "backbone."
_ENCODER = f"{PREFIX}audio_encoder."
_RATE, _FPS = 16000, 30
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
_EYES = ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")
_SIDES = ("Left", "Right")


def _both(*names: str) -> list[str]:
    return [f"{name}{side}" for name in names for side in _SIDES]


# in the order of the outputs
BLENDSHAPES = (
    *_both("browDown"),
    "browInnerUp",
    *_both("browOuterUp"),
    "cheekPuff",
    *_both("cheekSquint"),
    *_both(*(f"eye{what}" for what in _EYES)),
    *("jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose"),
    *_both("mouthDimple", "mouthFrown"),
    *("mouthFunnel", "mouthLeft"),
    *_both("mouthLowerDown", "mouthPress"),
    *("mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *_both("mouthSmile", "mouthStretch", "mouthUpperUp", "noseSneer"),
    "tongueOut",
)


@dataclass(frozen=True)
class Spec:
    """The geometry. samples: of a window; frames: that come of it."""

    convolutions: tuple[tuple[int, int, int], ...]  # outputs, kernel, stride
    hidden: int
    layers: int
    heads: int
    intermediate: int
    places: int
    place_groups: int
    identities: int
    identity: int
    width: int
    depth: int
    frames: int

    @property
    def samples(self) -> int:
        return _RATE * self.frames // _FPS


def read(config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int) -> Model:
    """See `Family`. Raises CheckpointError."""
    keys = Keys(config)
    if keys.flag("use_transformer", False):
        raise keys.error("use_transformer", "must be false: the offline variant is not supported")
    folded = f"{_ENCODER}encoder.pos_conv_embed.conv.weight"
    if tensors is not None and folded not in tensors and any(name.startswith(folded[:-6]) for name in tensors):
        raise CheckpointError(f"tensor {folded!r} is in parts, a weight norm that is not folded; run edgewright adopt")
    stream = keys.section("streaming")
    window = stream.integer("window", 2, 1 << 12, 64)
    hop, ahead = stream.integer("hop", 1, window, 30), stream.integer("ahead", 0, window - 1, 0)
    if hop + ahead > window:
        raise CheckpointError(f"config.json: streaming.hop {hop} and ahead {ahead} must fit into the window, {window}")
    spec = _read_spec(keys, window)
    constants: dict[str, Any] = {
        "audio": {
            "sample_rate": _RATE,
            "samples": spec.samples,
            "tokens_per_second": _FPS,
            "tokens": window,
            "hop": hop,
            "ahead": ahead,
        },
        "frames": {"rate": _FPS, "tokens": 1, "before": 0, "ahead": 0, "lookahead_ms": ahead * 1000 // _FPS},
        "blendshapes": list(BLENDSHAPES),
        "identities": spec.identities,
    }
    return Model("audio2expression", (_component(spec),), "talking_head", constants, vars(spec), config)


def _read_spec(keys: Keys, frames: int) -> Spec:
    section = keys.section("wav2vec2")
    section.word("feat_extract_norm", ("group",), "group")
    section.word("hidden_act", ("gelu",), "gelu")
    section.word("feat_extract_activation", ("gelu",), "gelu")
    for key in ("do_stable_layer_norm", "conv_bias"):
        if section.flag(key, False):
            raise section.error(key, "must be false")
    kernels = section.integers("conv_kernel", range(1, 17), _KERNELS)
    widths, strides = (
        section.integers(key, range(1, 17), default)
        for key, default in (("conv_dim", (512,) * 7), ("conv_stride", _STRIDES))
    )
    if not len(widths) == len(kernels) == len(strides):
        raise CheckpointError("config.json: wav2vec2.conv_dim, conv_kernel and conv_stride must be of one length")
    hidden = section.integer("hidden_size", 1, 1 << 14, 768)
    spec = Spec(
        convolutions=tuple(zip(widths, kernels, strides, strict=True)),
        hidden=hidden,
        layers=section.integer("num_hidden_layers", 1, 1 << 10, 12),
        heads=section.integer("num_attention_heads", 1, 1 << 10, 12),
        intermediate=section.integer("intermediate_size", 1, 1 << 16, 3072),
        places=section.integer("num_conv_pos_embeddings", 2, 1 << 12, 128),
        place_groups=section.integer("num_conv_pos_embedding_groups", 1, 1 << 12, 16),
        identities=keys.integer("num_identity_classes", 1, 1 << 20, 12),
        identity=keys.integer("identity_feat_dim", 1, 1 << 14, 64),
        width=keys.integer("hidden_dim", 1, 1 << 14, 512),
        depth=keys.integer("decoder_depth", 1, 1 << 10, 3),
        frames=frames,
    )
    keys.integer("expression_dim", len(BLENDSHAPES), len(BLENDSHAPES), len(BLENDSHAPES))
    for key, parts in (("num_attention_heads", spec.heads), ("num_conv_pos_embedding_groups", spec.place_groups)):
        if hidden % parts:
            raise CheckpointError(f"config.json: wav2vec2.hidden_size {hidden} does not divide over {key}, {parts}")
    return spec


def _encoded(layers: Layers[V], spec: Spec, audio: V) -> V:
    """[1, 1, samples] -> [1, frames, hidden]."""
    x = audio
    for i, (width, kernel, stride) in enumerate(spec.convolutions):
        name = f"{_ENCODER}feature_extractor.conv_layers.{i}."
        x = layers.convolution(x, f"{name}conv", width, (kernel,), stride=(stride,), bias=False)
        x = layers.pointwise(layers.group_norm(x, f"{name}layer_norm", width) if i == 0 else x, "gelu")
    x = layers.swapped(layers.resized(x, (spec.frames,)))
    x = layers.layer_norm(x, f"{_ENCODER}feature_projection.layer_norm")
    x = layers.linear(x, f"{_ENCODER}feature_projection.projection", spec.hidden)
    places = layers.convolution(
        layers.swapped(x),
        f"{_ENCODER}encoder.pos_conv_embed.conv",
        spec.hidden,
        (spec.places,),
        padding=spec.places // 2,
        groups=spec.place_groups,
    )
    if spec.places % 2 == 0:  # one more place than there are frames
        places = layers.first(places, spec.frames)
    x = layers.add(x, layers.swapped(layers.pointwise(places, "gelu")))
    x = layers.layer_norm(x, f"{_ENCODER}encoder.layer_norm")
    for i in range(spec.layers):
        name = f"{_ENCODER}encoder.layers.{i}."
        q, k, v = (f"{name}attention.{which}_proj" for which in "qkv")
        y = layers.linear(layers.attention(x, (q, k, v), spec.heads), f"{name}attention.out_proj", spec.hidden)
        x = layers.layer_norm(layers.add(x, y), f"{name}layer_norm")
        y = layers.pointwise(layers.linear(x, f"{name}feed_forward.intermediate_dense", spec.intermediate), "gelu")
        y = layers.linear(y, f"{name}feed_forward.output_dense", spec.hidden)
        x = layers.layer_norm(layers.add(x, y), f"{name}final_layer_norm")
    return x


def _normed(layers: Layers[V], spec: Spec, x: V, name: str) -> V:
    """A convolution over three frames and a norm of each frame."""
    y = layers.convolution(x, f"{name}.conv", spec.width, (3,), padding=1)
    return layers.swapped(layers.layer_norm(layers.swapped(y), f"{name}.norm"))


def _expressed(layers: Layers[V], spec: Spec, audio: V, identity: V) -> V:
    """[1, 1, samples] and [1, identities, 1] -> [1, frames, blendshapes]."""
    x = layers.linear(_encoded(layers, spec, audio), f"{PREFIX}feature_projection", spec.width)
    who = layers.convolution(identity, f"{PREFIX}identity_encoder.id_mlp", spec.identity, (1,))
    x = layers.concatenate(layers.swapped(x), layers.repeated(who, spec.frames))
    for i in range(3):
        name = f"{PREFIX}identity_encoder.first_net.conv_layers.{i}"
        y = _normed(layers, spec, x, name)
        past = x if i else layers.convolution(x, f"{name}.residual_layer.0", spec.width, (3,), padding=1)
        x = layers.pointwise(layers.add(y, past), "relu")
    for i in range(spec.depth):
        x = layers.pointwise(_normed(layers, spec, x, f"{PREFIX}decoder.0.{i}"), "relu")
    x = layers.linear(layers.swapped(x), f"{PREFIX}output_proj", len(BLENDSHAPES))
    return layers.pointwise(x, "sigmoid")


def _component(spec: Spec) -> Component:
    """Entry express: a window of raw samples and a one-hot identity to weights, 0 … 1."""
    shapes = Shapes()
    frames = _expressed(shapes, spec, Value((1, 1, spec.samples)), Value((1, spec.identities, 1))).shape
    inputs = Port("audio", "float32", (1, spec.samples)), Port("identity", "float32", (1, spec.identities))
    layers = [f"{_ENCODER}encoder.layers.{i}." for i in range(spec.layers)]
    return Component(
        name="expression",
        slots=tuple(shapes.slots),
        entries=(Entry("express", inputs, (Port("expression", "float32", frames),)),),
        module=partial(_module, spec, tuple(shapes.slots)),
        live=shapes.live,
        work=shapes.work,
        fused=tuple(shapes.fused),
        cuts=(f"{_ENCODER}feature_projection.", *layers, f"{PREFIX}feature_projection"),
    )


def _module(spec: Spec, slots: tuple[Slot, ...], entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """forward(audio float32 [1, samples], identity float32 [1, identities]) -> expression float32 [1, frames, 52]."""
    import torch

    layers = Tensors(slots, schemes)

    class Expression(torch.nn.Module):
        def forward(self, audio: torch.Tensor, identity: torch.Tensor) -> tuple[torch.Tensor]:
            return (_expressed(layers, spec, audio[:, None], identity[..., None]),)

    return Expression()
