"""How well the networks of `tiny-avatar` do on clips, voices and poses that training never drew: from stored weights.

Every figure is also given for each clip alone, so that a few of them can be computed again and compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.checkpoints import avatar_expression, avatar_gaussians, avatar_renderer
from recipes.checkpoints.avatar_face import BORDER, MOUTH, SHUT, Pixels, draw, idle, opening
from recipes.checkpoints.avatar_speech import AT, HELD_OUT_SEED, SPEAKING, Floats, Speech, speak
from recipes.checkpoints.avatar_training import OUT, around, expressed, fold, heard

SECONDS = 3.6
APART = 0.1  # of jawOpen over mouthClose, from which on a mouth is open
Figures = dict[str, Any]


def loaded(folder: Path, parts: Mapping[str, nn.Module]) -> None:
    """A checkpoint's tensors into modules, by their prefixes."""
    tensors = load_file(folder / "model.safetensors")
    for prefix, part in parts.items():
        state = {name.removeprefix(prefix): t.float() for name, t in tensors.items() if name.startswith(prefix)}
        part.load_state_dict(state)
        part.eval()


def expression(clips: int, folder: Path = OUT / "audio2expression") -> Figures:
    model = avatar_expression.stored(avatar_expression.network())
    loaded(folder, {"backbone.": model})
    speaking = [AT[name] for name in SPEAKING]
    each = []
    for n in range(clips):
        clip, who = speak(HELD_OUT_SEED + n, SECONDS), n % len(avatar_expression.GAINS)
        found = expressed(model, clip.sound, who, len(avatar_expression.GAINS))
        truth = avatar_expression.truth(clip.weights(avatar_expression.FPS), who)
        right, told = _closed(found[:, AT["jawOpen"]] - found[:, AT["mouthClose"]] > APART, clip.told(30))
        each.append(
            {
                "squared": float(((found - truth) ** 2).mean()),
                "squared_speaking": float(((found - truth)[:, speaking] ** 2).mean()),
                "squared_of_rest": float((truth[:, speaking] ** 2).mean()),
                "closed_right": right,
                "told": told,
                "jaw": _correlation(found[:, AT["jawOpen"]], truth[:, AT["jawOpen"]]),
            }
        )
    return {
        "clips": clips,
        "blendshape_rms": _root(each, "squared"),
        "blendshape_rms_of_speaking_ones": _root(each, "squared_speaking"),
        "the_same_of_a_mouth_at_rest": _root(each, "squared_of_rest"),
        **_shares(each),
        "jaw_correlation": float(np.mean([clip["jaw"] for clip in each])),
        "each": each,
    }


