"""A prompt with its images and clips, as a driver needs them: one text, and the pixels in the order of their tokens.

What lives here: putting `tiles.py`, `pixtral.py` and `prompt.py` together. What must not: files, tokenizers, models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.formats.preprocessing import Pixtral, Preprocessing
from artifacts.media.images import Pixels
from artifacts.media.pixtral import Cells, fit
from artifacts.media.prompt import expand, image_tokens
from artifacts.media.tiles import Grid, split
from artifacts.media.video import Clip


@dataclass(frozen=True)
class Prepared:
    """text: for the tokenizer, special tokens recognized. pixels: of every image and clip in the order in which the
    text speaks of them, uint8 [tiles, height, width, 3], for `tiles.normalise`. image_tokens: how many it holds."""

    text: str
    pixels: tuple[Pixels, ...]
    image_tokens: int


def prepare(
    prompt: str, description: Preprocessing, images: Sequence[Pixels] = (), clips: Sequence[Clip] = ()
) -> Prepared:
    """images: uint8 [height, width, 3] each, as `images.read_image` gives them; clips: as `video.read_clip` does.

    Raises MediaError where the prompt's markers are not as many, or an image has no usable size.
    """
    placed: list[Grid | Cells] = []
    pictures: list[Pixels] = []
    for image in images:
        found: Grid | Cells
        if isinstance(description, Pixtral):
            found, picture = fit(image, description.images)
            picture = picture[None]
        else:
            found, picture = split(image, description.images)
        placed.append(found)
        pictures.append(picture)
    text = expand(prompt, description, placed, clips)
    waiting = {description.prompt.image: iter(pictures)}
    if not isinstance(description, Pixtral) and description.video is not None:
        waiting[description.video.marker] = iter([clip.tiles for clip in clips])
    order = re.findall("|".join(map(re.escape, waiting)), prompt)
    count = image_tokens(description, placed, sum(len(clip.timestamps) for clip in clips))
    return Prepared(text, tuple(next(waiting[marker]) for marker in order), count)
