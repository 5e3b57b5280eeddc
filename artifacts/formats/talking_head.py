"""The constants of the driver "talking_head": how sound is heard, and what of it and of a picture makes a video frame.

A stream is defined here and nowhere else, so that sound in chunks of any sizes gives what it gives as a whole. What
lives here: its numbers, as the driver's constants in a manifest, and their bounds. What must not: doing what they say
(`artifacts/media/speech.py` and `faces.py`, and an app by the page `artifacts/media/TALKING_HEAD.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from artifacts.documents import first_error
from artifacts.errors import EdgewrightError

PAGE: Final = "TALKING_HEAD.md"

Count = Annotated[int, Field(gt=0, le=1 << 15)]
Whole = Annotated[int, Field(ge=0, le=1 << 15)]


class _Numbers(BaseModel):
    # what else a family says of its entries stands beside these
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Audio(_Numbers):
    """How sound becomes tokens. Token k begins with sample floor(k * sample_rate / tokens_per_second).

    Window n of the encoder begins with token (n + 1) * hop + ahead - tokens and has `samples`, zeros where there is no
    sound; of its tokens the `hop` before the last `ahead` are kept. normalization_eps: the sound in a window is brought
    to a mean of 0 and a variance of 1, this added to the variance; None: it enters as it is.
    """

    sample_rate: Annotated[int, Field(gt=0, le=1 << 18)]
    samples: Annotated[int, Field(gt=0, le=1 << 24)]
    tokens_per_second: Count
    tokens: Count
    hop: Count
    ahead: Whole
    normalization_eps: Annotated[float, Field(gt=0, le=1)] | None = None

    def begin(self, token: int) -> int:
        """The first sample of a token; negative before the sound."""
        return token * self.sample_rate // self.tokens_per_second

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hop + self.ahead > self.tokens:
            raise ValueError(f"hop {self.hop} and ahead {self.ahead} are more than the window's {self.tokens} tokens")
        return self


class Frames(_Numbers):
    """Video frames a second, and tokens of each. A frame is made of the tokens of the frames `before` it, its own, and
    those of the frames `ahead`; zeros where there are none. lookahead_ms: of sound that a frame waits for beyond its
    own, both kinds of look-ahead counted."""

    rate: Count
    tokens: Count
    before: Whole
    ahead: Whole
    lookahead_ms: Annotated[int, Field(ge=0, le=1 << 20)]


class Picture(_Numbers):
    """In pixels: `crop` is the square that is cut out of a video, of which `size` is left within the border; mouth: x,
    y, width and height of what is black there in the current picture. Channels as named, over `scale`."""

    size: Count
    crop: Count
    border: Whole
    mouth: Annotated[tuple[Whole, Whole, Count, Count], Field(strict=False)]
    channels: Literal["bgr"]
    scale: Literal[255]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        x, y, width, height = self.mouth
        if self.crop != self.size + 2 * self.border or max(x + width, y + height) > self.size:
            raise ValueError(f"size {self.size} with its border is not crop {self.crop}, or the mouth is not within it")
        return self


class Constants(_Numbers):
    """All of it. picture: None where a frame's tokens are themselves what comes out, as blendshapes are.

    identities: how many speakers the encoder knows, 0 where it takes none. blendshapes: their names, in order.
    """

    audio: Audio
    frames: Frames
    picture: Picture | None = None
    identities: Whole = 0
    blendshapes: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        each, audio = self.frames.tokens, self.audio
        if audio.hop % each or audio.tokens_per_second != each * self.frames.rate:
            raise ValueError(
                f"{each} tokens a frame at {self.frames.rate} frames a second do not fit a hop of {audio.hop} and "
                f"{audio.tokens_per_second} tokens a second"
            )
        return self

    @property
    def hop_ms(self) -> int:
        """By how much sound a window moves on: a stream gives its frames in such portions."""
        return 1000 * self.audio.hop // self.audio.tokens_per_second


def read(constants: Mapping[str, Any], where: str) -> Constants:
    """A manifest's constants. Raises EdgewrightError naming the first that is wrong."""
    try:
        return Constants.model_validate(constants)
    except ValidationError as error:
        said = first_error(error, "driver.constants")
        raise EdgewrightError(f"{where}: {said}; build the artifact again") from error
