"""The feathertalk of `tiny-avatar`: FeatherHuBERT and the U-Net of one drawn face, at 96 pixels.

FeatherHuBERT learns first, to tell the mouth's weights from its tokens and through the U-Net's audio branch; then it is
kept, and the U-Net learns to draw. As in the project's inference, the current picture of a video is its own reference:
it has another mouth, which is what has to change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from recipes.checkpoints.avatar_face import BORDER, CROP, MOUTH, Pixels, Pose, draw, idle
from recipes.checkpoints.avatar_speech import AT, SPEAKING, Floats, Speech
from recipes.checkpoints.avatar_training import (
    STREAM,
    TOKENS,
    Clock,
    around,
    heard,
    picked,
    pool,
    save,
    schedule,
    window,
)
from tests.compiler.avatars import FeatherHubert, UNet

CHANNELS = [16, 32, 64, 128, 128]
FRONT, WIDTH, BLOCKS, OUTPUTS = [32, 48, 64, 96], 96, 4, 256
FPS, SIZE = 25, CROP - 2 * BORDER
COVERED = (3, 3, 90, 87)  # x, y, width and height of what is black in the current picture
_SEEN = [AT[name] for name in SPEAKING]


def networks() -> tuple[nn.Module, nn.Module]:
    return FeatherHubert(FRONT, WIDTH, BLOCKS, OUTPUTS), UNet(CHANNELS)


def image(current: Pixels) -> Floats:
    """[6, 96, 96] of a crop: the picture as its own reference, and covered."""
    inner = current[BORDER:-BORDER, BORDER:-BORDER].astype(np.float32).transpose(2, 0, 1) / 255
    found = np.concatenate([inner, inner])
    x, y, width, height = COVERED
    found[3:, y : y + height, x : x + width] = 0
    return found


def _tells(encoder: nn.Module, branch: nn.Module, speech: list[Speech], steps: int, rows: int) -> None:
    """Train the encoder, and the U-Net's audio branch, to tell the mouth's weights."""
    random = np.random.default_rng(1)
    count = STREAM["feathertalk"]["window"]
    samples = count * 320 + 80
    near, far = nn.Linear(OUTPUTS, len(_SEEN)), nn.Linear(CHANNELS[4], len(_SEEN))
    parts = nn.ModuleList([encoder, branch, near, far]).train()
    tracks = [np.pad(clip.weights(TOKENS)[:, _SEEN], ((count, count), (0, 0))) for clip in speech]
    optimizer = torch.optim.AdamW(parts.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    clock = Clock("feather_hubert", steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * schedule(step, steps)
        sounds, wanted = [], []
        for _ in range(rows):
            which = int(random.integers(len(speech)))
            at = picked(random, speech[which], samples) // 320
            sounds.append(window(speech[which].sound, at * 320, samples, True))
            wanted.append(tracks[which][count + at :][:count])
        target = torch.from_numpy(np.stack(wanted))
        tokens = encoder(torch.from_numpy(np.stack(sounds)))
        # a frame's middle lies between its two tokens; the last tokens are context for others
        rolled = [around(row, OUTPUTS)[8:42][::8] for row in tokens]
        drawn = branch(torch.cat(rolled))[:, :, 3:5, 2:4].mean((2, 3))
        middles = (target[:, 16:84:2] + target[:, 17:85:2])[:, ::8].reshape(-1, len(_SEEN)) / 2
        loss = ((near(tokens) - target) ** 2).mean() + ((far(drawn) - middles) ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step(step, loss.item())


def draws(
    unet: nn.Module,
    encoder: nn.Module,
    speech: list[Speech],
    steps: int,
    rows: int,
    seed: int,
    peak: float,
    state: Path | None = None,
) -> None:
    """Train the U-Net to draw. peak: of the learning rate. state: kept every hundred steps, and gone on from."""
    random = np.random.default_rng(seed)
    hear = [around(heard(encoder, clip.sound), OUTPUTS) for clip in speech]
    mouths = [clip.weights(FPS) for clip in speech]
    poses: list[list[Pose]] = [idle(at, len(found), FPS) for at, found in enumerate(mouths)]
    unet.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    left, top, right, bottom = (edge - BORDER for edge in MOUTH)
    weight = torch.ones(SIZE, SIZE)
    weight[top:bottom, left:right] = 6
    clock, start = Clock("unet", steps), 0
    if state is not None and state.exists():
        start, network, moments, random.bit_generator.state = torch.load(state, weights_only=False)
        unet.load_state_dict(network)
        optimizer.load_state_dict(moments)
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(step, steps)
        images, sounds, truths = [], [], []
        for _ in range(rows):
            which, other = (int(random.integers(len(speech))) for _ in range(2))
            at = int(random.integers(len(mouths[which])))
            pose, silent = poses[which][at], mouths[other][int(random.integers(len(mouths[other])))]
            images.append(image(draw(pose, silent if random.uniform() < 0.8 else mouths[which][at])))
            truths.append(image(draw(pose, mouths[which][at]))[:3])
            sounds.append(hear[which][at])
        given = torch.from_numpy(np.stack(images)).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            found = unet(given, torch.stack(sounds).to(memory_format=torch.channels_last))
        off = found.float() - torch.from_numpy(np.stack(truths))
        loss = (weight * (off.abs() + 4 * off**2)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step(step, loss.item())
        if state is not None and (step + 1) % 100 == 0:
            aside = state.with_suffix(".new")
            torch.save((step + 1, unet.state_dict(), optimizer.state_dict(), random.bit_generator.state), aside)
            aside.replace(state)


def train(
    clips: int, first: int, rounds: list[tuple[int, float]], rows: int, state: Path | None = None
) -> tuple[nn.Module, nn.Module, float]:
    """The trained encoder and U-Net, and the minutes that it took. first: steps of the encoder; rounds: of the U-Net,
    steps and the rate that each goes up to and comes down from, and of which `state` lets a killed run go on."""
    torch.manual_seed(0)
    clock = Clock("feathertalk", sum(steps for steps, _ in rounds))
    encoder, unet = networks()
    speech = pool(clips, 4.0)
    _tells(encoder, unet.audio_model, speech, first, rows)  # type: ignore[arg-type]
    encoder.eval()
    for turn, (steps, peak) in enumerate(rounds):
        draws(unet, encoder, speech, steps, rows, 2 + turn, peak, state and state.with_suffix(f".{turn}"))
    return encoder, unet, clock.minutes


def write(folder: Path, encoder: nn.Module, unet: nn.Module) -> None:
    """unet: folded."""
    config = {
        "model_type": "feathertalk",
        "variant": "original",
        "audio": "hubert",
        "channels": CHANNELS,
        "size": SIZE,
        "feather_hubert": {
            "channels": WIDTH,
            "expansion": 2,
            "num_blocks": BLOCKS,
            "output_dim": OUTPUTS,
            "frontend": FRONT,
        },
        "streaming": STREAM["feathertalk"],
    }
    save(folder, config, {"feather_hubert.": encoder, "unet.": unet})
