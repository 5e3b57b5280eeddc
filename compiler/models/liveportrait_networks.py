"""LivePortrait's networks over `Layers`: from names and shapes to what each computes. See `liveportrait.py`.

Topology: github.com/KwaiVGI/LivePortrait, src/modules (MIT). Two things are computed otherwise than there, and give the
same: the feature volume is moved by each keypoint through three small matrices, one for each axis, since what one
keypoint moves is a shift; and a place in the volume is its own coordinates plus the shifts' mean under the mask.
What must not live here: components, ports, a config's keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from compiler.models.network import Layers

if TYPE_CHECKING:
    import torch

V = TypeVar("V")
APPEARANCE, MOTION, WARPING, GENERATOR, STITCHING = (
    f"{name}."
    for name in (
        *("appearance_feature_extractor", "motion_extractor", "warping_module"),
        *("spade_generator", "stitching_retargeting_module"),
    )
)
HEADS = ("kp", "scale", "pitch", "yaw", "roll", "t", "exp")
MLPS = {"stitch": "retarget_shoulder", "eyes": "retarget_eye", "lips": "retarget_mouth"}
_EPS = 1e-6  # ConvNeXt's, of norms and of the mean response
_SPREAD = 0.01  # the variance of a keypoint's heat
_BEYOND = 2.0  # a coordinate that is outside of a volume of any size


@dataclass(frozen=True)
class Spec:
    """The geometry, in channels where nothing else is said. size: of a picture, in pixels; depth: planes of the volume;
    hourglass: outputs of the blocks that go down, then up; mlps: columns of each layer."""

    size: int
    keypoints: int
    bins: int
    first: int
    down: tuple[int, ...]
    volume: int
    depth: int
    blocks: int
    stages: tuple[tuple[int, int], ...]  # channels, blocks
    compressed: int
    hourglass: tuple[tuple[int, ...], tuple[int, ...]]
    warped: int
    hidden: int
    drawn: int
    upscale: int
    mlps: dict[str, tuple[int, ...]]

    @property
    def edge(self) -> int:
        """Of a plane of the volume."""
        return self.size >> len(self.down)

    @property
    def feature(self) -> tuple[int, int, int, int, int]:
        return 1, self.volume, self.depth, self.edge, self.edge


def _same(layers: Layers[V], x: V, name: str, outputs: int, edge: int = 3, dims: int = 2, onto: V | None = None) -> V:
    """A convolution that keeps the sizes."""
    return layers.convolution(x, name, outputs, (edge,) * dims, padding=edge // 2, onto=onto)


def _halved(layers: Layers[V], x: V, shape: tuple[int, ...]) -> V:
    """Means of 2 x 2 places in each plane; shape: before."""

    def pooled(x: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.nn.functional.avg_pool2d(x.reshape(1, -1, *shape[-2:]), 2).reshape(after)

    after = [*shape[:-2], shape[-2] // 2, shape[-1] // 2]
    return layers.applied(pooled, after, x)


def _enlarged(layers: Layers[V], x: V, shape: tuple[int, ...], factor: int, *, apart: bool = False) -> V:
    """Every place of each plane `factor` times in both directions; shape: before.

    apart: nothing reads it but `applied`, channel by channel. Where values are computed it is then a view of x, [1,
    channels, height, factor, width, factor]: the widest of all takes no memory.
    """
    if factor == 1:
        return x

    def repeated(x: torch.Tensor) -> torch.Tensor:
        import torch

        if apart and not torch.compiler.is_exporting():
            return x[:, :, :, None, :, None].expand(*shape[:3], factor, shape[3], factor)
        planes, sizes = x.reshape(1, -1, *shape[-2:]), [size * factor for size in shape[-2:]]
        return torch.nn.functional.interpolate(planes, sizes).reshape(after)

    after = [*shape[:-2], *(size * factor for size in shape[-2:])]
    return layers.applied(repeated, after, x)


def _leaky(layers: Layers[V], x: V, slope: float, shape: tuple[int, ...]) -> V:
    """Nothing else reads x any more."""

    def function(x: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.nn.functional.leaky_relu(x, slope)

    return layers.applied(function, shape, x, apart=True)


def _reshaped(layers: Layers[V], x: V, *shape: int) -> V:
    return layers.applied(lambda x: x.reshape(shape), shape, x)


# -- appearance: a picture to a volume --------------------------------------------------------------------------


def extracted(layers: Layers[V], spec: Spec, image: V) -> V:
    """[1, 3, size, size] -> [1, volume, depth, edge, edge]."""
    name, edge = APPEARANCE, spec.size
    x = layers.pointwise(_same(layers, image, f"{name}first.conv", spec.first), "relu", over=True)
    for i, width in enumerate(spec.down):
        x = layers.pointwise(_same(layers, x, f"{name}down_blocks.{i}.conv", width), "relu", over=True)
        x = _halved(layers, x, (1, width, edge, edge))
        edge //= 2
    x = layers.convolution(x, f"{name}second", spec.volume * spec.depth, (1, 1))
    x = _reshaped(layers, x, *spec.feature)
    for i in range(spec.blocks):
        block = f"{name}resblocks_3d.3dr{i}."
        y = layers.pointwise(layers.affine(x, f"{block}norm1", 1), "relu", over=True)
        y = layers.pointwise(_same(layers, y, f"{block}conv1", spec.volume, dims=3), "relu", over=True)
        x = layers.add(x, _same(layers, y, f"{block}conv2", spec.volume, dims=3))
    return x


# -- motion: a picture to keypoints and pose --------------------------------------------------------------------


def estimated(layers: Layers[V], spec: Spec, image: V) -> dict[str, V]:
    """[1, 3, size, size] -> each of `HEADS`, [1, columns]. A ConvNeXt, V2 (https://arxiv.org/abs/2301.00808)."""
    name, x, edge, before = f"{MOTION}detector.", image, spec.size, 3
    for i, (width, count) in enumerate(spec.stages):
        down, step = f"{name}downsample_layers.{i}.", 2 if i else 4
        if i:
            x = _planes(layers, layers.layer_norm(_rows(layers, x, before, edge), f"{down}0", _EPS), before, edge)
        x = layers.convolution(x, f"{down}{min(i, 1)}", width, (step, step), stride=(step, step))
        edge, before = edge // step, width
        if not i:
            x = _planes(layers, layers.layer_norm(_rows(layers, x, width, edge), f"{down}1", _EPS), width, edge)
        for j in range(count):
            x = _convnext(layers, x, f"{name}stages.{i}.{j}.", width, edge)
    x = layers.applied(lambda x: x.mean([2, 3]), (1, before), x)
    x = layers.layer_norm(x, f"{name}norm", _EPS)
    columns = {"kp": 3 * spec.keypoints, "scale": 1, "t": 3, "exp": 3 * spec.keypoints}
    return {head: layers.linear(x, f"{name}fc_{head}", columns.get(head, spec.bins)) for head in HEADS}


def _convnext(layers: Layers[V], x: V, name: str, width: int, edge: int) -> V:
    y = layers.convolution(x, f"{name}dwconv", width, (7, 7), padding=3, groups=width)
    y = layers.layer_norm(_rows(layers, y, width, edge), f"{name}norm", _EPS)
    y = layers.pointwise(layers.linear(y, f"{name}pwconv1", 4 * width), "gelu", over=True)

    def responding(y: torch.Tensor) -> torch.Tensor:
        """By how much a channel responds over all places, beside the others."""
        norm = (y * y).sum([1], keepdim=True).sqrt()
        return y * (norm / (norm.mean([2], keepdim=True) + _EPS))

    scaled = layers.applied(responding, (1, edge * edge, 4 * width), y)
    y = layers.add(layers.affine(scaled, f"{name}grn", -1, "gamma", "beta"), y)
    return layers.add(x, _planes(layers, layers.linear(y, f"{name}pwconv2", width), width, edge))


def _rows(layers: Layers[V], x: V, width: int, edge: int) -> V:
    """[1, width, edge, edge] -> [1, places, width]."""
    return layers.swapped(_reshaped(layers, x, 1, width, edge * edge))


def _planes(layers: Layers[V], x: V, width: int, edge: int) -> V:
    """Back from `_rows`."""
    return _reshaped(layers, layers.swapped(x), 1, width, edge, edge)


# -- retargeting: keypoints to what is added to them ------------------------------------------------------------


def retargeted(layers: Layers[V], spec: Spec, entry: str, x: V) -> V:
    """[1, columns] -> [1, columns of the last layer]."""
    widths = spec.mlps[entry][1:]
    for i, width in enumerate(widths):
        x = layers.linear(x, f"{STITCHING}{MLPS[entry]}.mlp.{2 * i}", width)
        x = layers.pointwise(x, "relu", over=True) if i + 1 < len(widths) else x
    return x


# -- warping: the volume as the keypoints move it ---------------------------------------------------------------


def warped(layers: Layers[V], spec: Spec, feature: V, source: V, driving: V) -> V:
    """[1, volume, depth, edge, edge] and keypoints [1, keypoints, 3], x y z -> [1, warped, edge, edge]."""
    name, (_, _, depth, edge, _) = f"{WARPING}dense_motion_network.", spec.feature
    parts, sizes = spec.keypoints + 1, (depth, edge, edge)
    small = _same(layers, feature, f"{name}compress", spec.compressed, 1, 3)
    small = layers.pointwise(small, "relu", over=True)
    inputs = parts * (1 + spec.compressed)
    x = layers.applied(_moved(sizes), (1, inputs, *sizes), small, source, driving)
    x = _hourglass(layers, spec, x, inputs, f"{name}hourglass.")
    mask = _same(layers, x, f"{name}mask", parts, 7, 3)
    out = layers.applied(_sampled(sizes), spec.feature, feature, mask, source, driving)
    out = _reshaped(layers, out, 1, spec.volume * depth, edge, edge)
    out = _leaky(layers, _same(layers, out, f"{WARPING}third.conv", spec.warped), 0.01, (1, spec.warped, edge, edge))
    out = layers.convolution(out, f"{WARPING}fourth", spec.warped, (1, 1))
    flat = _reshaped(layers, x, 1, (spec.hourglass[1][-1] + inputs) * depth, edge, edge)
    seen = layers.pointwise(_same(layers, flat, f"{name}occlusion", 1, 7), "sigmoid", over=True)
    return layers.applied(lambda out, seen: out * seen, (1, spec.warped, edge, edge), out, seen)


def _hourglass(layers: Layers[V], spec: Spec, x: V, inputs: int, name: str) -> V:
    edge, widths = spec.edge, (inputs, *spec.hourglass[0])
    down = [x]
    for i, width in enumerate(spec.hourglass[0]):
        x = layers.pointwise(
            _same(layers, down[-1], f"{name}encoder.down_blocks.{i}.conv", width, dims=3), "relu", over=True
        )
        down.append(_halved(layers, x, (1, width, spec.depth, edge, edge)))
        edge //= 2
    x, width = down.pop(), widths[-1]
    for i, outputs in enumerate(spec.hourglass[1]):
        x = _enlarged(layers, x, (1, width, spec.depth, edge, edge), 2)
        edge *= 2
        x = layers.pointwise(_same(layers, x, f"{name}decoder.up_blocks.{i}.conv", outputs, dims=3), "relu", over=True)
        x = layers.concatenate(x, down.pop())
        width = outputs + widths[-2 - i]
    return layers.pointwise(_same(layers, x, f"{name}decoder.conv", width, dims=3), "relu", over=True)


def _moved(sizes: tuple[int, int, int]) -> Callable[..., torch.Tensor]:
    """moved(volume [1, channels, …sizes], source, driving) -> [1, parts * (1 + channels), …sizes]: of the background
    and of each keypoint the difference that it makes in heat, and the volume as it moves it.

    Samples of a volume that is shifted, linear between the places and zeros outside (`torch.nn.functional.grid_sample`
    without align_corners), are products with one matrix for each axis.
    """

    def matrix(shift: torch.Tensor, size: int) -> torch.Tensor:
        """[parts, 1] -> [parts, 1, size, size]: what of each place goes to each. Differences of places, which are
        small, lose nothing in 16 bits."""
        import torch

        to = torch.arange(size, dtype=torch.float32)
        off = to * (1 / (size - 1)) - 0.5 + shift * (size / 2)
        between = to.reshape(size, 1) - to
        return torch.relu(1 - torch.abs(off[:, None, :, None] + between))

    def heat(at: torch.Tensor) -> torch.Tensor:
        """Keypoints [keypoints, 3] -> [keypoints, 1, depth, places of a plane]."""
        x, y, z = (
            torch_exp((_coordinates(size) - at[:, axis : axis + 1]) ** 2) for axis, size in enumerate(sizes[::-1])
        )
        plane = (y[:, :, None] * x[:, None]).reshape(-1, 1, 1, math.prod(sizes[1:]))
        return z[:, None, :, None] * plane

    def torch_exp(square: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.exp(square * (-0.5 / _SPREAD))

    def moved(volume: torch.Tensor, source: torch.Tensor, driving: torch.Tensor) -> torch.Tensor:
        import torch

        depth, height, width = sizes
        channels, shift = volume.shape[1], _shifts(source, driving)
        x, y, z = (matrix(shift[:, axis : axis + 1], size) for axis, size in enumerate(sizes[::-1]))
        rows = torch.matmul(volume.reshape(1, channels * depth, height, width), x.transpose(2, 3))
        planes = torch.matmul(y, rows).reshape(-1, channels, depth, height * width)
        heats = torch.nn.functional.pad(heat(driving[0]) - heat(source[0]), [0, 0, 0, 0, 0, 0, 1, 0])
        return torch.cat([heats, torch.matmul(z, planes)], 1).reshape(1, -1, *sizes)

    return moved


def _sampled(sizes: tuple[int, int, int]) -> Callable[..., torch.Tensor]:
    """sampled(volume [1, channels, …sizes], mask [1, parts, …sizes], source, driving) -> the volume at every place plus
    its shift, of which the mask weighs the parts."""

    def sampled(volume: torch.Tensor, mask: torch.Tensor, source: torch.Tensor, driving: torch.Tensor) -> torch.Tensor:
        import torch

        depth, height, width = sizes
        shares = torch.softmax(mask.reshape(1, -1, math.prod(sizes)), 1)[0]
        shifts = torch.matmul(_shifts(source, driving).transpose(0, 1), shares).transpose(0, 1).reshape(*sizes, 3)
        axes = _coordinates(width), _coordinates(height)[:, None], _coordinates(depth)[:, None, None]
        own = torch.stack([axis.expand(sizes) for axis in axes], 3)
        # outside is outside, however far: whole numbers of a place stay in their range
        grid = torch.clamp(own + shifts, -_BEYOND, _BEYOND)[None]
        return torch.nn.functional.grid_sample(volume, grid, align_corners=False)

    return sampled


def _shifts(source: torch.Tensor, driving: torch.Tensor) -> torch.Tensor:
    """[parts, 3]: of the background, which stands still, and of each keypoint."""
    import torch

    return torch.nn.functional.pad((source - driving)[0], [0, 0, 1, 0])


def _coordinates(size: int) -> torch.Tensor:
    """Of an axis, -1 … 1."""
    import torch

    return torch.arange(size, dtype=torch.float32) * (2 / (size - 1)) - 1


# -- generator: what was warped to a picture --------------------------------------------------------------------


def generated(layers: Layers[V], spec: Spec, feature: V) -> V:
    """[1, warped, edge, edge] -> [1, 3, pixels, pixels], 0 … 1. SPADE (https://arxiv.org/abs/1903.07291)."""
    wide, edge = 2 * spec.warped, spec.edge
    shapes = [(f"G_middle_{i}", wide, wide, 1) for i in range(6)]
    shapes += [("up_0", wide, spec.warped, 2), ("up_1", spec.warped, spec.drawn, 4)]
    x, before = _same(layers, feature, f"{GENERATOR}fc", wide), 1
    for name, inputs, outputs, factor in shapes:
        at = edge * before
        x = _enlarged(layers, x, (1, inputs, at, at), factor // before, apart=True)
        x = _spade_block(layers, spec, x, feature, f"{GENERATOR}{name}.", inputs, outputs, factor)
        before = factor
    edge *= before
    x = _leaky(layers, x, 0.2, (1, spec.drawn, edge, edge))
    if spec.upscale == 1:
        return layers.pointwise(_same(layers, x, f"{GENERATOR}conv_img", 3), "sigmoid", over=True)
    x = _same(layers, x, f"{GENERATOR}conv_img.0", 3 * spec.upscale**2)

    def shuffled(x: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.nn.functional.pixel_shuffle(x, spec.upscale)

    pixels = edge * spec.upscale
    return layers.pointwise(layers.applied(shuffled, (1, 3, pixels, pixels), x), "sigmoid", over=True)


def _spade_block(layers: Layers[V], spec: Spec, x: V, seen: V, name: str, inputs: int, outputs: int, factor: int) -> V:
    middle, edge, past = min(inputs, outputs), spec.edge * factor, x
    if inputs != outputs:
        past = _spade(layers, spec, x, seen, f"{name}norm_s", inputs, factor)
        past = layers.convolution(past, f"{name}conv_s", outputs, (1, 1), bias=False)
    y = _leaky(layers, _spade(layers, spec, x, seen, f"{name}norm_0", inputs, factor), 0.2, (1, inputs, edge, edge))
    y = _same(layers, y, f"{name}conv_0", middle)
    y = _leaky(layers, _spade(layers, spec, y, seen, f"{name}norm_1", middle, factor), 0.2, (1, middle, edge, edge))
    return layers.add(past, _same(layers, y, f"{name}conv_1", outputs))


def _spade(layers: Layers[V], spec: Spec, x: V, seen: V, name: str, channels: int, factor: int) -> V:
    """A norm of each channel alone, with a factor and a bias for each place, of what was warped, `factor` times as
    large: enlarged here and not before, since at the last size it is a sixth of all that is alive."""

    def normed(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.nn.functional.group_norm(x, x.shape[1]) * (1 + gain)

    edge = spec.edge * factor
    seen = _enlarged(layers, seen, (1, spec.warped, spec.edge, spec.edge), factor)
    hidden = layers.pointwise(_same(layers, seen, f"{name}.mlp_shared.0", spec.hidden), "relu", over=True)
    del seen
    gain = _same(layers, hidden, f"{name}.mlp_gamma", channels)
    normal = layers.applied(normed, (1, channels, edge, edge), x, gain, apart=True)
    return _same(layers, hidden, f"{name}.mlp_beta", channels, onto=normal)
