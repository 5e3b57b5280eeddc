"""clips.safetensors: speech, and what a talking head should look like that says it.

Beside a checkpoint the file holds what it is calibrated on, a recipe names one that nothing was calibrated on, and an
artifact carries that with what PyTorch makes of it. What lives here: the layout, and reading it from whoever made it.
What must not: making pictures of speech, and judging them.

Metadata: `clips`, JSON of `Contents`; in an artifact `text`, what they are in a few words. Tensors of clip n, from 0:

    <n>.sound      int16 [samples], one channel, over 32,768, as many a second as the model hears
    <n>.mouth      uint8 [frames]: 1 where a vowel surely opens the mouth, 2 where p, b or m surely shut it, 0 elsewhere
    <n>.weights    float32 [frames, blendshapes], the truth of models whose frames are blendshapes
    <n>.video      pictures: of a video of a head with another mouth, the current ones and their own reference
    <n>.truth      pictures: of the same head, saying this
    <n>.original   in an artifact: frames of the unquantized weights, pictures or float32 [frames, blendshapes]
    <n>.reference  in an artifact: the same of the dequantized weights

Pictures are uint8 [bytes], one lossless WebP or PNG: the crops of all frames below one another.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artifacts.documents import DocumentError, read_bytes
from artifacts.errors import EdgewrightError
from artifacts.formats.talking_head import Constants

CLIPS = "clips.safetensors"
MAX_BYTES = 64 << 20
SIDES = ("original", "reference")
UNSURE, OPEN, SHUT = 0, 1, 2

Pixels = NDArray[np.uint8]
Count = Annotated[int, Field(ge=0, le=1 << 15)]
Byte = Annotated[int, Field(ge=0, le=255)]


class Mouth(BaseModel):
    """How an open mouth is told in these pictures: `box` is left, top, right and bottom of where mouths are in a crop;
    a place there lies behind lips where it is no brighter than `dark` [red, green], or as bright as `teeth` [red,
    blue]. A mouth is shut where at most this share of the box does."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    box: tuple[Count, Count, Count, Count]
    dark: tuple[Byte, Byte]
    teeth: tuple[Byte, Byte]
    shut: Annotated[float, Field(ge=0, le=1)]

    def opening(self, crop: Pixels) -> float:
        """The share of the box, of a crop uint8 [crop, crop, 3], blue first, that lies behind lips."""
        left, top, right, bottom = self.box
        blue, green, red = np.moveaxis(crop[top:bottom, left:right], 2, 0)
        inside = ((red <= self.dark[0]) & (green <= self.dark[1])) | ((red >= self.teeth[0]) & (blue >= self.teeth[1]))
        return float(inside.mean())


class Contents(BaseModel):
    """frames: of each clip; identities: who speaks, for models that ask. mouth: where there are pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    frames: Annotated[tuple[Annotated[int, Field(gt=0, le=1 << 15)], ...], Field(min_length=1, max_length=1000)]
    identities: tuple[Count, ...] = ()
    mouth: Mouth | None = None


@dataclass(frozen=True)
class Clip:
    """sound: float32 [samples]; video, truth: uint8 [frames, crop, crop, 3], blue first, or truth float32 [frames,
    blendshapes] and no video. made: of SIDES, like truth."""

    sound: NDArray[np.float32]
    mouth: Pixels
    truth: NDArray[Any]
    video: Pixels | None = None
    identity: int = 0
    made: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Clips:
    """A file's clips. mouth: how an open one is told, where there are pictures. text: what an artifact calls them."""

    clips: tuple[Clip, ...]
    mouth: Mouth | None
    text: str


def read_clips(path: Path, constants: Constants) -> Clips:
    """A file's clips, as a model with these constants hears and shows them. Raises EdgewrightError naming what is
    wrong with which tensor."""
    try:
        raw = read_bytes(path, MAX_BYTES)
    except DocumentError as error:
        raise EdgewrightError(str(error)) from error
    return parse_clips(raw, str(path), constants)


