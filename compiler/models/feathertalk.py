"""FeatherTalk: a talking face drawn from speech, by FeatherHuBERT and the small U-Net of Ultralight-Digital-Human.

Two components: `audio`, 16 kHz speech to features of 20 ms each, and `renderer`, a picture of a face with its mouth
covered and the features around one video frame to that face talking. Two published state dicts stand in one
model.safetensors, each tensor under its published name behind a prefix for its component: `feather_hubert.` and
`unet.`. Batch norms are folded into the convolutions before them, which then have a bias, and MobileOne's branches into
one convolution, called `reparam_conv` as published: `edgewright adopt` does both. Without tensors of an encoder, or
with `audio: wenet`, the renderer stands alone, and features come from elsewhere.

config.json, with the published geometry as the default: `channels` of the five levels, `variant` original or mobileone,
`audio` hubert or wenet, `size` of the picture, which its features decide, `feather_hubert` {channels, expansion,
num_blocks, output_dim, frontend: channels of its first four layers}, null without an encoder, and `streaming` {window,
hop, ahead}, tokens of 20 ms: what the encoder hears at once, by how much it moves on, and how many at its end only
give context.

Topology: github.com/anliyuan/FeatherTalk, unet.py, unet_mobileone.py, data_utils/feather_hubert (Apache-2.0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from compiler.config import Keys
from compiler.models.base import Component, Entry, Model, Port
from compiler.models.network import Layers, Shapes, Tensors, Value
from compiler.slots import Schemes
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

V = TypeVar("V")
MODEL_TYPES = ("feathertalk",)
UNET, ENCODER = "unet.", "feather_hubert."
_LEVELS = 5
_PICTURES = 6  # channels of a reference and of the current picture, blue first
_WINDOW, _AHEAD, _TOKENS = 8, 3, 2  # video frames that the renderer hears, how many of them to come; tokens of each
_RATE, _STRIDE, _KERNEL = 16000, 320, 400
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
_DILATIONS = (1, 2, 4, 8)
_NORMALIZED_EPS = 1e-7
_FPS = {"hubert": 25, "wenet": 20}


@dataclass(frozen=True)
class Encoder:
    """FeatherHuBERT's geometry; the widths of its seven first convolutions, then of all blocks."""

    frontend: tuple[int, ...]
    channels: int
    expansion: int
    blocks: int
    outputs: int


@dataclass(frozen=True)
class Renderer:
    """The U-Net's geometry. audio: the features of one frame, [channels, height, width]."""

    size: int
    channels: tuple[int, ...]
    mobileone: bool
    heard: Literal["hubert", "wenet"]
    audio: tuple[int, int, int]


