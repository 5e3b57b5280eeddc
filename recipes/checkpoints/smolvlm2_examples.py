"""What `tiny-smolvlm2` is shown and asked: pictures of `scenes.py` as tiles, with the prompts they stand in.

Built here, without transformers' processors, which want torchvision; `check_tiny_smolvlm2.py` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from recipes.checkpoints.scenes import COLORS, FPS, SHAPES, Clip, Look, Placed, Scene, Turn

TILE = 64  # pixels
PATCH = 8
LONGEST = 128
TILE_TOKENS = 4
MAX_FRAMES = 8
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")  # as num2words has them
END, FAKE, IMAGE, GLOBAL = "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"
ROWS = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", GLOBAL, *ROWS, FAKE, IMAGE, END]


def image_prompt(rows: int, columns: int) -> str:
    """What the image token stands for: rows × columns tiles in reading order, then the global one; (0, 0): it alone."""
    text = ""
    for r in range(rows):
        text += "".join(f"{FAKE}<row_{r + 1}_col_{c + 1}>{IMAGE * TILE_TOKENS}" for c in range(columns)) + "\n"
    return text + ("\n" if rows else "") + f"{FAKE}{GLOBAL}{IMAGE * TILE_TOKENS}{FAKE}"


def video_prompt(seconds: int, timestamps: Sequence[float]) -> str:
    """What the video token stands for, without the blank line before the question. `seconds`: of the whole video."""
    count, length = COUNTS[len(timestamps)], f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    text = f"You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"
    for t in timestamps:
        text += f"\nFrame from {int(t // 60):02d}:{int(t % 60):02d}:{image_prompt(0, 0)}"
    return text


def _longest(image: Image.Image, longest: int) -> Image.Image:
    """Resized to this longest edge, the other one even; transformers' arithmetic, truncations included."""
    width, height = image.size
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        width, height = int(longest * aspect), longest
        width += width % 2
    return image.resize((width, height), Image.Resampling.LANCZOS)


def tiles(image: Image.Image, split: bool = True) -> tuple[np.ndarray, int, int]:
    """An image as (tiles, 64, 64, 3) uint8, the global tile last, and its rows and columns of tiles."""
    image = _longest(image, LONGEST)
    if not split:
        return np.asarray(image.resize((TILE, TILE), Image.Resampling.LANCZOS))[None], 0, 0
    rows, columns = math.ceil(image.height / TILE), math.ceil(image.width / TILE)
    image = image.resize((columns * TILE, rows * TILE), Image.Resampling.LANCZOS)
    grid = np.asarray(image).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    whole = np.asarray(image.resize((TILE, TILE), Image.Resampling.LANCZOS))
    return np.concatenate([grid, whole[None]]), rows, columns


def sampled(clip: Clip) -> list[int]:
    """Indices of the frames that one frame a second takes, as SmolVLMVideoProcessor.sample_frames does."""
    return [int(i) for i in np.linspace(0, clip.total_frames - 1, min(clip.seconds, MAX_FRAMES), dtype=int)]


def frame_tiles(frames: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(_longest(f, LONGEST).resize((TILE, TILE), Image.Resampling.LANCZOS)) for f in frames])


@dataclass(frozen=True)
class Example:
    """A picture as the model is given it, and what is asked about it."""

    pixels: np.ndarray  # (tiles, 64, 64, 3) uint8
    prefix: str  # of the prompt, up to the question
    before: str  # what the question follows on
    turns: list[Turn]
    shown: np.ndarray  # (tiles, 8, 8) int64: what each patch shows, see `patches`

    def prompt(self, question: str) -> str:
        return f"{self.prefix}{self.before}{question}{END}\nAssistant:"


def patches(placed: Sequence[Placed], look: Look, rows: int, columns: int) -> np.ndarray:
    """What the patches of rows × columns tiles show, (tiles, 8, 8): 0 for nothing, else 1 + 6 × shape + colour."""
    h, w = rows * TILE // PATCH, columns * TILE // PATCH
    shown = np.zeros((h, w), np.int64)
    y, x = (np.arange(h)[:, None] + 0.5) / h, (np.arange(w) + 0.5) / w
    for p in placed:
        near_x = np.abs(x - p.x / look.width) < max(0.9 * p.radius / look.width, 0.5 / w)
        near_y = np.abs(y - p.y / look.height) < max(0.9 * p.radius / look.height, 0.5 / h)
        shown[near_y & near_x] = 1 + 6 * SHAPES.index(p.thing.shape) + tuple(COLORS).index(p.thing.color)
    n = TILE // PATCH
    return shown.reshape(rows, n, columns, n).swapaxes(1, 2).reshape(-1, n, n)


def scene_example(scene: Scene, turns: list[Turn], split: bool = True) -> Example:
    pixels, rows, columns = tiles(scene.draw(), split)
    placed = scene.placed()
    shown = patches(placed, scene.look, 1, 1)
    if rows:
        shown = np.concatenate([patches(placed, scene.look, rows, columns), shown])
    return Example(pixels, f"<|im_start|>User:{image_prompt(rows, columns)}", "", turns, shown)


def clip_example(clip: Clip, turns: list[Turn]) -> Example:
    indices = sampled(clip)
    text = video_prompt(clip.seconds, [i / FPS for i in indices])
    shown = np.concatenate([patches(placed, clip.look, 1, 1) for placed in clip.placed(indices)])
    return Example(frame_tiles(clip.frames(indices)), f"<|im_start|>User: {text}", "\n\n", turns, shown)
