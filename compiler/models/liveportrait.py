"""LivePortrait: a picture of somebody moved as somebody else moves, by implicit keypoints and a warped feature volume.

Five components: `appearance` and `motion` look at a picture, `retargeting` corrects keypoints (entries stitch, eyes and
lips), `warping` moves the volume, `generator` draws. Five published state dicts stand in one model.safetensors, each
tensor under its published name behind a prefix for its file: `appearance_feature_extractor.`, `motion_extractor.`,
`warping_module.`, `spade_generator.`, and `stitching_retargeting_module.` with the names of its three dicts. Batch
norms are folded into the convolutions before them, spectral norms into their weights, and a batch norm that stands
before a convolution is a factor and a bias: `edgewright adopt` does so.

It is the quality end, and no real-time model on a phone's CPU: a frame is 623 thousand million multiplications. What an
app computes once, what for every frame, and how keypoints come of a pose is in the constants.

config.json, with the published geometry as the default: `size` of the pictures that go in, and the sections of the
project's models.yaml, `appearance_feature_extractor_params` and so on, with what is fixed there: `num_bins`, `dims` and
`depths` of the motion extractor, `out_channels` and `nhidden` of the generator.

Topology and the formula of keypoints: github.com/KwaiVGI/LivePortrait (MIT).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from compiler.config import Keys
from compiler.models.base import Component, Entry, Model, Port
from compiler.models.liveportrait_networks import (
    HEADS,
    MLPS,
    Spec,
    estimated,
    extracted,
    generated,
    retargeted,
    warped,
)
from compiler.models.network import Shapes, Tensors, Value
from compiler.slots import Schemes, Slot
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("liveportrait",)
_HIDDEN = {"stitching": [128, 128, 64], "eye": [256, 256, 128, 128, 64], "lip": [128, 128, 64]}
_GIVEN = {"eye": 3, "lip": 2}  # beside the keypoints: how far eyes and lips are open
_ENTRIES = {"stitch": "stitching", "eyes": "eye", "lips": "lip"}
_DEGREES = {"bins": 3.0, "first": -97.5}
_CALLED = {
    "once": ("appearance.extract", "motion.estimate"),
    "each": ("motion.estimate", "retargeting.stitch", "warping.warp", "generator.generate"),
    "closing": ("retargeting.eyes", "retargeting.lips"),
}
_UNFOLDED = re.compile(r"\.(running_mean|weight_orig|parametrizations)\b")


def read(config: Mapping[str, Any], tensors: Collection[str] | None, max_tokens: int) -> Model:
    """See `Family`. Raises CheckpointError for a geometry that does not fit together, and for norms that are not
    folded."""
    unfolded = next((name for name in tensors or () if _UNFOLDED.search(name)), None)
    if unfolded:
        raise CheckpointError(f"tensor {unfolded!r} belongs to a norm that is not folded; run edgewright adopt")
    spec = _spec_of(Keys(config))
    built = [_component(spec, name, entries) for name, entries in _entries(spec).items()]
    macs = {f"{c.name}.{entry}": count for c, counts in built for entry, count in counts.items()}
    components = tuple(component for component, _ in built)
    return Model("liveportrait", components, "plain", _constants(spec, macs), asdict(spec), config)


def _constants(spec: Spec, macs: Mapping[str, int]) -> dict[str, Any]:
    """frames: what is called once for a portrait, what for every frame, what where eyes and lips are to close, each
    with its multiplications. keypoints: one is scale * (kp @ rotation + exp) + t, without t's z; rotation is Rz Ry Rx,
    transposed, of pitch, yaw and roll in degrees, each the mean of first + bins * i under the softmax of its bins. What
    stitch adds to the driving keypoints are offsets of each, x y z, and one x y for all. closing: how many numbers
    follow the keypoints there. picture: red first, 0 … 1."""
    return {
        "frames": {when: {name: macs[name] for name in names} for when, names in _CALLED.items()},
        "keypoints": {"count": spec.keypoints, "degrees": _DEGREES, "bins": spec.bins},
        "closing": {"eyes": _GIVEN["eye"], "lips": _GIVEN["lip"]},
        "picture": {"size": spec.size, "drawn": spec.edge * 4 * spec.upscale, "channels": "rgb"},
    }


# -- config -----------------------------------------------------------------------------------------------------


def _spec_of(keys: Keys) -> Spec:
    appearance, motion, warping, generator, mlps = (
        keys.section(f"{name}_params")
        for name in (
            *("appearance_feature_extractor", "motion_extractor", "warping_module"),
            *("spade_generator", "stitching_retargeting_module"),
        )
    )
    dense = warping.section("dense_motion_params")
    first, down = _width(appearance, "block_expansion", 64), appearance.integer("num_down_blocks", 1, 6, 2)
    volume, depth = _width(appearance, "reshape_channel", 32), appearance.integer("reshape_depth", 2, 1 << 10, 16)
    most = _width(appearance, "max_features", volume * depth)
    if most != volume * depth:
        raise appearance.error("max_features", f"must be {volume * depth}, reshape_channel times reshape_depth")
    keypoints, compressed = motion.integer("num_kp", 1, 1 << 10, 21), _width(dense, "compress", 4)
    for section, key, value in (
        *((warping, "num_kp", keypoints), (warping, "reshape_channel", volume), (warping, "max_features", most)),
        (dense, "reshape_depth", depth),
    ):
        section.integer(key, value, value, value)
    spec = Spec(
        size=keys.integer("size", 32, 1 << 12, 256),
        keypoints=keypoints,
        bins=motion.integer("num_bins", 2, 1 << 10, 66),
        first=first,
        down=tuple(min(most, first << (i + 1)) for i in range(down)),
        volume=volume,
        depth=depth,
        blocks=appearance.integer("num_resblocks", 0, 1 << 8, 6),
        stages=_stages(motion),
        compressed=compressed,
        hourglass=_hourglass(dense),
        warped=_width(warping, "block_expansion", 64) << warping.integer("num_down_blocks", 1, 6, 2),
        hidden=_width(generator, "nhidden", 128),
        drawn=_width(generator, "out_channels", 64),
        upscale=generator.integer("upscale", 1, 8, 2),
        mlps={
            entry: (
                3 * keypoints * (1 if name in _GIVEN else 2) + _GIVEN.get(name, 0),
                *_widths(mlps.section(name), "hidden_sizes", _HIDDEN[name]),
                3 * keypoints + (0 if name in _GIVEN else 2),
            )
            for entry, name in _ENTRIES.items()
        },
    )
    given = _width(generator, "block_expansion", 64) << generator.integer("num_down_blocks", 1, 6, 2)
    if min(_width(generator, "max_features", 512), given) != spec.warped:
        raise generator.error("block_expansion", f"must give {spec.warped} channels, as many as are warped")
    step = 1 << max(down + len(spec.hourglass[0]), 5)
    if spec.size % step:
        raise keys.error("size", f"must be a multiple of {step}, by which it is halved")
    return spec


def _hourglass(dense: Keys) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first, most = _width(dense, "block_expansion", 32), _width(dense, "max_features", 1024)
    down = [min(most, first << i) for i in range(dense.integer("num_blocks", 1, 8, 5) + 1)]
    return tuple(down[1:]), tuple(down[-2::-1])


def _stages(motion: Keys) -> tuple[tuple[int, int], ...]:
    motion.word("backbone", ("convnextv2_tiny",), "convnextv2_tiny")
    widths = _widths(motion, "dims", [96, 192, 384, 768])
    counts = _widths(motion, "depths", [3, 3, 9, 3])
    if len(widths) != 4 or len(counts) != 4:
        raise motion.error("dims", "and depths must be four whole numbers each")
    return tuple(zip(widths, counts, strict=True))


def _width(section: Keys, key: str, default: int) -> int:
    return section.integer(key, 1, 1 << 14, default)


def _widths(section: Keys, key: str, default: list[int]) -> tuple[int, ...]:
    found = section.values.get(key, default)
    if not isinstance(found, list) or not 0 < len(found) <= 16:
        raise section.error(key, "must be a list of whole numbers from 1 up")
    return tuple(Keys({key: value}, section.where).integer(key, 1, 1 << 14) for value in found)


# -- components -------------------------------------------------------------------------------------------------

Body = Callable[..., Any]
"""body(layers, *inputs) -> the outputs, in order."""


def _entries(spec: Spec) -> dict[str, dict[str, tuple[Body, dict[str, tuple[int, ...]], tuple[str, ...]]]]:
    """By component and entry: what it computes, its inputs with their shapes, and what its outputs are called."""
    picture, points = (1, 3, spec.size, spec.size), (1, spec.keypoints, 3)
    moved = (1, spec.warped, spec.edge, spec.edge)
    seen: dict[str, tuple[int, ...]] = {"image": picture}
    volume: dict[str, tuple[int, ...]] = {"feature": spec.feature, "source": points, "driving": points}
    return {
        "appearance": {"extract": (lambda layers, x: (extracted(layers, spec, x),), seen, ("feature",))},
        "motion": {"estimate": (lambda layers, x: tuple(estimated(layers, spec, x).values()), seen, HEADS)},
        "retargeting": {
            entry: (
                partial(_corrected, spec, entry),
                {f"{entry}_points": (1, spec.mlps[entry][0])},
                (f"{entry}_delta",),
            )
            for entry in MLPS
        },
        "warping": {"warp": (lambda layers, *given: (warped(layers, spec, *given),), volume, ("warped",))},
        "generator": {"generate": (lambda layers, x: (generated(layers, spec, x),), {"warped": moved}, ("picture",))},
    }


def _corrected(spec: Spec, entry: str, layers: Any, x: Any) -> tuple[Any]:
    return (retargeted(layers, spec, entry, x),)


_CUTS = {
    "appearance": ("appearance_feature_extractor.second", "appearance_feature_extractor.resblocks_3d."),
    "motion": tuple(f"motion_extractor.detector.downsample_layers.{i}." for i in range(1, 4)),
    "retargeting": (),
    "warping": ("warping_module.dense_motion_network.hourglass.decoder.", "warping_module.third."),
    "generator": tuple(f"spade_generator.{name}." for name in (*(f"G_middle_{i}" for i in range(6)), "up_0", "up_1")),
}


def _component(spec: Spec, name: str, bodies: Mapping[str, Any]) -> tuple[Component, dict[str, int]]:
    """A component, and the multiplications of its entries."""
    entries, slots, networks, macs = [], [], {}, {}
    for entry, (body, inputs, outputs) in bodies.items():
        shapes = Shapes()
        found = body(shapes, *(Value(shape) for shape in inputs.values()))
        given = tuple(Port(port, "float32", shape) for port, shape in inputs.items())
        made = tuple(Port(port, "float32", value.shape) for port, value in zip(outputs, found, strict=True))
        entries.append(Entry(entry, given, made))
        slots += shapes.slots
        networks[entry], macs[entry] = shapes, shapes.macs
    component = Component(
        name=name,
        slots=tuple(slots),
        entries=tuple(entries),
        module=partial(_module, spec, name, tuple(slots)),
        live=partial(_live, networks),
        cuts=_CUTS[name],
    )
    return component, macs


def _live(networks: Mapping[str, Shapes], entry: Entry, sizes: Mapping[str, int]) -> int:
    return networks[entry.name].live(entry, sizes)


def _module(spec: Spec, name: str, slots: tuple[Slot, ...], entry: Entry, schemes: Schemes) -> torch.nn.Module:
    """forward(*inputs) -> the outputs, float32 in the order and shapes of the entry's ports."""
    import torch

    layers, (body, _, _) = Tensors(slots, schemes), _entries(spec)[name][entry.name]

    class Part(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found: tuple[torch.Tensor, ...] = body(layers, *inputs)
            return found

    return Part()
