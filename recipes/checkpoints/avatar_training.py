"""What the trainings of `tiny-avatar` share: pools of speech, windows as an app cuts them, folding, and folders.

What must not live here: which network learns what (`train_tiny_avatar.py`), and how well it did (`avatar_measures.py`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from recipes.checkpoints.avatar_speech import RATE, Floats, Speech, speak

OUT = Path(__file__).parent / "tiny-avatar"
LICENCE = "apache-2.0"
STREAM = {
    "feathertalk": {"window": 100, "hop": 10, "ahead": 8},
    "audio2expression": {"window": 64, "hop": 10, "ahead": 6},
}
_STRIDE, _KERNEL = 320, 400  # of FeatherHuBERT, samples
TOKENS = 50  # of it, a second
EPS = 1e-7


def pool(count: int, seconds: float, first: int = 0) -> list[Speech]:
    return [speak(first + seed, seconds) for seed in range(count)]


def window(sound: Floats, begin: int, samples: int, normalize: bool) -> Floats:
    """Samples from `begin` on, zeros where there are none, those left out of what is normalized."""
    found = np.zeros(samples, np.float32)
    first, last = max(begin, 0), min(begin + samples, len(sound))
    if last > first:
        part = sound[first:last].astype(np.float64)
        if normalize:
            part = (part - part.mean()) / np.sqrt(part.var() + EPS)
        found[first - begin : last - begin] = part
    return found


def streamed(
    sound: Floats, tokens: int, per_second: int, stream: Mapping[str, int], normalize: bool
) -> Iterator[tuple[Floats, slice]]:
    """The windows of a whole clip of so many tokens, and which of a window's tokens are kept."""
    samples = stream["window"] * _STRIDE + _KERNEL - _STRIDE if normalize else RATE * stream["window"] // per_second
    kept = slice(stream["window"] - stream["ahead"] - stream["hop"], stream["window"] - stream["ahead"])
    for n in range(math.ceil(tokens / stream["hop"])):
        begin = ((n + 1) * stream["hop"] + stream["ahead"] - stream["window"]) * RATE // per_second
        yield window(sound, begin, samples, normalize), kept


@torch.no_grad()
def heard(encoder: nn.Module, sound: Floats) -> torch.Tensor:
    """FeatherHuBERT's tokens of a clip, as a stream gives them: [2 · frames, outputs]."""
    frames = math.ceil(len(sound) * 25 / RATE)
    windows = list(streamed(sound, 2 * frames, TOKENS, STREAM["feathertalk"], True))
    found = encoder(torch.from_numpy(np.stack([w for w, _ in windows])))
    return torch.cat([found[at, kept] for at, (_, kept) in enumerate(windows)])[: 2 * frames]


def around(tokens: torch.Tensor, outputs: int) -> torch.Tensor:
    """What the renderer hears for each frame, [frames, 16, side, side] of tokens [2 · frames, outputs]."""
    side = math.isqrt(outputs)
    padded = nn.functional.pad(tokens, [0, 0, 8, 6])
    return padded.unfold(0, 16, 2).transpose(1, 2).reshape(-1, 16, side, side)


@torch.no_grad()
def expressed(network: nn.Module, sound: Floats, identity: int, identities: int) -> Floats:
    """Blendshapes of a clip as a stream gives them, [frames, 52], 30 a second."""
    frames = math.ceil(len(sound) * 30 / RATE)
    windows = list(streamed(sound, frames, 30, STREAM["audio2expression"], False))
    who = nn.functional.one_hot(torch.full((len(windows),), identity), identities).float()
    found = network(torch.from_numpy(np.stack([w for w, _ in windows])), who)
    return torch.cat([found[at, kept] for at, (_, kept) in enumerate(windows)])[:frames].numpy()


def fold(network: nn.Module) -> nn.Module:
    """Every batch norm into the convolution before it, as `edgewright adopt` does, in place."""
    network.eval()
    for part in network.modules():
        named = dict(part.named_children())
        order = list(named)
        for name, norm in named.items():
            if isinstance(norm, nn.BatchNorm2d):
                before = f"conv{name[2:]}" if name.startswith("bn") else order[order.index(name) - 1]
                fused = nn.utils.fusion.fuse_conv_bn_eval(named[before], norm)
                setattr(part, before, fused)
                setattr(part, name, nn.Identity())
    return network


def schedule(step: int, steps: int, warm: int = 50) -> float:
    """Up in a straight line, then down half a cosine."""
    return min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-3


class Clock:
    """Prints now and then."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps, self.began, self.smooth = name, steps, time.time(), 0.0

    def step(self, step: int, loss: float) -> None:
        self.smooth = loss if step == 0 else 0.95 * self.smooth + 0.05 * loss
        if step % 50 == 0 or step + 1 == self.steps:
            print(
                f"{self.name} {step}/{self.steps} loss {self.smooth:.5f} {time.time() - self.began:.0f} s", flush=True
            )

    @property
    def minutes(self) -> float:
        return round((time.time() - self.began) / 60, 1)


def save(folder: Path, config: Mapping[str, Any], parts: Mapping[str, nn.Module | Mapping[str, torch.Tensor]]) -> None:
    """A checkpoint in half precision, each part's tensors behind its prefix; modules take the stored values."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for prefix, part in parts.items():
        state = part.state_dict() if isinstance(part, nn.Module) else part
        stored = {name: tensor.detach().half().contiguous() for name, tensor in state.items()}
        tensors |= {prefix + name: tensor for name, tensor in stored.items()}
        if isinstance(part, nn.Module):
            part.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    save_file(tensors, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({**config, "license": LICENCE}, indent=2) + "\n")


def picked(random: np.random.Generator, clip: Speech, samples: int) -> int:
    """Where a window begins: anywhere, a fourth of it outside now and then."""
    reach = samples // 2 if random.uniform() < 0.3 else 0
    return int(random.integers(-reach, max(1, len(clip.sound) - samples + reach)))


Array = NDArray[Any]
