"""Scenes and clips to ask questions about: what `tiny-smolvlm2` is trained on and measured with.

A scene is one to five coloured shapes in the cells of a grid; a clip is one to three of them, one of which moves to
another cell. Both are drawn with Pillow at many sizes and aspect ratios, with jitter of place, size and colour and with
noise, and both know every question that can be asked about them with its one right answer.

Everything follows from an integer seed. Training and held-out sets are disjoint twice over: by seed, and by content,
because the *digest of what is shown* (grid, shapes, colours, cells; not sizes, jitter, noise) decides which set a scene
belongs to. A held-out arrangement is therefore never trained on, whatever it looks like.

    for example in held_out_scenes(2000):
        example.image, example.question, example.answer
    for example in held_out_clips(500):
        example.frames, example.fps, example.question, example.answer

No torch and no transformers here; prompts and tiles are those of `smolvlm2_examples.py`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLORS = {
    "red": (220, 35, 35),
    "green": (35, 165, 55),
    "blue": (40, 65, 220),
    "yellow": (235, 215, 40),
    "purple": (160, 45, 195),
    "cyan": (45, 205, 215),
}
BACKGROUNDS = ((250, 250, 250), (15, 15, 15), (125, 125, 125), (210, 205, 190))
NUMBERS = ("zero", "one", "two", "three", "four", "five")
HORIZONTAL = {1: ("center",), 2: ("left", "right"), 3: ("left", "center", "right")}
VERTICAL = {1: ("middle",), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
FPS = 6  # of the clips
HELD_OUT_SEED = 1_000_000_000  # training seeds are below
SQUARE_SIZES = ((128, 128), (128, 128), (64, 64), (96, 96), (128, 100), (100, 128), (160, 160), (150, 192))
WIDE_SIZES = ((128, 64), (128, 64), (96, 48), (160, 72))
CLIP_SIZES = ((64, 64), (64, 64), (64, 64), (96, 96), (80, 64), (128, 128))
CLIP_SECONDS = (3, 4, 5, 6)


@dataclass(frozen=True)
class Thing:
    """One shape in one cell."""

    shape: str
    color: str
    row: int
    column: int

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Look:
    """What an answer does not depend on: size in pixels, background, and the seed of jitter and noise."""

    width: int
    height: int
    background: tuple[int, int, int]
    seed: int


Turn = tuple[str, str]  # question, answer


def _digest(*content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _place(rows: int, columns: int, row: int, column: int) -> str:
    return f"{VERTICAL[rows][row]} {HORIZONTAL[columns][column]}"


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


@dataclass(frozen=True)
class Scene:
    """A still picture. `things` are in reading order."""

    rows: int
    columns: int
    things: tuple[Thing, ...]
    look: Look

    @property
    def digest(self) -> str:
        """SHA-256 of what is shown, not of how it looks."""
        return _digest("scene", self.rows, self.columns, self.things)

    def draw(self) -> Image.Image:
        """RGB, `look.width` × `look.height` pixels."""
        return _paint(self.look, self.placed(), self.look.seed)

    def placed(self) -> list[Placed]:
        """Where in the picture the things are drawn."""
        rng = random.Random(self.look.seed)
        return [_jittered(rng, t, self.rows, self.columns, self.look) for t in self.things]

    def turns(self, rng: random.Random) -> list[Turn]:
        """One question of every kind that has a single right answer here, with that answer; in the order of kinds."""
        things = self.things
        at = {(t.row, t.column): t for t in things}
        turns = [("How many objects are there?", NUMBERS[len(things)])]
        color = rng.choice(things).color if rng.random() < 0.75 else rng.choice(tuple(COLORS))
        turns.append((f"How many {color} objects are there?", NUMBERS[sum(t.color == color for t in things)]))
        shape = rng.choice(things).shape if rng.random() < 0.75 else rng.choice(SHAPES)
        turns.append((f"How many {_plural(shape)} are there?", NUMBERS[sum(t.shape == shape for t in things)]))
        alone = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
        if alone:
            thing = rng.choice(alone)
            turns.append((f"What color is the {thing.shape}?", thing.color))
        alone = [t for t in things if sum(o.color == t.color for o in things) == 1]
        if alone:
            thing = rng.choice(alone)
            turns.append((f"What shape is the {thing.color} object?", thing.shape))
        alone = [t for t in things if sum(str(o) == str(t) for o in things) == 1]
        if alone:
            thing = rng.choice(alone)
            where = _place(self.rows, self.columns, thing.row, thing.column)
            turns.append((f"Where is the {thing}?", where))
        thing = rng.choice(things)
        cell = (thing.row, thing.column)
        if rng.random() < 0.25:
            cell = (rng.randrange(self.rows), rng.randrange(self.columns))
        where = _place(self.rows, self.columns, *cell)
        turns.append((f"What is in the {where}?", f"a {at[cell]}" if cell in at else "nothing"))
        color, shape = thing.color, thing.shape
        chance = rng.random()
        if chance < 0.3:
            color = rng.choice(tuple(COLORS))
        elif chance < 0.6:
            shape = rng.choice(SHAPES)
        there = any(str(t) == f"{color} {shape}" for t in things)
        turns.append((f"Is there a {color} {shape}?", "yes" if there else "no"))
        listed = ", ".join(f"a {t} in the {_place(self.rows, self.columns, t.row, t.column)}" for t in things)
        turns.append(("Describe the image.", f"{listed[0].upper()}{listed[1:]}."))
        return turns


@dataclass(frozen=True)
class Clip:
    """A moving picture of `seconds` × FPS frames: things[mover] goes in a straight line to the cell `to`."""

    rows: int
    columns: int
    things: tuple[Thing, ...]
    mover: int
    to: tuple[int, int]
    seconds: int
    look: Look

    @property
    def digest(self) -> str:
        """SHA-256 of what is shown, not of how it looks or how long it takes."""
        return _digest("clip", self.rows, self.columns, self.things, self.mover, self.to)

    @property
    def total_frames(self) -> int:
        return self.seconds * FPS

    def frames(self, indices: Sequence[int] | None = None) -> list[Image.Image]:
        """The frames at these indices, all by default; RGB."""
        chosen = range(self.total_frames) if indices is None else indices
        return [
            _paint(self.look, shown, self.look.seed + i) for i, shown in zip(chosen, self.placed(chosen), strict=True)
        ]

    def placed(self, indices: Sequence[int]) -> list[list[Placed]]:
        """Where the things are drawn in these frames; what moves is last, and covers the others."""
        rng = random.Random(self.look.seed)
        still = [_jittered(rng, t, self.rows, self.columns, self.look) for t in self.things]
        start = still.pop(self.mover)
        end = _jittered(
            rng, replace(start.thing, row=self.to[0], column=self.to[1]), self.rows, self.columns, self.look
        )
        first, last = rng.uniform(0.0, 0.15), rng.uniform(0.85, 1.0)
        frames = []
        for index in indices:
            done = (index / (self.total_frames - 1) - first) / (last - first)
            done = min(1.0, max(0.0, done))
            x, y = start.x + done * (end.x - start.x), start.y + done * (end.y - start.y)
            frames.append([*still, replace(start, x=x, y=y)])
        return frames

    def turns(self, rng: random.Random) -> list[Turn]:
        """One question of every kind, with its answer; in the order of kinds."""
        thing = self.things[self.mover]
        start = _place(self.rows, self.columns, thing.row, thing.column)
        end = _place(self.rows, self.columns, *self.to)
        down, right = self.to[0] - thing.row, self.to[1] - thing.column
        way = [
            *(["down" if down > 0 else "up"] if down else []),
            *(["right" if right > 0 else "left"] if right else []),
        ]
        still = ", ".join(f"a {t}" for i, t in enumerate(self.things) if i != self.mover)
        return [
            ("What moved?", f"a {thing}"),
            ("Where did the moving object start?", start),
            ("Where did the moving object end?", end),
            ("Which way did it move?", " ".join(way)),
            ("What color is the moving object?", thing.color),
            ("What shape is the moving object?", thing.shape),
            ("What stayed still?", still or "nothing"),
            ("How many objects are there?", NUMBERS[len(self.things)]),
            ("Describe the video.", f"A {thing} moved from the {start} to the {end}."),
        ]


@dataclass(frozen=True)
class Placed:
    """A thing as it is drawn: its colour, its centre and its radius in pixels."""

    thing: Thing
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float


def _jittered(rng: random.Random, thing: Thing, rows: int, columns: int, look: Look) -> Placed:
    cell_w, cell_h = look.width / columns, look.height / rows
    radius = min(cell_w, cell_h) * rng.uniform(0.31, 0.42)
    x = (thing.column + 0.5) * cell_w + (cell_w / 2 - radius) * rng.uniform(-0.8, 0.8)
    y = (thing.row + 0.5) * cell_h + (cell_h / 2 - radius) * rng.uniform(-0.8, 0.8)
    red, green, blue = (min(255, max(0, c + rng.randint(-14, 14))) for c in COLORS[thing.color])
    return Placed(thing, (red, green, blue), x, y, radius)


def _paint(look: Look, shown: Sequence[Placed], noise_seed: int) -> Image.Image:
    scale = 2  # drawn at twice the size and averaged: smooth edges
    image = Image.new("RGB", (look.width * scale, look.height * scale), look.background)
    draw = ImageDraw.Draw(image)
    for placed in shown:
        shape, color = placed.thing.shape, placed.rgb
        x, y, r = placed.x * scale, placed.y * scale, placed.radius * scale
        if shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
        elif shape == "ring":
            draw.ellipse((x - r, y - r, x + r, y + r), outline=color, width=round(0.4 * r))
        elif shape == "square":
            s = 0.86 * r
            draw.rectangle((x - s, y - s, x + s, y + s), fill=color)
        elif shape == "triangle":
            draw.polygon(((x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)), fill=color)
        else:
            s = 0.3 * r
            draw.rectangle((x - s, y - r, x + s, y + r), fill=color)
            draw.rectangle((x - r, y - s, x + r, y + s), fill=color)
    pixels = np.asarray(image.reduce(scale)).astype(np.int16)
    pixels += np.random.RandomState(noise_seed % 2**32).randint(-6, 7, pixels.shape, np.int8)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def is_held_out(digest: str) -> bool:
    """One arrangement in ten is kept from training."""
    return int(digest[:8], 16) % 10 == 0


def _look(rng: random.Random, sizes: Sequence[tuple[int, int]]) -> Look:
    width, height = rng.choice(sizes)
    background = rng.choice(BACKGROUNDS)
    return Look(width, height, background, rng.getrandbits(32))


def _things(rng: random.Random, rows: int, columns: int, most: int) -> tuple[Thing, ...]:
    cells = rng.sample(range(rows * columns), rng.randint(1, most))
    return tuple(Thing(rng.choice(SHAPES), rng.choice(tuple(COLORS)), *divmod(c, columns)) for c in sorted(cells))


def make_scene(seed: int, layout: str | None = None, most: int = 5) -> Scene:
    """The scene of this seed; held out if the seed is HELD_OUT_SEED or more.

    `layout` is "square" (3 × 3 cells), "wide" (2 × 3) or "tall" (3 × 2), drawn if None; `most` bounds the things.
    """
    rng = random.Random(seed)
    layout = layout or rng.choice(("square", "square", "wide", "tall"))
    while True:
        if layout == "square":
            rows, columns, look = 3, 3, _look(rng, SQUARE_SIZES)
        elif layout == "wide":
            rows, columns, look = 2, 3, _look(rng, WIDE_SIZES)
        else:
            rows, columns, look = 3, 2, _look(rng, [(h, w) for w, h in WIDE_SIZES])
        scene = Scene(rows, columns, _things(rng, rows, columns, most), look)
        if is_held_out(scene.digest) == (seed >= HELD_OUT_SEED):
            return scene


def make_clip(seed: int, seconds: int | None = None, most: int = 3) -> Clip:
    """The clip of this seed; held out if the seed is HELD_OUT_SEED or more."""
    rng = random.Random(seed)
    while True:
        things = _things(rng, 3, 3, most)
        taken = {(t.row, t.column) for t in things}
        to = rng.choice([(r, c) for r in range(3) for c in range(3) if (r, c) not in taken])
        length = seconds or rng.choice(CLIP_SECONDS)
        clip = Clip(3, 3, things, rng.randrange(len(things)), to, length, _look(rng, CLIP_SIZES))
        if is_held_out(clip.digest) == (seed >= HELD_OUT_SEED):
            return clip


@dataclass(frozen=True)
class SceneExample:
    """One question about one held-out scene."""

    seed: int
    scene: Scene
    image: Image.Image
    question: str
    answer: str


@dataclass(frozen=True)
class ClipExample:
    """One question about one held-out clip; `frames` are all its frames, at `fps` frames a second."""

    seed: int
    clip: Clip
    frames: list[Image.Image]
    fps: int
    question: str
    answer: str


def held_out_scenes(count: int, first: int = 0) -> Iterator[SceneExample]:
    """`count` held-out scenes from the `first` on, of all layouts, with one question each; kinds equally often."""
    for seed in range(HELD_OUT_SEED + first, HELD_OUT_SEED + first + count):
        scene = make_scene(seed)
        rng = random.Random(seed + 1_000_000_000)
        question, answer = rng.choice(scene.turns(rng))
        yield SceneExample(seed, scene, scene.draw(), question, answer)


def held_out_clips(count: int, first: int = 0) -> Iterator[ClipExample]:
    """`count` held-out clips from the `first` on, with one question each; kinds equally often."""
    for seed in range(HELD_OUT_SEED + first, HELD_OUT_SEED + first + count):
        clip = make_clip(seed)
        rng = random.Random(seed + 1_000_000_000)
        question, answer = rng.choice(clip.turns(rng))
        yield ClipExample(seed, clip, clip.frames(), FPS, question, answer)


def every_sentence() -> Iterator[str]:
    """Texts that between them hold every word of questions and answers: what a tokenizer is trained on."""
    for seed in range(2000):
        rng = random.Random(seed)
        for turns in (make_scene(seed).turns(rng), make_clip(seed).turns(rng)):
            for question, answer in turns:
                yield f"{question}\n {answer}"
