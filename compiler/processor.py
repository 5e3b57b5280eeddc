"""What a checkpoint's processor does with images, clips and prompts, read from its documents as one description.

What lives here: from `processor_config.json`, its older forms (`preprocessor_config.json`,
`video_preprocessor_config.json`), `config.json` and the tokenizer to an `artifacts.formats.preprocessing` description.
Where they contradict each other they are refused: that is how runtimes come to cut images wrongly, each believing
another file. What must not: doing it (`artifacts/media/`).

Defaults and the order in which files are believed are those of transformers 5.23 (`SmolVLMImageProcessorPil`,
`SmolVLMVideoProcessor`, `SmolVLMProcessor`, `PixtralImageProcessorPil`, `PixtralProcessor`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from artifacts.documents import first_error, read_json
from artifacts.errors import EdgewrightError
from artifacts.formats.preprocessing import (
    LARGEST_EDGE,
    Normalisation,
    Pixtral,
    PixtralImages,
    PixtralPrompt,
    Preprocessing,
    Resample,
    Smolvlm,
    SmolvlmImages,
    SmolvlmPrompt,
    SmolvlmVideo,
)
from artifacts.media.tiles import most_tiles
from compiler.config import Keys, read_config
from compiler.tensors import CheckpointError
from compiler.tokenizer import FILE as TOKENIZER
from compiler.tokenizer import MAX_BYTES

PROCESSOR = "processor_config.json"
IMAGES = "preprocessor_config.json"
VIDEOS = "video_preprocessor_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# PIL.Image.Resampling
_FILTERS: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_DECIDE = ("size", "max_image_size", "patch_size", "do_image_splitting", "image_mean", "image_std", "rescale_factor",
           "resample", "do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "video_sampling", "fps",
           "num_frames")  # fmt: skip
_ALWAYS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_SKIP_SECONDS = 1.0  # SmolVLMVideoProcessor.sample_frames has it as a default that no file changes
_INTRO = "You are provided the following series of {frames} frames from a {duration} [H:MM:SS] video.\n"
_FRAME = "\nFrame from {timestamp}:"
_OUTRO = "\n\n"
_CELL = "<row_{row}_col_{col}>"


@dataclass(frozen=True)
class _Documents:
    """A folder's documents, each an empty object where it is missing."""

    folder: Path
    config: Keys
    processor: Keys
    tokenizer: Keys
    ids: dict[str, int]

    def beside(self, name: str) -> Keys | None:
        """One of the older documents, None where it is missing."""
        return Keys(read_json(self.folder / name), f"{name}: ") if os.path.lexists(self.folder / name) else None


def has_processor(folder: Path) -> bool:
    """Whether a checkpoint folder says how an image becomes tiles and tokens."""
    return any((folder / name).is_file() for name in (PROCESSOR, IMAGES))


def from_processor(folder: Path) -> Preprocessing:
    """The description of a checkpoint folder. Raises CheckpointError naming file and key, DocumentError naming a file.

    Refused are what is missing, what this house does not do, and whatever two documents say differently.
    """
    config = Keys(read_config(folder))
    documents = _Documents(
        folder,
        config,
        _document(folder, PROCESSOR),
        _document(folder, _TOKENIZER_CONFIG),
        _token_ids(folder),
    )
    family = config.word("model_type", ("smolvlm", "mistral3"))
    try:
        return _smolvlm(documents) if family == "smolvlm" else _pixtral(documents)
    except ValidationError as error:
        raise CheckpointError(f"{folder}: its processor is described by {first_error(error)}") from error


