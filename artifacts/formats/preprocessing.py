"""preprocessing.json: from an image, a clip and a prompt to what the model's entries take, as numbers and strings.

What lives here: the schema of the file that travels with an artifact, reading and writing it. What must not: doing
what it describes (`artifacts/media/`, which follows it, and the page `artifacts/media/PREPROCESSING.md`, by which an
app does) and where the numbers come from (`compiler/processor.py`).

Sizes are in pixels, `fps` in frames per second. A file is untrusted: templates are filled by plain replacement, and
every number that sizes something in memory is bounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from artifacts.documents import parse_json, read_bytes
from artifacts.errors import EdgewrightError

PREPROCESSING: Final = "preprocessing.json"
SPECIFICATION: Final = "PREPROCESSING.md"
LARGEST_EDGE: Final = 4096  # beyond it SmolVLM's processor rounds otherwise, and an image takes 50 MB
MAX_IMAGE_TOKENS: Final = 1 << 20  # of one image or clip, so that no description makes a text without end
_MAX_BYTES = 1 << 20

Edge = Annotated[int, Field(gt=0, le=LARGEST_EDGE)]
Count = Annotated[int, Field(gt=0, le=1 << 16)]
Text = Annotated[str, Field(min_length=1, max_length=64)]
Template = Annotated[str, Field(max_length=400)]
Channel = Annotated[float, Field(ge=-1e3, le=1e3)]
Spread = Annotated[float, Field(ge=1e-6, le=1e3)]
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Normalisation(_Strict):
    """(value · rescale − mean) / std for the channels R, G, B; what is rounded where says `media.tiles.normalise`."""

    rescale: Annotated[float, Field(gt=0, le=1)]
    mean: tuple[Channel, Channel, Channel]
    std: tuple[Spread, Spread, Spread]


class SmolvlmImages(_Strict):
    """An image enlarged or reduced to `longest_edge`, stretched to whole tiles and cut; a small copy of all comes last.

    split: False takes the small copy alone. max_tiles: of one image, the small copy counted; `longest_edge` is lowered
    for an image that would take more.
    """

    longest_edge: Edge
    tile: Edge
    split: bool
    max_tiles: Count
    order: Literal["rows_then_global"] = "rows_then_global"
    resample: Resample
    tokens_per_tile: Count
    normalisation: Normalisation

    @model_validator(mode="after")
    def _bounded(self) -> SmolvlmImages:
        _refuse_too_many(self.max_tiles * self.tokens_per_tile)
        return self


class SmolvlmPrompt(_Strict):
    """What stands for an image in the token string.

    image: marks an image in a prompt, and is repeated `tokens_per_tile` times for every tile. around: before every tile
    and at the end. cell: before a tile of the grid, rows and columns from 1. ids: token ids of these strings, as far as
    the tokenizer has one for the whole string.
    """

    image: Text
    around: Text
    cell: Text
    row_end: Template
    before_global: Template
    global_image: Text
    ids: dict[Text, Annotated[int, Field(ge=0, lt=1 << 31)]]

    @model_validator(mode="after")
    def _whole(self) -> SmolvlmPrompt:
        _fields("cell", self.cell, "{row}", "{col}")
        _has_id(self.image, self.ids)
        return self


class SmolvlmVideo(_Strict):
    """Which frames of a clip are taken, how large, and what stands for them in the token string.

    number_words: how many frames there are, in English, beginning with one.
    """

    marker: Text
    fps: Annotated[float, Field(gt=0, le=1000)]
    max_frames: Annotated[int, Field(gt=0, le=1024)]
    skip_seconds: Annotated[float, Field(ge=0, le=3600)]
    longest_edge: Edge
    intro: Template
    frame: Template
    outro: Template
    number_words: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1024)]

    @model_validator(mode="after")
    def _whole(self) -> SmolvlmVideo:
        _fields("intro", self.intro, "{frames}", "{duration}")
        _fields("frame", self.frame, "{timestamp}")
        if len(self.number_words) != self.max_frames:
            raise ValueError(f"number_words has {len(self.number_words)} words for {self.max_frames} frames")
        return self


class Smolvlm(_Strict):
    """As SmolVLMProcessor of transformers does it: square tiles of one size."""

    version: Literal[1] = 1
    rule: Literal["smolvlm"] = "smolvlm"
    images: SmolvlmImages
    prompt: SmolvlmPrompt
    video: SmolvlmVideo | None

    @model_validator(mode="after")
    def _bounded(self) -> Smolvlm:
        if self.video is not None:
            _refuse_too_many(self.video.max_frames * self.images.tokens_per_tile)
        return self


class PixtralImages(_Strict):
    """An image reduced where it is larger than `longest_edge`, its sides stretched up to whole cells of patch · merge.

    One cell becomes one token.
    """

    longest_edge: Edge
    patch: Annotated[int, Field(gt=0, le=256)]
    merge: Annotated[int, Field(gt=0, le=16)]
    resample: Resample
    normalisation: Normalisation

    @model_validator(mode="after")
    def _bounded(self) -> PixtralImages:
        _refuse_too_many((self.longest_edge // (self.patch * self.merge) + 1) ** 2)
        return self


class PixtralPrompt(_Strict):
    """What stands for an image in the token string: `image` for every cell, `row_end` after a row, `end` at the end."""

    image: Text
    row_end: Text
    end: Text
    ids: dict[Text, Annotated[int, Field(ge=0, lt=1 << 31)]]

    @model_validator(mode="after")
    def _whole(self) -> PixtralPrompt:
        for text in (self.image, self.row_end, self.end):
            _has_id(text, self.ids)
        return self


class Pixtral(_Strict):
    """As PixtralProcessor of transformers does it: one picture of any size."""

    version: Literal[1] = 1
    rule: Literal["pixtral"] = "pixtral"
    images: PixtralImages
    prompt: PixtralPrompt


Preprocessing = Smolvlm | Pixtral
_SCHEMA: TypeAdapter[Preprocessing] = TypeAdapter(Annotated[Preprocessing, Field(discriminator="rule")])


def read(path: Path, *, links: bool = True) -> Preprocessing:
    """Read and check a file. Raises EdgewrightError that names the file and the first keys which are wrong."""
    raw = read_bytes(path, _MAX_BYTES, links=links)
    parse_json(raw, str(path))  # keys given twice, nesting without end
    try:
        return _SCHEMA.validate_json(raw)
    except ValidationError as error:
        found = error.errors(include_url=False)[:3]
        text = "; ".join(f"{'.'.join(map(str, item['loc'])) or PREPROCESSING}: {item['msg']}" for item in found)
        raise EdgewrightError(f"{path}: {text}; build the artifact again") from error


def content(description: Preprocessing) -> str:
    """The text of a file, which ends in a line break."""
    return description.model_dump_json(indent=2) + "\n"


def _fields(name: str, template: str, *fields: str) -> None:
    for field in fields:
        if template.count(field) != 1:
            raise ValueError(f"{name} must hold {field} once")


def _refuse_too_many(tokens: int) -> None:
    if tokens > MAX_IMAGE_TOKENS:
        raise ValueError(f"{tokens:,} tokens for one image or clip; {MAX_IMAGE_TOKENS:,} are the most")


def _has_id(text: str, ids: dict[str, int]) -> None:
    if text not in ids:
        raise ValueError(f"ids has no id of {text!r}")