def renderer(clips: int, folder: Path = OUT / "feathertalk", show: list[Pixels] | None = None) -> Figures:
    """show: takes pictures of the first clip: video, what was drawn, and the truth."""
    encoder, unet = avatar_renderer.networks()
    loaded(folder, {"feather_hubert.": encoder, "unet.": fold(unet)})
    each = []
    for n in range(clips):
        clip, video, truth = held_out(n)
        with torch.no_grad():
            sounds = around(heard(encoder, clip.sound), avatar_renderer.OUTPUTS)
            given = torch.from_numpy(np.stack([avatar_renderer.image(frame) for frame in video]))
            made = torch.cat([unet(given[at : at + 1], sounds[at : at + 1]) for at in range(len(given))])
        drawn = video.copy()
        drawn[:, BORDER:-BORDER, BORDER:-BORDER] = (made.numpy() * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        if show is not None and n == 0:
            show += [np.concatenate(row, 1) for row in zip(video, drawn, truth, strict=True)]
        opened = np.array([opening(frame) for frame in drawn])
        right, told = _closed(opened > SHUT, clip.told(avatar_renderer.FPS))
        each.append(
            {
                "squared": _squared(drawn, truth),
                "squared_mouth": _squared(_mouth(drawn), _mouth(truth)),
                "squared_mouth_of_video": _squared(_mouth(video), _mouth(truth)),
                "ssim": ssim(drawn, truth),
                "ssim_mouth": ssim(_mouth(drawn), _mouth(truth)),
                "closed_right": right,
                "told": told,
                "opening": _correlation(opened, np.array([opening(frame) for frame in truth])),
            }
        )
    return {
        "clips": clips,
        "psnr": _decibels(each, "squared"),
        "psnr_mouth": _decibels(each, "squared_mouth"),
        "psnr_mouth_of_the_video_as_it_was": _decibels(each, "squared_mouth_of_video"),
        "ssim": float(np.mean([clip["ssim"] for clip in each])),
        "ssim_mouth": float(np.mean([clip["ssim_mouth"] for clip in each])),
        **_shares(each),
        "opening_correlation": float(np.mean([clip["opening"] for clip in each])),
        "each": each,
    }


def held_out(n: int, first: int = HELD_OUT_SEED, seconds: float = SECONDS) -> tuple[Speech, Pixels, Pixels]:
    """Speech, a video of a head with another mouth, and the truth: crops [frames, 100, 100, 3], blue first."""
    clip, other = speak(first + n, seconds), speak(first + 500_000 + n, seconds)
    mouths, silent = clip.weights(avatar_renderer.FPS), other.weights(avatar_renderer.FPS)
    poses = idle(first + n, len(mouths), avatar_renderer.FPS)
    video = np.stack([draw(pose, mouth) for pose, mouth in zip(poses, silent, strict=True)])
    return clip, video, np.stack([draw(pose, mouth) for pose, mouth in zip(poses, mouths, strict=True)])


def gaussian(count: int, folder: Path = OUT / "gaussian") -> Figures:
    """Over poses of which half have the weights of held-out speech. Millimetres."""
    head, tensors = avatar_gaussians.Head(), load_file(folder / "model.safetensors")
    said = np.concatenate([speak(HELD_OUT_SEED + n, SECONDS).weights(30) for n in range(2)])
    tracks = torch.from_numpy(said[np.linspace(0, len(said) - 1, count).astype(int)])
    found = {"poses": 2 * count}
    for name, given in (("random", None), ("speaking", tracks)):
        posed = avatar_gaussians.poses(HELD_OUT_SEED, count, given)
        with torch.no_grad():
            truth = head.moved(*posed)
            found[f"rms_mm_{name}"] = _millimetres(avatar_gaussians.posed(tensors, *posed) - truth)
            found[f"rms_mm_{name}_at_rest"] = _millimetres(truth - head.points)
    return found


def ssim(one: Pixels, other: Pixels) -> float:
    """Mean structural similarity of luma (Wang et al. 2004: a Gaussian window of 11, deviation 1.5)."""
    weights = torch.tensor([0.114, 0.587, 0.299])
    x, y = ((torch.from_numpy(frames).float() @ weights)[:, None] for frames in (one, other))
    line = torch.exp(-(((torch.arange(11) - 5) / 1.5) ** 2) / 2)
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]

    def mean(values: Tensor) -> Tensor:
        return nn.functional.conv2d(values, kernel)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(found.mean())


def rounded(figures: Figures) -> Figures:
    """For people and files: six significant digits."""
    found: Figures = json.loads(json.dumps(figures), parse_float=lambda text: float(f"{float(text):.6g}"))
    return found


def _mouth(frames: Pixels) -> Pixels:
    left, top, right, bottom = MOUTH
    return np.ascontiguousarray(frames[:, top:bottom, left:right])


def _squared(one: Pixels, other: Pixels) -> float:
    inner = slice(BORDER, -BORDER) if one.shape[1] == one.shape[2] == 100 else slice(None)
    return float(((one[:, inner, inner].astype(np.float64) - other[:, inner, inner]) ** 2).mean())


def _closed(opened: np.ndarray, told: np.ndarray) -> tuple[list[int], list[int]]:
    """Of frames that must be shut and of those that must be open: how many are right, and how many there are."""
    shut, open_ = told < 0, told > 0
    return [int((~opened[shut]).sum()), int(opened[open_].sum())], [int(shut.sum()), int(open_.sum())]


def _shares(each: list[Figures]) -> Figures:
    right, told = (np.sum([clip[key] for clip in each], 0) for key in ("closed_right", "told"))
    return {
        "lip_closure": float(right.sum() / told.sum()),
        "shut_when_it_must": f"{right[0]} of {told[0]}",
        "open_when_it_must": f"{right[1]} of {told[1]}",
    }


def _root(each: list[Figures], key: str) -> float:
    return float(np.mean([clip[key] for clip in each]) ** 0.5)


def _decibels(each: list[Figures], key: str) -> float:
    return float(10 * np.log10(255**2 / np.mean([clip[key] for clip in each])))


def _millimetres(errors: Tensor) -> float:
    return 1000 * float(errors.square().sum(-1).mean().sqrt())


def _correlation(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(one, other)[0, 1])
