"""A prompt with markers for images and clips becomes the text that the tokenizer is given.

What lives here: what stands for each image and clip, and that there is one for every marker. What must not: chat
templates and tokenizers. The text equals what transformers' SmolVLMProcessor and PixtralProcessor tokenize; this was
written from what they compute.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Protocol

from artifacts.formats.preprocessing import Pixtral, Preprocessing, Smolvlm, SmolvlmVideo
from artifacts.media.errors import MediaError
from artifacts.media.pixtral import Cells
from artifacts.media.tiles import Grid


class Times(Protocol):
    """When the frames of a clip were taken, and how long it is, in seconds: a `video.Clip`."""

    @property
    def timestamps(self) -> Sequence[float]: ...

    @property
    def duration(self) -> float: ...


def expand(
    prompt: str, description: Preprocessing, images: Sequence[Grid | Cells] = (), clips: Sequence[Times] = ()
) -> str:
    """The prompt with every marker replaced, in order, by what stands for its image or clip.

    What is put in is not searched for markers again. Raises MediaError, with both counts, unless there are as many
    markers as images and as clips.
    """
    image = description.prompt.image
    _same_count(prompt, image, len(images), "image")
    stand_ins: dict[str, Iterator[str]] = {image: (image_text(description, found) for found in images)}
    if isinstance(description, Smolvlm) and description.video is not None:
        smolvlm, marker = description, description.video.marker
        _same_count(prompt, marker, len(clips), "clip")
        stand_ins[marker] = (video_text(smolvlm, clip) for clip in clips)
    elif clips:
        raise MediaError(f"{_many(len(clips), 'clip')} given, and the model takes images only")
    markers = "|".join(re.escape(marker) for marker in stand_ins)
    return re.sub(markers, lambda match: next(stand_ins[match.group()]), prompt)


def image_text(description: Preprocessing, found: Grid | Cells) -> str:
    """What stands for an image: all its tiles with their places, or all its cells."""
    if isinstance(description, Pixtral):
        pixtral = description.prompt
        row = pixtral.image * found.cols
        return pixtral.row_end.join([row] * found.rows) + pixtral.end
    if not found.rows:
        return _tile(description)
    prompt, tile = description.prompt, description.prompt.image * description.images.tokens_per_tile
    rows = [
        "".join(
            prompt.around + prompt.cell.replace("{row}", str(row + 1)).replace("{col}", str(col + 1)) + tile
            for col in range(found.cols)
        )
        + prompt.row_end
        for row in range(found.rows)
    ]
    return "".join(rows) + prompt.before_global + _tile(description)


def video_text(description: Smolvlm, clip: Times) -> str:
    """What stands for a clip: how many frames of how long a time, then every frame with when it was taken."""
    video = _video(description)
    if not 1 <= len(clip.timestamps) <= video.max_frames:
        raise MediaError(f"a clip of {len(clip.timestamps)} frames; the model takes 1 to {video.max_frames}")
    found = video.intro.replace("{frames}", video.number_words[len(clip.timestamps) - 1])
    found = found.replace("{duration}", str(timedelta(seconds=int(clip.duration))))
    for second in clip.timestamps:
        timestamp = f"{int(second // 60):02d}:{int(second % 60):02d}"
        found += video.frame.replace("{timestamp}", timestamp) + _tile(description)
    return found + video.outro


def image_tokens(description: Preprocessing, images: Sequence[Grid | Cells], frames: int = 0) -> int:
    """How many image tokens a prompt holds, which is how many vectors the vision entries have to give."""
    if isinstance(description, Pixtral):
        return sum(found.rows * found.cols for found in images)
    return (sum(found.rows * found.cols + 1 for found in images) + frames) * description.images.tokens_per_tile


def refuse_overlong(tokens: int, context: int, description: Preprocessing, image_tokens: int) -> None:
    """Raises MediaError, with the counts, when a prompt has more tokens than the context holds."""
    if tokens <= context:
        return
    of = f"{image_tokens:,} of them for images"
    if isinstance(description, Smolvlm):
        of += f": {image_tokens // description.images.tokens_per_tile} tiles of {description.images.tokens_per_tile}"
    raise MediaError(
        f"the prompt has {tokens:,} tokens ({of}), and the context holds {context:,}: give fewer or smaller images"
    )


def _tile(description: Smolvlm) -> str:
    prompt = description.prompt
    tokens = prompt.image * description.images.tokens_per_tile
    return prompt.around + prompt.global_image + tokens + prompt.around


def _video(description: Smolvlm) -> SmolvlmVideo:
    if description.video is None:
        raise MediaError("the model takes images only, no clips")
    return description.video


def _same_count(prompt: str, marker: str, given: int, what: str) -> None:
    found = prompt.count(marker)
    if found == given:
        return
    if not found:
        raise MediaError(f"{_many(given, what)} given, and the prompt has no {marker} that says where")
    raise MediaError(
        f"the prompt has {found} × {marker}, and {_many(given, what) if given else f'no {what} was'} given"
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s were' if count != 1 else ' was'}"
