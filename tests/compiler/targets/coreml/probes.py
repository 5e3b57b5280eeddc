"""Small models of the families to come: what they need of Core ML, converted and executed before they are written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SigLip(nn.Module):
    """A vision tower: patches, two pre-norm blocks with tanh-gelu, pixel shuffle by two, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 16, 32) / 4)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(5))
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(32, 64) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))
        self.project = nn.Linear(128, 24, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(pixels).flatten(2).transpose(1, 2) + self.position
        for i in range(2):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.out[i](attended)
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x)), approximate="tanh"))
        x = self.norms[4](x)
        side = x.reshape(1, 4, 4, 32)
        side = side.reshape(1, 4, 2, 64).permute(0, 2, 1, 3).reshape(1, 2, 2, 128).permute(0, 2, 1, 3)
        return self.project(side.reshape(1, 4, 128))


class UNet(nn.Module):
    """An image generator: depthwise and transposed convolutions, instance and batch norm, reflection padding, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 16, 3, 2, 1)
        self.first_norm = nn.InstanceNorm2d(16, affine=True)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1, 2)
        self.batch_norm = nn.BatchNorm2d(32)
        self.audio = nn.Linear(20, 32)
        self.rise = nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1)
        self.rise_norm = nn.InstanceNorm2d(16)
        self.prelu = nn.PReLU(16)
        self.last = nn.ConvTranspose2d(32, 8, 4, 2, 1)
        self.image = nn.Conv2d(8, 3, 7, 1, 3, padding_mode="reflect")

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        skip = F.leaky_relu(self.first_norm(self.first(image)), 0.2)
        x = F.relu6(self.batch_norm(self.pointwise(F.silu(self.depthwise(skip)))))
        x = x + self.audio(audio)[:, :, None, None]
        x = self.prelu(self.rise_norm(self.rise(x)))
        x = self.last(torch.cat([x, skip], 1))
        pooled = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
        return torch.sigmoid(self.image(x + pooled))


class Warp(nn.Module):
    """Bilinear warping of an image by a flow, and an upscale."""

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        warped = F.grid_sample(image, flow, mode="bilinear", padding_mode="zeros", align_corners=False)
        bordered = F.grid_sample(image, flow, mode="bilinear", padding_mode="border", align_corners=True)
        return F.interpolate(warped + bordered, scale_factor=2, mode="bilinear", align_corners=False)


def sample_volume(volume: Tensor, grid: Tensor) -> Tensor:
    """5-D grid_sample (zeros outside, corners not aligned) as one 2-D sampling a depth slice, weighted by a tent."""
    batch, channels, depth, _, _ = volume.shape
    _, d, h, w, _ = grid.shape
    z = ((grid[..., 2] + 1) * depth - 1) / 2
    plane = grid[..., :2].reshape(batch, d * h, w, 2)
    total = torch.zeros(batch, channels, d * h, w)
    for k in range(depth):
        slice_k = F.grid_sample(volume[:, :, k], plane, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + slice_k * torch.clamp(1 - (z - k).abs(), min=0).reshape(batch, 1, d * h, w)
    return total.reshape(batch, channels, d, h, w)


class VolumeWarp(nn.Module):
    """A feature volume through a 3-D convolution, warped in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(4, 4, 3, 1, 1)

    def forward(self, volume: Tensor, grid: Tensor) -> Tensor:
        return sample_volume(self.convolution(volume), grid)


class AudioNetwork(nn.Module):
    """Audio features to blendshapes: strided and dilated 1-D convolutions, group norm, gelu, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 32, 10, 5)
        self.norm = nn.GroupNorm(8, 32)
        self.second = nn.Conv1d(32, 32, 3, 2)
        self.dilated = nn.Conv1d(32, 32, 3, padding=2, dilation=2)
        self.layer_norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 52)

    def forward(self, samples: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.first(samples[:, None])))
        x = F.gelu(self.second(x))
        x = F.relu(self.dilated(x)).transpose(1, 2)
        return torch.sigmoid(self.head(self.layer_norm(x)))


def probes() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Each probe with fixed random weights and fresh inputs."""
    torch.manual_seed(0)
    unet = UNet()
    for name, buffer in unet.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return {
        "siglip": (SigLip(), (torch.randn(1, 3, 32, 32),)),
        "unet": (unet, (torch.rand(1, 6, 32, 32), torch.randn(1, 20))),
        "warp": (Warp(), (torch.rand(1, 3, 16, 16), torch.rand(1, 12, 10, 2) * 2.6 - 1.3)),
        "volume warp": (VolumeWarp(), (torch.randn(1, 4, 6, 8, 8), torch.rand(1, 6, 8, 8, 3) * 2.6 - 1.3)),
        "audio": (AudioNetwork(), (torch.randn(1, 400),)),
    }