def _smolvlm(found: _Documents) -> Smolvlm:
    images = _image_section(found, "SmolVLMImageProcessor")
    vision = found.config.section("vision_config")
    tile = _edge(images, "max_image_size", 364)
    size, patch = vision.integer("image_size", 1, LARGEST_EDGE, 224), vision.integer("patch_size", 1, 256, 32)
    if tile != size:
        raise images.error(
            "max_image_size", f"makes tiles of {tile} pixels, and config.json: vision_config.image_size is {size}"
        )
    factor = found.config.integer("scale_factor", 1, 16, 2)
    length = found.processor.integer("image_seq_len", 1, 1 << 16, 169)
    made = int((size // patch) ** 2 / factor**2)
    if length != made:
        raise found.processor.error(
            "image_seq_len",
            f"must be {made}, the vectors that config.json makes of a tile: (vision_config.image_size {size} // "
            f"patch_size {patch})² / scale_factor {factor}²" + _absent(found.processor, "image_seq_len", 169),
        )
    image = _special(found.tokenizer, "image_token", "<image>")
    _same_id(found, image, "image_token_id", 128257)
    longest = _edge(images, "size", 4 * 364)
    rule = SmolvlmImages(
        longest_edge=longest,
        tile=tile,
        split=(split := images.flag("do_image_splitting", True)),
        max_tiles=most_tiles(longest, tile) if split else 1,
        resample=_resample(images, "lanczos"),
        tokens_per_tile=length,
        normalisation=_normalisation(images, _HALF, _HALF),
    )
    around = _special(found.tokenizer, "fake_image_token", "<fake_token_around_image>")
    whole = _special(found.tokenizer, "global_image_token", "<global-img>")
    most = -(-longest // tile)
    cells = [_cell(row, col) for row in range(1, most + 1) for col in range(1, most + 1)] if split else []
    prompt = SmolvlmPrompt(
        image=image,
        around=around,
        cell=_CELL,
        row_end="\n",
        before_global="\n",
        global_image=whole,
        ids={text: found.ids[text] for text in (image, around, whole, *cells) if text in found.ids},
    )
    return Smolvlm(images=rule, prompt=prompt, video=_video(found, rule))


def _video(found: _Documents, images: SmolvlmImages) -> SmolvlmVideo | None:
    """None where no document says how frames are sampled: such a checkpoint takes images only.

    `do_sample_frames` is not looked at: it says whether the caller has sampled, and its chat template sets it.
    """
    videos = _section(found, "video_processor", (VIDEOS, IMAGES))
    if videos is None or ("video_sampling" not in videos and not ("fps" in videos and "num_frames" in videos)):
        return None
    sampling = videos.section("video_sampling")
    if "video_sampling" in videos:
        frames, fps = sampling.integer("max_frames", 1, 1024), sampling.number("fps", 0.001, 1000)
        if "num_frames" in videos and videos.integer("num_frames", 1, 1024) != frames:
            raise videos.error("num_frames", f"must be that of video_sampling.max_frames, {frames}")
        if "fps" in videos and videos.number("fps", 0.001, 1000) != fps:
            raise videos.error("fps", f"must be that of video_sampling.fps, {fps:g}")
    else:
        frames, fps = videos.integer("num_frames", 1, 1024), videos.number("fps", 0.001, 1000)
    # SmolVLMVideoProcessor puts `size` in the place of video_size wherever both are there
    sized = "size" in videos or "video_sampling" not in videos
    longest = _edge(videos, "size", 4 * 364) if sized else _edge(sampling, "video_size")
    if _edge(videos, "max_image_size", 364) != images.tile:
        raise videos.error("max_image_size", f"must be that of the images, {images.tile}")
    if _resample(videos, "lanczos") != images.resample:
        raise videos.error("resample", f"must be that of the images, {images.resample}")
    if _normalisation(videos, _HALF, _HALF) != images.normalisation:
        raise videos.error("image_mean", "must be, with image_std and rescale_factor, that of the images")
    return SmolvlmVideo(
        marker=_special(found.tokenizer, "video_token", "<video>"),
        fps=fps,
        max_frames=frames,
        skip_seconds=_SKIP_SECONDS,
        longest_edge=longest,
        intro=_INTRO,
        frame=_FRAME,
        outro=_OUTRO,
        number_words=_number_words(frames),
    )


def _number_words(most: int) -> tuple[str, ...]:
    from num2words import num2words

    return tuple(num2words(count) for count in range(1, most + 1))


def _pixtral(found: _Documents) -> Pixtral:
    images = _image_section(found, "PixtralImageProcessor")
    vision = found.config.section("vision_config")
    patch, size = vision.integer("patch_size", 1, 256, 14), vision.integer("image_size", 1, LARGEST_EDGE, 1540)
    merge = found.config.integer("spatial_merge_size", 1, 16, 2)
    for key, said, default in (("patch_size", patch, 16), ("spatial_merge_size", merge, 1)):
        if found.processor.integer(key, 1, 256, default) != said:
            where = "config.json: " + ("vision_config." if key == "patch_size" else "")
            raise found.processor.error(
                key, f"must be {said}, as {where}{key}" + _absent(found.processor, key, default)
            )
    longest = _edge(images, "size", 1024)
    if longest > size:
        raise images.error("size", f"may be {size} at most, config.json: vision_config.image_size")
    if images.flag("do_center_crop", False):
        raise images.error("do_center_crop", "must be false")
    image, row_end, end = (
        _token_text(found.processor, key, default)
        for key, default in (
            ("image_token", "[IMG]"),
            ("image_break_token", "[IMG_BREAK]"),
            ("image_end_token", "[IMG_END]"),
        )
    )
    _same_id(found, image, "image_token_id" if "image_token_id" in found.config else "image_token_index", 10)
    for text in (row_end, end):
        if text not in found.ids:
            raise CheckpointError(f"{TOKENIZER}: added_tokens has no {text}, with which the processor lays images out")
    return Pixtral(
        images=PixtralImages(
            longest_edge=longest,
            patch=patch,
            merge=merge,
            resample=_resample(images, "bicubic"),
            normalisation=_normalisation(images, _CLIP_MEAN, _CLIP_STD),
        ),
        prompt=PixtralPrompt(
            image=image, row_end=row_end, end=end, ids={text: found.ids[text] for text in (image, row_end, end)}
        ),
    )


def _document(folder: Path, name: str) -> Keys:
    return Keys(read_json(folder / name) if os.path.lexists(folder / name) else {}, f"{name}: ")


def _image_section(found: _Documents, kind: str) -> Keys:
    """kind: the class of transformers whose rule is read, without what it ends in by backend."""
    images = _section(found, "image_processor", (IMAGES,))
    if images is None:
        raise CheckpointError(
            f"{found.folder}: says nowhere how images are prepared: {PROCESSOR} has no image_processor, and there is "
            f"no {IMAGES}; take them from the model again"
        )
    images.word("image_processor_type", (kind, f"{kind}Fast", f"{kind}Pil"), kind)
    return images


def _section(found: _Documents, part: str, older: tuple[str, ...]) -> Keys | None:
    """The object that transformers believes: the part of processor_config.json, else the first older document.

    Other runtimes believe an older one, so what decides pixels must be the same in both.
    """
    inner = found.processor.section(part) if part in found.processor else None
    beside = next((keys for name in older if (keys := found.beside(name)) is not None), None)
    believed = inner if inner is not None else beside
    if believed is None:
        return None
    if inner is not None and beside is not None and part == "image_processor":
        for key in _DECIDE:
            if key in inner and key in beside and inner.values[key] != beside.values[key]:
                raise beside.error(key, f"must be that of {inner.where}{key}, {inner.values[key]!r}")
    for key in _ALWAYS:
        if not believed.flag(key, True):
            raise believed.error(key, "must be true")
    return believed


def _edge(keys: Keys, key: str, default: int | None = None) -> int:
    """The longest_edge of a size, in pixels."""
    if key not in keys and default is not None:
        return default
    size = keys.section(key)
    for other in size.values:
        if other != "longest_edge":
            raise size.error(other, "is not known here; longest_edge alone is")
    return size.integer("longest_edge", 1, LARGEST_EDGE)


def _resample(keys: Keys, default: Resample) -> Resample:
    number = keys.integer("resample", 0, max(_FILTERS), next(n for n, name in _FILTERS.items() if name == default))
    assert _FILTERS[number] in get_args(Resample)
    return _FILTERS[number]


def _normalisation(keys: Keys, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalisation:
    return Normalisation.model_validate(
        {
            "rescale": keys.number("rescale_factor", 1e-6, 1, 1 / 255),
            "mean": _three(keys, "image_mean", mean),
            "std": _three(keys, "image_std", std),
        }
    )


def _three(keys: Keys, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    values: Any = keys.values.get(key)
    if values is None:
        return default
    if not isinstance(values, list) or len(values) != 3:
        raise keys.error(key, "must be three numbers, of red, green and blue")
    if any(not isinstance(v, int | float) or isinstance(v, bool) for v in values):
        raise keys.error(key, "must be three numbers, of red, green and blue")
    return tuple(float(v) for v in values)


def _absent(keys: Keys, key: str, default: int) -> str:
    return "" if key in keys else f"; without it the processor takes {default}"


def _cell(row: int, col: int) -> str:
    return _CELL.replace("{row}", str(row)).replace("{col}", str(col))


def _special(tokenizer: Keys, name: str, default: str) -> str:
    """A token that tokenizer_config.json names: by itself, or among those that it adds."""
    for keys in (
        tokenizer,
        _named(tokenizer, "extra_special_tokens"),
        _named(tokenizer, "model_specific_special_tokens"),
    ):
        if name in keys:
            return _token_text(keys, name, default)
    return default


def _named(tokenizer: Keys, key: str) -> Keys:
    """An object of named tokens; a list names none."""
    values = tokenizer.values.get(key)
    return Keys(values if isinstance(values, dict) else {}, f"{tokenizer.where}{key}.")


def _token_text(keys: Keys, key: str, default: str) -> str:
    value = keys.values.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return default
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        raise keys.error(key, "must be a token, a string of 1 to 64 characters")
    return value


def _token_ids(folder: Path) -> dict[str, int]:
    """Added tokens of tokenizer.json by their text."""
    if not os.path.lexists(folder / TOKENIZER):
        raise CheckpointError(f"{folder}: no {TOKENIZER}: a prompt with images is written in its tokens")
    added = read_json(folder / TOKENIZER, MAX_BYTES).get("added_tokens")
    found = {}
    for entry in added if isinstance(added, list) else []:
        text, number = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise EdgewrightError(f"{folder / TOKENIZER}: added_tokens holds an entry without content and id")
        found[text] = number
    return found


def _same_id(found: _Documents, image: str, key: str, default: int) -> None:
    """The model looks for images where the tokenizer writes them."""
    said = found.config.integer(key, 0, (1 << 31) - 1, default)
    if image not in found.ids:
        raise CheckpointError(f"{TOKENIZER}: added_tokens has no {image}, the processor's image token")
    if found.ids[image] != said:
        raise found.config.error(key, f"must be the id of {image} in {TOKENIZER}, {found.ids[image]}")