def parse_clips(raw: bytes, source: str, constants: Constants) -> Clips:
    """`read_clips` of bytes; `source` is what errors call them."""
    import json

    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        metadata = header.get("__metadata__", {})
        contents = Contents.model_validate_json(metadata.get("clips", ""))
    except ValidationError as error:
        raise EdgewrightError(
            f"{source}: metadata clips: {error.errors(include_url=False)[0]['msg']}; {_AGAIN}"
        ) from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise EdgewrightError(f"{source}: cannot be read as safetensors ({error}); {_AGAIN}") from error
    if (constants.picture is None) != (contents.mouth is None):
        what = "pictures" if constants.picture is None else "blendshapes"
        raise EdgewrightError(f"{source}: holds {what}, which this model does not make; {_AGAIN}")
    if contents.identities and len(contents.identities) != len(contents.frames):
        raise EdgewrightError(f"{source}: {len(contents.identities)} identities for {len(contents.frames)} clips")
    reader = _Reader(tensors, source, constants)
    clips = tuple(reader.clip(n, frames, contents) for n, frames in enumerate(contents.frames))
    return Clips(clips, contents.mouth, metadata.get("text", ""))


_AGAIN = "see artifacts/media/clips.py for what it has to hold"


class _Reader:
    def __init__(self, tensors: Mapping[str, NDArray[Any]], source: str, constants: Constants) -> None:
        self._tensors, self._source, self._constants = tensors, source, constants

    def clip(self, n: int, frames: int, contents: Contents) -> Clip:
        constants = self._constants
        sound = self._tensor(f"{n}.sound", np.int16, None)
        if -(-len(sound) * constants.frames.rate // constants.audio.sample_rate) != frames:
            raise EdgewrightError(
                f"{self._source}: {n}.sound has {len(sound):,} samples, which are not {frames} frames of this model"
            )
        identity = contents.identities[n] if contents.identities else 0
        if identity >= max(1, constants.identities):
            raise EdgewrightError(f"{self._source}: clip {n}: identity {identity}, of {constants.identities}")
        shown = constants.picture is not None
        made = {side: self._frames(f"{n}.{side}", frames) for side in SIDES if f"{n}.{side}" in self._tensors}
        return Clip(
            sound=(sound / 32768).astype(np.float32),
            mouth=self._tensor(f"{n}.mouth", np.uint8, (frames,)),
            truth=self._frames(f"{n}.truth" if shown else f"{n}.weights", frames),
            video=self._frames(f"{n}.video", frames) if shown else None,
            identity=identity,
            made=made,
        )

    def _tensor(self, name: str, dtype: Any, shape: tuple[int, ...] | None) -> NDArray[Any]:
        found = self._tensors.get(name)
        if found is None:
            raise EdgewrightError(f"{self._source}: tensor {name} is missing; {_AGAIN}")
        fits = found.ndim == 1 if shape is None else found.shape == shape
        if found.dtype != dtype or not fits:
            wanted = "[any]" if shape is None else list(shape)
            raise EdgewrightError(
                f"{self._source}: tensor {name} is {found.dtype} {list(found.shape)}, not {np.dtype(dtype)} {wanted}"
            )
        return found

    def _frames(self, name: str, frames: int) -> NDArray[Any]:
        picture = self._constants.picture
        if picture is None:
            found = self._tensors.get(name)
            count = len(self._constants.blendshapes)
            found = self._tensor(name, np.float32, (frames, count))
            if not np.isfinite(found).all():
                raise EdgewrightError(f"{self._source}: tensor {name} holds NaN or infinity")
            return found
        from artifacts.media.images import decode_image

        raw = self._tensor(name, np.uint8, None).tobytes()
        pixels = decode_image(raw, f"{self._source}: {name}")
        if pixels.shape != (frames * picture.crop, picture.crop, 3):
            raise EdgewrightError(
                f"{self._source}: {name} is a picture of {pixels.shape[1]} × {pixels.shape[0]}, not {frames} crops of "
                f"{picture.crop} × {picture.crop} below one another"
            )
        return np.ascontiguousarray(pixels.reshape(frames, picture.crop, picture.crop, 3)[..., ::-1])


def stored(frames: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[Any]:
    """Frames as the file holds them: pictures uint8 [crop, crop, 3], blue first, or blendshapes."""
    found = np.asarray(frames)
    if found.dtype != np.uint8:
        return found.astype(np.float32)
    from PIL import Image

    sheet = np.ascontiguousarray(found.reshape(-1, *found.shape[2:])[..., ::-1])
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "WEBP", lossless=True, quality=60, method=2)
    return np.frombuffer(file.getvalue(), np.uint8)
