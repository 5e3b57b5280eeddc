"""The processors of transformers, set up as small checkpoints have them, beside descriptions of the same numbers.

torchvision, which the video processor and PixtralProcessor want, is not installed where the suite runs: what needs it
is compared with `goldens.json` (`make_goldens.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.formats.preprocessing import (
    Normalisation,
    Pixtral,
    PixtralImages,
    PixtralPrompt,
    Smolvlm,
    SmolvlmImages,
    SmolvlmPrompt,
    SmolvlmVideo,
)
from artifacts.media.tiles import most_tiles

GOLDENS = Path(__file__).parent / "goldens.json"
TILE, LONGEST, LENGTH = 32, 128, 4
VIDEO_LONGEST, FPS, MAX_FRAMES = 64, 2, 12
# heights and widths: the smallest, the narrowest, one off a tile, whole tiles, odd ones, photographs
SIZES = (
    (1, 1), (7, 500), (500, 7), (511, 513), (512, 512), (513, 511), (1536, 2048), (100, 4000), (4000, 100), (1, 3000),
    (3000, 1), (33, 31), (479, 641), (127, 129), (3, 2), (600, 800),
)  # fmt: skip
IMAGES = ((30, 90), (20, 20))  # beside clips
SPECIAL = (
    "<image>", "<fake_token_around_image>", "<global-img>", "<video>", "<end_of_utterance>", "[IMG]", "[IMG_BREAK]",
    "[IMG_END]", *(f"<row_{row}_col_{col}>" for row in range(1, 4) for col in range(1, 5)),
)  # fmt: skip
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def tokenizer() -> Any:
    """Bytes as tokens, some pairs of line breaks and letters merged, and not all of the rows as tokens of their own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("e", "r"), (":", "Ġ")]
    vocabulary = {text: number for number, text in enumerate([*letters, *("".join(pair) for pair in merges)])}
    model = Tokenizer(models.BPE(vocabulary, merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=model, additional_special_tokens=list(SPECIAL))


def smolvlm(**images: Any) -> Smolvlm:
    """A description; `images` are other values of its images."""
    from num2words import num2words

    encoder = tokenizer()
    longest = images.get("longest_edge", LONGEST)
    values = {
        "longest_edge": longest,
        "tile": TILE,
        "split": True,
        "max_tiles": most_tiles(longest, TILE),
        "resample": "lanczos",
        "tokens_per_tile": LENGTH,
        "normalisation": Normalisation(rescale=1 / 255, mean=_HALF, std=_HALF),
    }
    return Smolvlm(
        images=SmolvlmImages.model_validate(values | images),
        prompt=SmolvlmPrompt(
            image="<image>",
            around="<fake_token_around_image>",
            cell="<row_{row}_col_{col}>",
            row_end="\n",
            before_global="\n",
            global_image="<global-img>",
            ids={text: encoder.convert_tokens_to_ids(text) for text in SPECIAL[:3]},
        ),
        video=SmolvlmVideo(
            marker="<video>",
            fps=FPS,
            max_frames=MAX_FRAMES,
            skip_seconds=1.0,
            longest_edge=VIDEO_LONGEST,
            intro="You are provided the following series of {frames} frames from a {duration} [H:MM:SS] video.\n",
            frame="\nFrame from {timestamp}:",
            outro="\n\n",
            number_words=tuple(num2words(count) for count in range(1, MAX_FRAMES + 1)),
        ),
    )


def pixtral(longest_edge: int = 112) -> Pixtral:
    """A description with cells of 28 pixels."""
    encoder = tokenizer()
    return Pixtral(
        images=PixtralImages(
            longest_edge=longest_edge,
            patch=14,
            merge=2,
            resample="bicubic",
            normalisation=Normalisation(rescale=1 / 255, mean=_CLIP_MEAN, std=_CLIP_STD),
        ),
        prompt=PixtralPrompt(
            image="[IMG]",
            row_end="[IMG_BREAK]",
            end="[IMG_END]",
            ids={text: encoder.convert_tokens_to_ids(text) for text in ("[IMG]", "[IMG_BREAK]", "[IMG_END]")},
        ),
    )


def smolvlm_images(**values: Any) -> Any:
    """SmolVLMImageProcessorPil of the same numbers."""
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    size = {"longest_edge": values.pop("longest_edge", LONGEST)}
    return SmolVLMImageProcessorPil(size=size, max_image_size={"longest_edge": TILE}, **values)


def smolvlm_processor(images: Any = None, videos: Any = None) -> Any:
    """SmolVLMProcessor; where torchvision is missing without a video processor, which the constructor lets pass."""
    from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

    class Processor(SmolVLMProcessor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    return Processor(images or smolvlm_images(), tokenizer(), videos, image_seq_len=LENGTH)


def pixtral_images(longest_edge: int = 112) -> Any:
    """PixtralImageProcessorPil as PixtralProcessor calls it: patch · merge for a patch."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    return PixtralImageProcessorPil(size={"longest_edge": longest_edge}, patch_size=28)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Slopes, edges and noise, uint8 [height, width, 3]: every filter has something to do."""
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x + y) % 97 * 2.6], axis=-1)
    noise = np.random.default_rng([seed, height, width]).integers(-40, 41, (height, width, 3))
    edges = np.where((x // 9 + y // 13) % 2, 60, -60)[..., None]
    return np.clip(slopes + noise + edges, 0, 255).astype(np.uint8)


def clip(frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Frames that all differ, uint8 [frames, height, width, 3]."""
    return np.stack([np.roll(picture(height, width, frames), at * 3, axis=1) // 2 + at * 2 for at in range(frames)])
