"""Talking avatars as their projects publish them, in plain torch modules: the oracle of families and of `adopt`.

Nothing here comes from the code under test: names and topology are those of the projects' own files (FeatherTalk's
unet.py, unet_mobileone.py and feather_hubert.py; LAM_Audio2Expression's network.py), batch norms and branches as
trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Residual(nn.Module):
    """MobileNet's inverted residual, expanding twice."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, adds: bool = False) -> None:
        super().__init__()
        wide = 2 * inputs
        self.adds = adds
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.adds else y


class _Branch(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: Any, padding: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _MobileOne(nn.Module):
    """A block as it is trained: two convolutions, one of a single place, and the input itself."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: Any = 1, groups: int = 1) -> None:
        super().__init__()
        padding = kernel // 2
        self.rbr_skip = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.rbr_conv = nn.ModuleList(_Branch(inputs, outputs, kernel, stride, padding, groups) for _ in range(2))
        self.rbr_scale = _Branch(inputs, outputs, 1, stride, 0, groups) if kernel > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.rbr_conv]
        parts += [part(x) for part in (self.rbr_scale, self.rbr_skip) if part is not None]
        return torch.relu(sum(parts[1:], parts[0]))


class _Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, adds: bool = False) -> None:
        super().__init__()
        self.adds = adds
        self.depthwise = _MobileOne(inputs, inputs, 3, stride, inputs)
        self.pointwise = _MobileOne(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(x))
        return x + y if self.adds else y


def _block(mobileone: bool, *given: Any, **more: Any) -> nn.Module:
    return (_Separable if mobileone else _Residual)(*given, **more)


class _Double(nn.Module):
    def __init__(self, mobileone: bool, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            _block(mobileone, inputs, outputs, stride), _block(mobileone, outputs, outputs, adds=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class _Named(nn.Module):
    """A module under a name of its own."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        (module,) = self.children()
        return module(x)


class _AudioBranch(nn.Module):
    def __init__(self, mobileone: bool, wenet: bool, c: list[int]) -> None:
        super().__init__()
        self.mobileone = mobileone
        first = (c[2], c[3], c[3]) if wenet else (16, c[1], c[2])
        stride = (1, 2) if wenet else (2, 2)
        self.conv1 = _block(mobileone, first[0], first[1])
        self.conv2 = _block(mobileone, first[1], first[2], adds=wenet)
        self.conv4 = _block(mobileone, c[3], c[3], adds=True)
        self.conv6 = _block(mobileone, c[4], c[4], adds=True)
        self.conv7 = _block(mobileone, c[4], c[4], adds=True)
        if mobileone:
            self.conv3: nn.Module = _MobileOne(first[2], c[3], 3, stride)
            fifth = nn.Sequential(nn.Conv2d(c[3], c[4], 3, 2, 3, bias=False), nn.BatchNorm2d(c[4]), nn.ReLU())
            self.conv5: nn.Module = _Named("block", fifth)
        else:
            self.conv3, self.bn3 = nn.Conv2d(first[2], c[3], 3, stride, 1), nn.BatchNorm2d(c[3])
            self.conv5, self.bn5 = nn.Conv2d(c[3], c[4], 3, 2, 3), nn.BatchNorm2d(c[4])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        x = self.conv3(x) if self.mobileone else torch.relu(self.bn3(self.conv3(x)))
        x = self.conv4(x)
        x = self.conv5(x) if self.mobileone else torch.relu(self.bn5(self.conv5(x)))
        return self.conv7(self.conv6(x))


class UNet(nn.Module):
    """The renderer as trained: forward(image [1, 6, size, size], audio [1, …]) -> [1, 3, size, size]."""

    def __init__(self, channels: list[int], mobileone: bool = False, wenet: bool = False) -> None:
        super().__init__()
        c = channels
        self.audio_model = _AudioBranch(mobileone, wenet, c)
        self.fuse_conv = nn.Sequential(_Double(mobileone, 2 * c[4], c[4]), _Double(mobileone, c[4], c[3]))
        self.inc = _Named("inconv", _block(mobileone, 6, c[0]))
        for i in range(1, 5):
            self.add_module(f"down{i}", _Named("maxpool_conv", _Double(mobileone, c[i - 1], c[i], 2)))
        for i, (inputs, outputs) in enumerate(
            (
                (2 * c[3], c[3] // 2),
                (c[3] // 2 + c[2], c[2] // 2),
                (c[2] // 2 + c[1], c[1] // 2),
                (c[1] // 2 + c[0], c[0]),
            )
        ):
            self.add_module(f"up{i + 1}", _Named("conv", _Double(mobileone, inputs, outputs)))
        self.outc = _Named("conv", nn.Conv2d(c[0], 3, 1))

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        seen = [self.inc(image)]
        for i in range(1, 5):
            seen.append(self.get_submodule(f"down{i}")(seen[-1]))
        x = self.fuse_conv(torch.cat([seen.pop(), self.audio_model(audio)], 1))
        for i in range(1, 5):
            up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = self.get_submodule(f"up{i}")(torch.cat([up, seen.pop()], 1))
        return torch.sigmoid(self.outc(x))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next((g for g in (32, 16, 8, 4, 2) if channels % g == 0), 1), channels)


class _Front(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=False)
        self.norm = _group_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)))


class _Temporal(nn.Module):
    def __init__(self, channels: int, expansion: int, dilation: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.norm = _group_norm(channels)
        self.pw_expand = nn.Conv1d(channels, wide, 1, bias=False)
        self.dw_conv = nn.Conv1d(wide, wide, 5, padding=2 * dilation, dilation=dilation, groups=wide, bias=False)
        self.pw_project = nn.Conv1d(wide, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw_project(F.gelu(self.dw_conv(self.pw_expand(self.norm(x)))))


class FeatherHubert(nn.Module):
    """The encoder: forward(waveform [1, samples]) -> [1, tokens, outputs]."""

    def __init__(self, front: list[int], channels: int, blocks: int, outputs: int, expansion: int = 2) -> None:
        super().__init__()
        widths = [1, *front, channels, channels, channels]
        steps = zip(widths, widths[1:], (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=False)
        self.frontend = _Named("layers", nn.Sequential(*(_Front(*step) for step in steps)))
        self.encoder = nn.Sequential(*(_Temporal(channels, expansion, (1, 2, 4, 8)[i % 4]) for i in range(blocks)))
        self.final_norm = _group_norm(channels)
        self.proj = nn.Conv1d(channels, outputs, 1)

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.encoder(self.frontend(waveform[:, None]))
        return self.proj(F.gelu(self.final_norm(x))).transpose(1, 2)


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module in evaluation, as if trained: no norm is left at one and zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm | nn.LayerNorm):
                part.weight.uniform_(0.6, 1.4, generator=generator)
                part.bias.normal_(0, 0.2, generator=generator)
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
                part.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return module.eval()


SMALL = {"channels": [8, 12, 24, 32, 64], "front": [16, 16, 24, 32], "width": 32, "blocks": 3, "outputs": 256}
"""A geometry of 96 pixels and features of 16 x 16."""


def small_unet(mobileone: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return trained(UNet(SMALL["channels"], mobileone))  # type: ignore[arg-type]


def small_encoder() -> nn.Module:
    torch.manual_seed(1)
    return trained(FeatherHubert(SMALL["front"], SMALL["width"], SMALL["blocks"], SMALL["outputs"]), 1)  # type: ignore[arg-type]


class _NormedConvolution(nn.Module):
    """A convolution over three frames, a norm of each frame, and the input again where it is residual."""

    def __init__(self, inputs: int, outputs: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        if residual and inputs != outputs:
            self.residual_layer = nn.Sequential(nn.Conv1d(inputs, outputs, 3, padding=1))
        elif residual:
            self.residual_layer = nn.Sequential()
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=1)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).transpose(1, 2)).transpose(1, 2)
        return torch.relu(y + self.residual_layer(x) if self.residual else y)


class _Identity(nn.Module):
    def __init__(self, width: int, identities: int, features: int) -> None:
        super().__init__()
        self.id_mlp = nn.Conv1d(identities, features, 1)
        blocks = [_NormedConvolution(width + features * (i == 0), width, True) for i in range(3)]
        self.first_net = _Named("conv_layers", nn.Sequential(*blocks))
        self.grus = nn.GRU(width, width, batch_first=True)  # never called

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        who = self.id_mlp(identity[..., None].repeat(1, 1, x.shape[2]))
        return self.first_net(torch.cat([x, who], 1))


class Audio2Expression(nn.Module):
    """LAM's network around transformers' wav2vec2: forward(audio [1, samples], identity [1, …]) -> [1, frames, 52]."""

    def __init__(self, config: Any, width: int, identities: int, features: int) -> None:
        from transformers import Wav2Vec2Model

        super().__init__()
        self.audio_encoder = Wav2Vec2Model(config)
        self.audio_encoder.lm_head = nn.Linear(1024, 32)  # never called
        self.feature_projection = nn.Linear(config.hidden_size, width)
        self.identity_encoder = _Identity(width, identities, features)
        self.decoder = nn.ModuleList([nn.Sequential(*(_NormedConvolution(width, width, False) for _ in range(3)))])
        self.output_proj = nn.Linear(width, 52)

    def forward(self, audio: Tensor, identity: Tensor) -> Tensor:
        frames = -(-audio.shape[1] * 30 // 16000)
        x = self.audio_encoder.feature_extractor(audio)
        x = F.interpolate(x, size=frames, align_corners=True, mode="linear").transpose(1, 2)
        x = self.audio_encoder.encoder(self.audio_encoder.feature_projection(x)[0]).last_hidden_state
        x = self.identity_encoder(self.feature_projection(x).transpose(1, 2), identity)
        return torch.sigmoid(self.output_proj(self.decoder[0](x).transpose(1, 2)))


def small_expression() -> nn.Module:
    from transformers import Wav2Vec2Config

    config = Wav2Vec2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=192,
        conv_dim=[32, 32, 48, 48, 32, 32, 64],
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    torch.manual_seed(2)
    return trained(Audio2Expression(config, 96, 12, 16), 2)


def flame(points: int, vertices: int = 40, shapes: int = 6, seed: int = 3) -> dict[str, Tensor]:
    """A head and an avatar of it as LAM holds them, random: FLAME's buffers, who it is (`betas`), and what its network
    gave each Gaussian before it is made sense of (logits, logarithms)."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(points, 5, generator=g)
    regressor = torch.rand(5, vertices, generator=g)
    return {
        "v_template": torch.randn(vertices, 3, generator=g) / 8,
        "shapedirs": torch.randn(vertices, 3, shapes + 52, generator=g) / 50,
        "shapedirs_up": torch.randn(points, 3, shapes + 52, generator=g) / 50,
        "J_regressor": regressor / regressor.sum(1, keepdim=True),
        "lbs_weights_up": weights / weights.sum(1, keepdim=True),
        "parents": torch.tensor([-1, 0, 1, 1, 1]),
        "betas": torch.randn(1, shapes, generator=g),
        "xyz": torch.randn(points, 3, generator=g) / 8,
        "shs": torch.rand(points, 3, generator=g),
        "opacity": torch.rand(points, 1, generator=g),
        "scaling": torch.rand(points, 3, generator=g) / 100,
        "rotation": F.normalize(torch.randn(points, 4, generator=g)),
    }


def exponentials(vectors: Tensor) -> Tensor:
    """Rotations [count, 3, 3] of axes times angles [count, 3]."""
    skew = torch.zeros(len(vectors), 3, 3)
    for (row, column), at in {(2, 1): 0, (0, 2): 1, (1, 0): 2}.items():
        skew[:, row, column], skew[:, column, row] = vectors[:, at], -vectors[:, at]
    return torch.matrix_exp(skew)


def animated(
    head: dict[str, Tensor], pose: dict[str, Tensor], turns: Callable[[Tensor], Tensor] = exponentials
) -> Tensor:
    """The points of `flame`'s avatar [1, points, 3], as LAM's `animation_forward` moves them: nothing folded, matrices
    of 4 x 4. turns: rotations of axes times angles."""
    expression = pose["expression"]
    betas = torch.cat([head["betas"], expression], 1)
    shaped = head["v_template"] + torch.einsum("l,vkl->vk", betas[0], head["shapedirs"])
    joints = head["J_regressor"] @ shaped
    vectors = torch.cat([pose[name] for name in ("rotation", "neck", "jaw", "eyes")], 1).reshape(5, 3)
    local = torch.eye(4).repeat(5, 1, 1)
    local[:, :3, :3] = turns(vectors)
    chain: list[Tensor] = []
    for at, parent in enumerate(head["parents"].tolist()):
        local[at, :3, 3] = joints[at] - (joints[parent] if parent >= 0 else 0)
        chain.append(chain[parent] @ local[at] if parent >= 0 else local[at])
    rest = torch.eye(4).repeat(5, 1, 1)
    rest[:, :3, 3] = -joints
    each = torch.einsum("nj,jab->nab", head["lbs_weights_up"], torch.stack(chain) @ rest)
    dirs = head["shapedirs_up"][:, :, -52:]
    points = head["xyz"] + torch.einsum("l,vkl->vk", expression[0], dirs)
    moved = torch.einsum("nab,nb->na", each[:, :3, :3], points) + each[:, :3, 3]
    return (moved + pose["translation"])[None]
