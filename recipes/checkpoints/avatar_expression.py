"""The audio2expression of `tiny-avatar`: LAM's network around a small wav2vec2, from speech to 52 blendshapes.

Its four identities speak with mouths that open more or less (`GAINS`), which is what the one-hot input tells it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from recipes.checkpoints.avatar_speech import AT, RATE, SPEAKING, Floats
from recipes.checkpoints.avatar_training import STREAM, Clock, picked, pool, save, schedule, window
from tests.compiler.avatars import Audio2Expression

GAINS = (1.0, 0.7, 0.85, 1.2)
FPS, WIDTH, FEATURES = 30, 96, 16
WAV2VEC2 = {
    "conv_dim": [48, 64, 64, 64, 64, 64, 64],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}


def network() -> nn.Module:
    from transformers import Wav2Vec2Config

    off = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop")
    config = Wav2Vec2Config(**WAV2VEC2, **dict.fromkeys(off, 0.0))
    return Audio2Expression(config, WIDTH, len(GAINS), FEATURES)


def truth(weights: Floats, identity: int) -> Floats:
    """What an identity's blendshapes are where the speech's are `weights` [frames, 52]."""
    found = weights.copy()
    speaking = [AT[name] for name in SPEAKING]
    found[:, speaking] = (found[:, speaking] * GAINS[identity]).clip(0, 1)
    return found


def train(clips: int, steps: int, rows: int) -> tuple[nn.Module, float]:
    """The trained network, and the minutes that it took."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = network().train()
    frames = STREAM["audio2expression"]["window"]
    samples = RATE * frames // FPS
    speech = pool(clips, 5.0)
    tracks = [np.pad(clip.weights(FPS), ((frames, frames), (0, 0))) for clip in speech]
    told = [np.pad(clip.told(FPS), frames) for clip in speech]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    clock = Clock("audio2expression", steps)
    scale = torch.ones(52)
    scale[[AT["jawOpen"], AT["mouthClose"]]] = 3
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * schedule(step, steps, 200)
        sounds, wanted, sure = [], [], []
        for _ in range(rows):
            which = int(random.integers(clips))
            # whole frames, so that truth lies where the window's frames do
            at = picked(random, speech[which], samples) * FPS // RATE
            sounds.append(window(speech[which].sound, -(-at * RATE // FPS), samples, False))
            wanted.append(tracks[which][frames + at :][:frames])
            sure.append(told[which][frames + at :][:frames])
        who = random.integers(0, len(GAINS), rows)
        target = torch.from_numpy(np.stack([truth(w, int(i)) for w, i in zip(wanted, who, strict=True)]))
        weight = torch.from_numpy(1 + 2.0 * (np.stack(sure) != 0))[..., None] * scale
        given = nn.functional.one_hot(torch.from_numpy(who), len(GAINS)).float()
        found = model(torch.from_numpy(np.stack(sounds)), given)
        off = found - target
        loss = (weight * (off**2 + 0.05 * off.abs())).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step(step, loss.item())
    return stored(model), clock.minutes


def stored(model: nn.Module) -> nn.Module:
    """In evaluation, its weight norm folded, and without what its forward never reads."""
    model.eval()
    place: Any = model.audio_encoder.encoder.pos_conv_embed.conv  # type: ignore[union-attr]
    if parametrize.is_parametrized(place):
        parametrize.remove_parametrizations(place, "weight")
    encoder: Any = model.audio_encoder
    for name in ("masked_spec_embed", "lm_head"):
        if hasattr(encoder, name):
            delattr(encoder, name)
    if hasattr(model.identity_encoder, "grus"):
        del model.identity_encoder.grus  # type: ignore[union-attr]
    return model


def write(folder: Any, model: nn.Module) -> None:
    config = {
        "model_type": "audio2expression",
        "wav2vec2": WAV2VEC2,
        "num_identity_classes": len(GAINS),
        "identity_feat_dim": FEATURES,
        "hidden_dim": WIDTH,
        "decoder_depth": 3,
        "expression_dim": 52,
        "streaming": STREAM["audio2expression"],
    }
    save(folder, config, {"backbone.": model})
