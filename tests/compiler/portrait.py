"""LivePortrait as its project publishes it, in plain torch modules: the oracle of the family and of its adoption.

Nothing here comes from the code under test: names and topology are those of the project's src/modules, with batch norms
and spectral norms as trained, one grid for each keypoint, and the volume repeated for each.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compiler.avatars import trained

PARTS = {
    "appearance": "appearance_feature_extractor",
    "motion": "motion_extractor",
    "warping": "warping_module",
    "generator": "spade_generator",
}
SMALL: dict[str, Any] = {
    "size": 64,
    "appearance_feature_extractor_params": {
        "block_expansion": 8,
        "max_features": 16,
        "reshape_channel": 4,
        "reshape_depth": 4,
        "num_resblocks": 2,
    },
    "motion_extractor_params": {"num_kp": 5, "num_bins": 6, "dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "warping_module_params": {
        "block_expansion": 8,
        "dense_motion_params": {"block_expansion": 8, "max_features": 24, "num_blocks": 2, "compress": 3},
    },
    "spade_generator_params": {"block_expansion": 8, "out_channels": 8, "nhidden": 16},
    "stitching_retargeting_module_params": {
        "stitching": {"hidden_sizes": [16, 8]},
        "lip": {"hidden_sizes": [16, 8]},
        "eye": {"hidden_sizes": [16, 12, 8]},
    },
}


class _Block(nn.Module):
    """A convolution, its batch norm, a ramp, and means of 2 x 2 places where it goes down."""

    def __init__(self, dims: int, inputs: int, outputs: int, pools: bool = False) -> None:
        super().__init__()
        self.conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(inputs, outputs, 3, padding=1)
        self.norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(outputs)
        self.pool = (nn.AvgPool2d(2) if dims == 2 else nn.AvgPool3d((1, 2, 2))) if pools else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.norm(self.conv(x))))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm3d(channels), nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class Appearance(nn.Module):
    """forward(image [1, 3, …]) -> [1, volume, depth, …]."""

    def __init__(self, first: int, down: list[int], volume: int, depth: int, blocks: int) -> None:
        super().__init__()
        self.sizes = volume, depth
        self.first = _Block(2, 3, first)
        widths = [first, *down]
        self.down_blocks = nn.ModuleList(_Block(2, *pair, True) for pair in zip(widths, down, strict=False))
        self.second = nn.Conv2d(widths[-1], volume * depth, 1)
        self.resblocks_3d = nn.Sequential()
        for i in range(blocks):
            self.resblocks_3d.add_module(f"3dr{i}", _Residual(volume))

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        for block in self.down_blocks:
            x = block(x)
        x = self.second(x)
        return self.resblocks_3d(x.view(1, *self.sizes, *x.shape[2:]))


class _FirstNorm(nn.Module):
    """A layer norm over the channels of a picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        around = x - x.mean(1, keepdim=True)
        normed = around / (around.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class _Response(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(1, 1, 1, channels) / 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class _ConvNext(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.grn = _Response(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.pwconv2(self.grn(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


class _Detector(nn.Module):
    def __init__(self, widths: list[int], counts: list[int], keypoints: int, bins: int) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            nn.Sequential(_FirstNorm(before), nn.Conv2d(before, width, 2, 2))
            if i
            else nn.Sequential(nn.Conv2d(3, width, 4, 4), _FirstNorm(width))
            for i, (before, width) in enumerate(zip([3, *widths], widths, strict=False))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(_ConvNext(width) for _ in range(count)))
            for width, count in zip(widths, counts, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        sizes = {"kp": 3 * keypoints, "scale": 1, "pitch": bins, "yaw": bins, "roll": bins, "t": 3}
        for name, size in {**sizes, "exp": 3 * keypoints}.items():
            self.add_module(f"fc_{name}", nn.Linear(widths[-1], size))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        x = self.norm(x.mean([-2, -1]))
        return tuple(layer(x) for name, layer in self.named_children() if name.startswith("fc_"))


class Motion(nn.Module):
    """forward(image [1, 3, …]) -> kp, scale, pitch, yaw, roll, t, exp."""

    def __init__(self, *geometry: Any) -> None:
        super().__init__()
        self.detector = _Detector(*geometry)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.detector(image)


class _Encoder(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(_Block(3, *pair, True) for pair in itertools.pairwise(widths))


class _Decoder(nn.Module):
    def __init__(self, widths: list[int], last: int) -> None:
        super().__init__()
        inner = [last, *widths[1:]]
        self.up_blocks = nn.ModuleList(
            _Block(3, (1 if i == len(widths) - 1 else 2) * widths[i], inner[i - 1])
            for i in range(len(widths) - 1, 0, -1)
        )
        self.conv = nn.Conv3d(last + widths[0], last + widths[0], 3, padding=1)
        self.norm = nn.BatchNorm3d(last + widths[0])


class _Hourglass(nn.Module):
    def __init__(self, widths: list[int], last: int) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(widths), _Decoder(widths, last)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for block in self.encoder.down_blocks:
            seen.append(block(seen[-1]))
        x = seen.pop()
        for block in self.decoder.up_blocks:
            x = torch.cat([block(F.interpolate(x, scale_factor=(1, 2, 2))), seen.pop()], 1)
        return F.relu(self.decoder.norm(self.decoder.conv(x)))


class _DenseMotion(nn.Module):
    def __init__(self, keypoints: int, volume: int, depth: int, compressed: int, down: list[int], last: int) -> None:
        super().__init__()
        inputs = (keypoints + 1) * (1 + compressed)
        self.hourglass = _Hourglass([inputs, *down], last)
        self.mask = nn.Conv3d(last + inputs, keypoints + 1, 7, padding=3)
        self.compress, self.norm = nn.Conv3d(volume, compressed, 1), nn.BatchNorm3d(compressed)
        self.occlusion = nn.Conv2d((last + inputs) * depth, 1, 7, padding=3)

    def forward(self, feature: Tensor, source: Tensor, driving: Tensor) -> tuple[Tensor, Tensor]:
        small = F.relu(self.norm(self.compress(feature)))
        sizes, parts = feature.shape[2:], source.shape[1] + 1
        z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in sizes), indexing="ij")
        own = torch.stack([x, y, z], -1)[None]
        moved = torch.cat([own, own - driving[0, :, None, None, None] + source[0, :, None, None, None]])
        deformed = F.grid_sample(small.expand(parts, -1, -1, -1, -1), moved, align_corners=False)

        def heat(at: Tensor) -> Tensor:
            return torch.exp(-0.5 * (own - at[0, :, None, None, None]).pow(2).sum(-1) / 0.01)

        heats = torch.cat([torch.zeros(1, *sizes), heat(driving) - heat(source)])
        seen = self.hourglass(torch.cat([heats[:, None], deformed], 1).reshape(1, -1, *sizes))
        mask = torch.softmax(self.mask(seen), 1)[0, :, None]
        deformation = (moved.permute(0, 4, 1, 2, 3) * mask).sum(0).permute(1, 2, 3, 0)
        return deformation[None], torch.sigmoid(self.occlusion(seen.flatten(1, 2)))


class Warping(nn.Module):
    """forward(feature, source, driving) -> [1, warped, …]."""

    def __init__(self, warped: int, volume: int, depth: int, *dense: Any) -> None:
        super().__init__()
        keypoints, *rest = dense
        self.dense_motion_network = _DenseMotion(keypoints, volume, depth, *rest)
        self.third, self.fourth = _Block(2, volume * depth, warped), nn.Conv2d(warped, warped, 1)

    def forward(self, feature: Tensor, source: Tensor, driving: Tensor) -> Tensor:
        deformation, seen = self.dense_motion_network(feature, source, driving)
        x = F.grid_sample(feature, deformation, align_corners=False).flatten(1, 2)
        return self.fourth(F.leaky_relu(self.third.norm(self.third.conv(x)))) * seen


class _Spade(nn.Module):
    def __init__(self, channels: int, seen: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(seen, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = (nn.Conv2d(hidden, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        y = self.mlp_shared(F.interpolate(seen, size=x.shape[2:], mode="nearest"))
        return self.norm(x) * (1 + self.mlp_gamma(y)) + self.mlp_beta(y)


class _SpadeBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, seen: int, hidden: int) -> None:
        super().__init__()
        middle, normed = min(inputs, outputs), nn.utils.spectral_norm
        self.conv_0 = normed(nn.Conv2d(inputs, middle, 3, padding=1))
        self.conv_1 = normed(nn.Conv2d(middle, outputs, 3, padding=1))
        self.norm_0, self.norm_1 = _Spade(inputs, seen, hidden), _Spade(middle, seen, hidden)
        self.learned = inputs != outputs
        if self.learned:
            self.conv_s, self.norm_s = normed(nn.Conv2d(inputs, outputs, 1, bias=False)), _Spade(inputs, seen, hidden)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        past = self.conv_s(self.norm_s(x, seen)) if self.learned else x
        y = self.conv_0(F.leaky_relu(self.norm_0(x, seen), 0.2))
        return past + self.conv_1(F.leaky_relu(self.norm_1(y, seen), 0.2))


class Generator(nn.Module):
    """forward(feature) -> picture."""

    def __init__(self, warped: int, drawn: int, hidden: int, upscale: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(warped, 2 * warped, 3, padding=1)
        for i in range(6):
            self.add_module(f"G_middle_{i}", _SpadeBlock(2 * warped, 2 * warped, warped, hidden))
        self.up_0 = _SpadeBlock(2 * warped, warped, warped, hidden)
        self.up_1 = _SpadeBlock(warped, drawn, warped, hidden)
        last = nn.Conv2d(drawn, 3 * upscale**2, 3, padding=1)
        self.conv_img = last if upscale == 1 else nn.Sequential(last, nn.PixelShuffle(upscale))

    def forward(self, feature: Tensor) -> Tensor:
        x = self.fc(feature)
        for i in range(6):
            x = self.get_submodule(f"G_middle_{i}")(x, feature)
        x = self.up_0(F.interpolate(x, scale_factor=2), feature)
        x = self.up_1(F.interpolate(x, scale_factor=2), feature)
        return torch.sigmoid(self.conv_img(F.leaky_relu(x, 0.2)))


def mlp(*widths: int) -> nn.Module:
    """forward([1, columns]) -> [1, columns]."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    holder = nn.Module()
    holder.mlp = nn.Sequential(*layers[:-1])
    holder.forward = holder.mlp.forward  # type: ignore[method-assign]
    return holder


def published() -> dict[str, nn.Module]:
    """By component, of the published geometry."""
    return {
        "appearance": Appearance(64, [128, 256], 32, 16, 6),
        "motion": Motion([96, 192, 384, 768], [3, 3, 9, 3], 21, 66),
        "warping": Warping(256, 32, 16, 21, 4, [64, 128, 256, 512, 1024], 32),
        "generator": Generator(256, 64, 128, 2),
        "stitch": mlp(126, 128, 128, 64, 65),
        "eyes": mlp(66, 256, 256, 128, 128, 64, 63),
        "lips": mlp(65, 128, 128, 64, 63),
    }


def small(seed: int = 4) -> dict[str, nn.Module]:
    """By component, as if trained, of the geometry `SMALL`."""
    torch.manual_seed(seed)
    modules = {
        "appearance": Appearance(8, [16, 16], 4, 4, 2),
        "motion": Motion([8, 16, 24, 32], [1, 1, 2, 1], 5, 6),
        "warping": Warping(32, 4, 4, 5, 3, [16, 24], 8),
        "generator": Generator(32, 8, 16, 2),
        "stitch": mlp(30, 16, 8, 17),
        "eyes": mlp(18, 16, 12, 8, 15),
        "lips": mlp(17, 16, 8, 15),
    }
    for module in modules.values():
        for part in module.modules():  # so that what a mask prefers differs from place to place
            if isinstance(part, _DenseMotion):
                part.mask.weight.data *= 4
        trained(module, seed)
    with torch.no_grad():  # until what a spectral norm divides by is the largest singular value
        modules["generator"].train()
        for _ in range(10):
            modules["generator"](torch.randn(1, 32, 4, 4))
        modules["generator"].eval()
    return modules


def save(folder: Path, modules: dict[str, nn.Module]) -> list[Path]:
    """As the project publishes them: four bare state dicts, and three in one file, of which every name begins with
    "module."."""
    files = []
    for name, file in PARTS.items():
        torch.save(modules[name].state_dict(), folder / f"{file}.pth")
        files.append(folder / f"{file}.pth")
    names = {"retarget_shoulder": "stitch", "retarget_mouth": "lips", "retarget_eye": "eyes"}
    nested = {
        published: {f"module.{name}": tensor for name, tensor in modules[ours].state_dict().items()}
        for published, ours in names.items()
    }
    torch.save(nested, folder / "stitching_retargeting_module.pth")
    return [*files, folder / "stitching_retargeting_module.pth"]