def read(config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int) -> Model:
    """See `Family`. Raises CheckpointError for a geometry that does not fit together, and for norms that are not
    folded."""
    _refuse_unfolded(tensors or ())
    keys = Keys(config)
    encoder, renderer = _read_encoder(keys), _read_renderer(keys)
    components = [_renderer_component(renderer)]
    constants: dict[str, Any] = {"picture": _picture(renderer), "frames": _frames(renderer)}
    if encoder is not None:
        if renderer.heard != "hubert":
            raise CheckpointError("config.json: feather_hubert must be null where audio is wenet")
        stream = keys.section("streaming")
        window = stream.integer("window", 2, 1 << 15, 100)
        hop, ahead = stream.integer("hop", 1, window, 10), stream.integer("ahead", 0, window - 1, 8)
        if hop + ahead > window or any(tokens % _TOKENS for tokens in (window, hop, ahead)):
            raise CheckpointError(
                f"config.json: streaming.hop {hop} and ahead {ahead} must be even, and fit into the window, {window}, "
                "which is even too"
            )
        components.insert(0, _audio_component(encoder, window))
        constants["audio"] = _listened(window, hop, ahead)
        constants["frames"] |= {"tokens": _TOKENS, "lookahead_ms": (ahead // _TOKENS + _AHEAD) * 1000 // _FPS["hubert"]}
    driver = "plain" if encoder is None else "talking_head"
    return Model("feathertalk", tuple(components), driver, constants, _geometry(encoder, renderer), config)


def _geometry(encoder: Encoder | None, renderer: Renderer) -> dict[str, Any]:
    return {"renderer": vars(renderer), "encoder": encoder and vars(encoder)}


def _refuse_unfolded(tensors: Collection[str]) -> None:
    unfolded = next((name for name in tensors if re.search(r"\.(running_mean|rbr_\w+)\b", name)), None)
    if unfolded:
        raise CheckpointError(f"tensor {unfolded!r} belongs to a norm that is not folded; run edgewright adopt")


def _read_encoder(keys: Keys) -> Encoder | None:
    if "feather_hubert" in keys.values and "feather_hubert" not in keys:
        return None
    section = keys.section("feather_hubert")
    channels = section.integer("channels", 1, 1 << 14, 512)
    first = section.integers("frontend", range(4, 5), (64, 128, 256, 384))
    return Encoder(
        frontend=(*first, channels, channels, channels),
        channels=channels,
        expansion=section.integer("expansion", 1, 64, 2),
        blocks=section.integer("num_blocks", 1, 1 << 10, 12),
        outputs=section.integer("output_dim", 1, 1 << 14, 1024),
    )


def _read_renderer(keys: Keys) -> Renderer:
    channels = keys.integers("channels", range(_LEVELS, _LEVELS + 1), (32, 64, 128, 256, 512))
    if any(width % 2 for width in channels[1:4]):
        raise keys.error("channels", "must be even from the second to the fourth level, half of which go up again")
    heard = cast(Literal["hubert", "wenet"], keys.word("audio", ("hubert", "wenet"), "hubert"))
    outputs = keys.section("feather_hubert").integer("output_dim", 1, 1 << 14, 1024)
    side = math.isqrt(outputs)
    if side * side != outputs:
        raise CheckpointError(f"config.json: feather_hubert.output_dim must be a square, not {outputs}")
    audio = (_WINDOW * _TOKENS, side, side) if heard == "hubert" else (channels[2], 16, 32)
    variant = keys.word("variant", ("original", "mobileone"), "original")
    renderer = Renderer(size=0, channels=channels, mobileone=variant == "mobileone", heard=heard, audio=audio)
    height, width = _audio(Shapes(), renderer, Value((1, *audio))).shape[2:]
    size = keys.integer("size", 32, 1 << 12, 16 * height)
    if (16 * height, 16 * width) != (size, size):
        raise CheckpointError(
            f"config.json: size must be {16 * height}, not {size}: features of {audio[1]} x {audio[2]} become "
            f"{height} x {width}, which meet a sixteenth of the picture"
        )
    return replace(renderer, size=size)


def _picture(renderer: Renderer) -> dict[str, Any]:
    """In pixels. crop: the square that is cut out, of which `size` is left within the border; mouth: x, y, width and
    height of what is black in the current picture."""
    size = renderer.size
    return {
        "size": size,
        "crop": size + 2 * (size // 20 // 2),
        "border": size // 20 // 2,
        "mouth": [size // 32, size // 32, size * 15 // 16, size * 29 // 32],
        "channels": "bgr",
        "scale": 255,
    }


def _frames(renderer: Renderer) -> dict[str, Any]:
    """Video frames whose features the renderer hears for one: `before` it, itself, and `ahead`; zeros where there are
    none."""
    return {
        "rate": _FPS[renderer.heard],
        "before": _WINDOW - 1 - _AHEAD,
        "ahead": _AHEAD,
        "features": list(renderer.audio),
    }


def _listened(window: int, hop: int, ahead: int) -> dict[str, Any]:
    """The definition of a stream: `artifacts.formats.talking_head.Audio`."""
    return {
        "sample_rate": _RATE,
        "samples": _samples(window),
        "tokens_per_second": _RATE // _STRIDE,
        "tokens": window,
        "hop": hop,
        "ahead": ahead,
        "normalization_eps": _NORMALIZED_EPS,
    }


def _samples(tokens: int) -> int:
    return tokens * _STRIDE + _KERNEL - _STRIDE


# -- the encoder ------------------------------------------------------------------------------------------------


def _encoded(layers: Layers[V], encoder: Encoder, waveform: V) -> V:
    """[1, 1, samples] -> [1, tokens, outputs]."""
    x = waveform
    for i, (width, kernel, stride) in enumerate(zip(encoder.frontend, _KERNELS, _STRIDES, strict=True)):
        name = f"{ENCODER}frontend.layers.{i}."
        x = layers.convolution(x, f"{name}conv", width, (kernel,), stride=(stride,), bias=False)
        x = layers.pointwise(layers.group_norm(x, f"{name}norm", _groups(width)), "gelu")
    hidden = encoder.channels * encoder.expansion
    for i in range(encoder.blocks):
        name, dilation = f"{ENCODER}encoder.{i}.", _DILATIONS[i % len(_DILATIONS)]
        y = layers.group_norm(x, f"{name}norm", _groups(encoder.channels))
        y = layers.convolution(y, f"{name}pw_expand", hidden, (1,), bias=False)
        y = layers.convolution(
            y, f"{name}dw_conv", hidden, (5,), padding=2 * dilation, dilation=dilation, groups=hidden, bias=False
        )
        y = layers.pointwise(y, "gelu")
        x = layers.add(x, layers.convolution(y, f"{name}pw_project", encoder.channels, (1,), bias=False))
    x = layers.pointwise(layers.group_norm(x, f"{ENCODER}final_norm", _groups(encoder.channels)), "gelu")
    return layers.swapped(layers.convolution(x, f"{ENCODER}proj", encoder.outputs, (1,)))


def _groups(channels: int) -> int:
    """The most groups, of a power of two up to 32, that divide the channels."""
    return next((groups for groups in (32, 16, 8, 4, 2) if channels % groups == 0), 1)


def _audio_component(encoder: Encoder, window: int) -> Component:
    """Entry encode: a normalized window of speech to its tokens."""
    shapes = Shapes()
    samples = _samples(window)
    tokens = _encoded(shapes, encoder, Value((1, 1, samples))).shape
    assert tokens == (1, window, encoder.outputs)
    return Component(
        name="audio",
        slots=tuple(shapes.slots),
        entries=(Entry("encode", (Port("waveform", "float32", (1, samples)),), (Port("hidden", "float32", tokens),)),),
        module=partial(_audio_module, encoder),
        live=shapes.live,
        work=shapes.work,
        cuts=tuple(f"{ENCODER}encoder.{i}." for i in range(encoder.blocks)),
    )


def _audio_module(encoder: Encoder, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """forward(waveform float32 [1, samples]) -> hidden float32 [1, tokens, outputs]."""
    import torch

    layers = Tensors((), schemes)

    class Audio(torch.nn.Module):
        def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor]:
            return (_encoded(layers, encoder, waveform[:, None]),)

    return Audio()


# -- the renderer -----------------------------------------------------------------------------------------------


def _block(layers: Layers[V], x: V, name: str, mobileone: bool, outputs: int, stride: int = 1, adds: bool = False) -> V:
    """An inverted residual (expand, depthwise, project), or MobileOne's depthwise and pointwise convolution."""
    steps, inputs = (stride, stride), layers.channels(x)
    if mobileone:
        depthwise = f"{name}.depthwise.reparam_conv"
        y = layers.convolution(x, depthwise, inputs, (3, 3), stride=steps, padding=1, groups=inputs)
        y = layers.pointwise(y, "relu")
        y = layers.pointwise(layers.convolution(y, f"{name}.pointwise.reparam_conv", outputs, (1, 1)), "relu")
    else:
        wide = 2 * inputs
        y = layers.pointwise(layers.convolution(x, f"{name}.conv.0", wide, (1, 1)), "relu")
        y = layers.convolution(y, f"{name}.conv.3", wide, (3, 3), stride=steps, padding=1, groups=wide)
        y = layers.convolution(layers.pointwise(y, "relu"), f"{name}.conv.6", outputs, (1, 1))
    return layers.add(x, y) if adds else y


def _double(layers: Layers[V], x: V, name: str, mobileone: bool, outputs: int, stride: int = 1) -> V:
    x = _block(layers, x, f"{name}.double_conv.0", mobileone, outputs, stride)
    return _block(layers, x, f"{name}.double_conv.1", mobileone, outputs, adds=True)


def _audio(layers: Layers[V], renderer: Renderer, x: V) -> V:
    """The branch that hears: features of a frame to [1, channels, size / 16, size / 16]."""
    mobileone, (_, low, middle, high, top) = renderer.mobileone, renderer.channels
    name = f"{UNET}audio_model.conv"
    hubert = renderer.heard == "hubert"
    x = _block(layers, x, f"{name}1", mobileone, low if hubert else high)
    x = _block(layers, x, f"{name}2", mobileone, middle if hubert else high, adds=not hubert)
    third, fifth = (f"{name}3.reparam_conv", f"{name}5.block.0") if mobileone else (f"{name}3", f"{name}5")
    x = layers.convolution(x, third, high, (3, 3), stride=(2, 2) if hubert else (1, 2), padding=1)
    x = _block(layers, layers.pointwise(x, "relu"), f"{name}4", mobileone, high, adds=True)
    x = layers.pointwise(layers.convolution(x, fifth, top, (3, 3), stride=(2, 2), padding=3), "relu")
    x = _block(layers, x, f"{name}6", mobileone, top, adds=True)
    return _block(layers, x, f"{name}7", mobileone, top, adds=True)


def _rendered(layers: Layers[V], renderer: Renderer, image: V, audio: V) -> V:
    """[1, 6, size, size] and the features of a frame -> [1, 3, size, size]."""
    mobileone, c, size = renderer.mobileone, renderer.channels, renderer.size
    down = [_block(layers, image, f"{UNET}inc.inconv", mobileone, c[0])]
    for i in range(1, _LEVELS):
        down.append(_double(layers, down[-1], f"{UNET}down{i}.maxpool_conv", mobileone, c[i], 2))
    x = layers.concatenate(down.pop(), _audio(layers, renderer, audio))
    x = _double(layers, x, f"{UNET}fuse_conv.0", mobileone, c[4])
    x = _double(layers, x, f"{UNET}fuse_conv.1", mobileone, c[3])
    for i in range(1, _LEVELS):
        edge = size >> (4 - i)
        x = layers.concatenate(layers.resized(x, (edge, edge)), down.pop())
        x = _double(layers, x, f"{UNET}up{i}.conv", mobileone, c[4 - i] // 2 if i < _LEVELS - 1 else c[0])
    return layers.pointwise(layers.convolution(x, f"{UNET}outc.conv", 3, (1, 1)), "sigmoid")


def _renderer_component(renderer: Renderer) -> Component:
    """Entry frame: a picture and the features around it to the picture that talks, 0 … 1."""
    shapes = Shapes()
    image, audio = (1, _PICTURES, renderer.size, renderer.size), (1, *renderer.audio)
    picture = _rendered(shapes, renderer, Value(image), Value(audio)).shape
    inputs = Port("image", "float32", image), Port("audio", "float32", audio)
    return Component(
        name="renderer",
        slots=tuple(shapes.slots),
        entries=(Entry("frame", inputs, (Port("picture", "float32", picture),)),),
        module=partial(_renderer_module, renderer),
        live=shapes.live,
        work=shapes.work,
        cuts=tuple(f"{UNET}{part}." for part in ("audio_model", "fuse_conv", "up1", "up2", "up3", "up4", "outc")),
    )


def _renderer_module(renderer: Renderer, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """forward(image float32 [1, 6, size, size], audio float32 [1, …]) -> picture float32 [1, 3, size, size]."""
    import torch

    layers = Tensors((), schemes)

    class Frame(torch.nn.Module):
        def forward(self, image: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor]:
            return (_rendered(layers, renderer, image, audio),)

    return Frame()
