"""Small networks with the operators of the coming families: vision tower, talking head, audio to expression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VisionTower(nn.Module):
    """SigLIP in small: patches, learned positions, pre-norm blocks with tanh GELU, pixel shuffle, a projection."""

    def __init__(self, width: int = 32, heads: int = 2, layers: int = 2, factor: int = 2) -> None:
        super().__init__()
        self.heads, self.factor = heads, factor
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Embedding(64, width)
        self.register_buffer("ids", torch.arange(64)[None], persistent=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, eps=1e-6),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width, eps=1e-6),
                    "up": nn.Linear(width, 2 * width),
                    "down": nn.Linear(2 * width, width),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.projection = nn.Linear(width * factor**2, 48, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions(self.ids)
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v)
            x = x + block["out"](attended.transpose(1, 2).flatten(2))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x)), approximate="tanh"))
        x = self.norm(x)
        batch, _, width = x.shape
        side, f = 8, self.factor
        x = x.view(batch, side, side // f, width * f).permute(0, 2, 1, 3)
        x = x.reshape(batch, side // f, side // f, width * f * f).permute(0, 2, 1, 3)
        return self.projection(x.reshape(batch, -1, width * f * f))


class Renderer(nn.Module):
    """A U-Net with the parts of talking-head renderers: depthwise and transposed convolutions, every norm, warping."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv2d(6, c, 3, padding=1)
        self.down = nn.Conv2d(c, 2 * c, 3, 2, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * c, 2 * c, 3, padding=2, dilation=2, groups=2 * c)
        self.batch = nn.BatchNorm2d(2 * c)
        self.group = nn.GroupNorm(4, 2 * c)
        self.instance = nn.InstanceNorm2d(2 * c, affine=False)
        self.modulation = nn.Linear(16, 2 * c)
        self.slope = nn.PReLU(2 * c)
        self.up = nn.ConvTranspose2d(2 * c, c, 4, 2, 1)
        self.flow = nn.Conv2d(2 * c, 2, 3, padding=1)
        self.leave = nn.Conv2d(2 * c, 3, 1)
        for norm in (self.batch,):
            norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            norm.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        a = F.silu(self.enter(image))
        d = F.relu6(self.batch(self.depthwise(self.down(a))), inplace=True)
        d = self.slope(self.group(d)) * (1 + self.modulation(audio)[:, :, None, None]) + self.instance(d)
        d = F.leaky_relu(d, 0.2) + F.interpolate(F.max_pool2d(d, 2), scale_factor=2, mode="nearest")
        d = d + F.interpolate(F.avg_pool2d(d, 2), scale_factor=2, mode="bilinear", align_corners=False)
        u = torch.cat([F.hardswish(self.up(d)), a], 1)
        height, width = image.shape[2:]
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        grid = torch.stack([xs, ys], -1)[None] + 0.5 * torch.tanh(self.flow(u)).permute(0, 2, 3, 1)
        warped = F.grid_sample(image[:, :3], grid, align_corners=True, padding_mode="border")
        return torch.sigmoid(self.leave(u)) + warped


class Expression(nn.Module):
    """wav2vec 2.0's front and a blendshape head in small: strided, grouped and normalized 1-D convolutions."""

    def __init__(self, h: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, h, 10, 5, bias=False)
        self.norm = nn.GroupNorm(h, h)
        self.second = nn.Conv1d(h, h, 3, 2, bias=False)
        self.layer_norm = nn.LayerNorm(h)
        self.position = nn.Conv1d(h, h, 4, padding=2, groups=4)
        self.identity = nn.Embedding(12, h)
        self.up = nn.ConvTranspose1d(h, h, 4, 2, 1)
        self.batch = nn.BatchNorm1d(h)
        self.out = nn.Linear(h, 52)

    def forward(self, wave: Tensor, speaker: Tensor) -> Tensor:
        x = F.gelu(self.second(F.gelu(self.norm(self.first(wave[:, None])))))
        x = self.layer_norm(x.transpose(1, 2))
        x = x + F.gelu(self.position(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        x = torch.softmax(x, -1) + x + self.identity(speaker)[:, None]
        x = F.relu(self.batch(self.up(x.transpose(1, 2))))
        return torch.sigmoid(self.out(F.pad(x, (1, 2)).transpose(1, 2)))


def probe(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A probe in eval mode with random weights, and inputs for it."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if name == "vision":
        return VisionTower().eval(), (torch.randn(2, 3, 32, 32, generator=generator),)
    if name == "renderer":
        image, audio = torch.rand(1, 6, 32, 32, generator=generator), torch.randn(1, 16, generator=generator)
        return Renderer().eval(), (image, audio)
    return Expression().eval(), (torch.randn(2, 400, generator=generator), torch.tensor([3, 7]))
