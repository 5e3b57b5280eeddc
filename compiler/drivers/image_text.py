"""Images and text in, text out: what an app needs to cut an image and write a prompt travels along as data.

Entry vectors judge every entry: the tower over tiles, the table, and the decoder over embeddings. What must not live
here: tiles and prompts themselves (`artifacts/media/`), and the order of calls (`runtime_tests/drivers/image_text.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.formats.preprocessing import PREPROCESSING, SPECIFICATION, Normalisation, Preprocessing, Smolvlm, content
from artifacts.media import PAGE
from artifacts.media.images import decode_image
from artifacts.media.prepare import Prepared, prepare
from artifacts.media.prompt import refuse_overlong
from artifacts.media.tiles import normalise
from artifacts.media.video import read_clip
from compiler.answers import Enter, Prompt
from compiler.drivers import plain
from compiler.drivers.text import LENGTH, decoder_samples
from compiler.models.base import Model
from compiler.processor import IMAGES, PROCESSOR, from_processor, has_processor
from compiler.questions import Asking, Given, Reader, entries
from compiler.slots import Weights
from compiler.text import CALIBRATION, Document, encoder
from compiler.tokenizer import FILE as TOKENIZER
from compiler.tokenizer import Encoder, check_tokenizer
from recipes.schema import Calibration, Recipe

if TYPE_CHECKING:
    import torch

    from compiler.quantize.calibrated.task import Samples

See = Callable[[Sequence[NDArray[np.float32]]], list["torch.Tensor"]]
"""The features [image tokens, hidden] of normalized pictures, [tiles, 3, height, width] each."""

FILE = None
# entry vectors judge every entry, and questions the whole
covered, held_out = plain.covered, plain.held_out
write_vectors, copy_vectors = plain.write_vectors, plain.copy_vectors
_IMAGES = f"{CALIBRATION}.images"
_NO_TOKENIZER = f"the checkpoint has no {TOKENIZER}: the package cannot turn a prompt into tokens"
_NO_PROCESSOR = (
    f"the checkpoint has neither {PROCESSOR} nor {IMAGES}: the package does not say how an image becomes tiles; "
    "processor.save_pretrained(folder) writes it"
)


def warnings(model: Model, checkpoint: Path) -> list[str]:
    """See `Driver`."""
    found = [] if (checkpoint / TOKENIZER).exists() else [_NO_TOKENIZER]
    return found if has_processor(checkpoint) else [*found, _NO_PROCESSOR]


def check(recipe: Recipe, model: Model, checkpoint: Path) -> None:
    """See `Driver`: tokenizer and processor are those of this model."""
    plain.refuse_text(recipe, "says nothing about images yet")
    vocabulary: Any = model.constants["vocab_size"]
    check_tokenizer(checkpoint, vocabulary)
    if has_processor(checkpoint):
        from_processor(checkpoint)


def write_companions(model: Model, checkpoint: Path, folder: Path) -> None:
    """preprocessing.json and the page by which an app follows it, where the checkpoint has a processor."""
    if has_processor(checkpoint):
        (folder / PREPROCESSING).write_text(content(described(model, checkpoint)), encoding="utf-8")
        shutil.copyfile(PAGE, folder / SPECIFICATION)


def described(model: Model, checkpoint: Path) -> Preprocessing:
    """The checkpoint's processor, for images no larger than those that the model is compiled for."""
    found, constants = from_processor(checkpoint), model.constants
    most: Any = constants.get("max_tiles")
    largest: Any = constants.get("max_image")
    if isinstance(found, Smolvlm):
        images = found.images.model_copy(update={"max_tiles": min(most, found.images.max_tiles)})
        return found.model_copy(update={"images": images})
    pixtral = found.images.model_copy(update={"longest_edge": min(largest, found.images.longest_edge)})
    return found.model_copy(update={"images": pixtral})


def looked_at(calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[Any]:
    """A record: `ids` int32 [sequences, length] of conversations one after another, `pixels` uint8 [tiles, size, size,
    3] of the tiles that their image tokens stand for, in order, and `values` float32 [3, 256], what a channel's pixels
    become. Conversations are shuffled by the seed. Raises EdgewrightError."""
    whole, pictures = conversations(calibration, text, reader(model, checkpoint), model, checkpoint)
    return record({"ids": whole, "pixels": np.concatenate(pictures), "values": channel_values(checkpoint)})


def record(fields: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Arrays as one, of no dimensions: what `looked_at` gives where a model looks at more than one thing."""
    found = np.zeros((), [(name, array.dtype, array.shape) for name, array in fields.items()])
    for name, array in fields.items():
        found[name] = array
    return found


def channel_values(checkpoint: Path) -> NDArray[np.float32]:
    """What a channel's pixels become, float32 [3, 256]."""
    gray = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 3))
    return normalise(gray[None, :, None], from_processor(checkpoint).images.normalisation)[0, :, :, 0]


def conversations(
    calibration: Calibration, text: Path | None, found: Reader, model: Model, checkpoint: Path
) -> tuple[NDArray[np.int32], list[NDArray[np.uint8]]]:
    """Token ids [sequences, length] of conversations one after another, shuffled by the seed, and the pictures that
    their image tokens stand for, in order. Raises EdgewrightError."""
    if text is None or calibration.images is None:
        raise EdgewrightError(
            f"{_IMAGES}: methods that look at calibration data (gptq, awq) have to see what the model will see: give a "
            "folder of images, or a .jsonl file of questions with their images and answers; rtn, mse and hqq need none"
        )
    asking = Asking(text if text.is_dir() else text.parent, checkpoint, sees=True)
    given = list(entries(_IMAGES, text, sees=True))
    ids: list[int] = []
    pictures: list[NDArray[np.uint8]] = []
    for at in np.random.default_rng(calibration.seed).permutation(len(given)):
        prompt = found.read(asking.given(given[at], answered=True))
        ids += prompt.ids.tolist()
        pictures += [] if prompt.pictures is None else prompt.pictures()
        if len(ids) >= calibration.tokens:
            break
    if len(ids) < calibration.tokens or not pictures:
        raise EdgewrightError(
            f"{_IMAGES}: {text} has {len(ids)} tokens and {len(pictures)} images, {calibration.tokens} tokens are "
            f"asked for; give more images or set tokens: {len(ids)}"
        )
    most: Any = model.constants["max_positions"]
    length = min(LENGTH, most, calibration.tokens)
    return np.asarray(ids[: calibration.tokens // length * length], np.int32).reshape(-1, length), pictures


def samples(model: Model, table: Weights, looked_at: NDArray[Any]) -> Iterator[Samples]:
    """The tower over tiles, the table over ids, and the decoder over the embeddings that both make of conversations."""
    import torch

    from compiler import dialect
    from compiler.quantize.calibrated.task import Samples

    ids = torch.from_numpy(looked_at["ids"].astype(np.int64))
    pixels, values = torch.from_numpy(looked_at["pixels"]), torch.from_numpy(looked_at["values"].copy())
    vision = model.component("vision")
    tower = vision.module(vision.entry("tile"), {})

    def tile(at: int) -> torch.Tensor:
        return torch.stack([values[channel][pixels[at, :, :, channel].long()] for channel in range(3)])[None]

    with torch.no_grad(), dialect.weights(table):
        features = torch.cat([tower(tile(at))[0].flatten(0, 1) for at in range(len(pixels))])
    # as many patches as the decoder sees tokens, of tiles from all over
    patches: Any = model.constants["patches_per_tile"]
    count = min(len(pixels), max(1, ids.numel() // patches))
    chosen = np.linspace(0, len(pixels) - 1, count, dtype=np.int64)
    yield Samples(vision, tower, [(tile(int(at)),) for at in chosen])
    yield from entered(model, table, ids, features)


def entered(model: Model, table: Weights, ids: torch.Tensor, features: torch.Tensor) -> Iterator[Samples]:
    """The table over ids [sequences, length], and the decoder over embeddings with features [image tokens, hidden] in
    the places of image tokens, in order."""
    from compiler import dialect
    from compiler.quantize.calibrated.task import Samples

    embed = model.component("embed")
    rows = embed.module(embed.entry("embed"), {})
    with dialect.weights(table):
        embeddings = rows(ids)[0]
    image: Any = model.constants["image_token_id"]
    marks = ids.eq(image)
    embeddings[marks] = features[: int(marks.sum())]
    yield Samples(embed, rows, [(sequence[None],) for sequence in ids])
    yield decoder_samples(model, table, embeddings)


def reader(model: Model, checkpoint: Path, see: Callable[[Model], See] | None = None) -> Reader:
    """See `Driver`: image tokens stand for what the tower makes of pictures. see: `tower` by default.

    Raises EdgewrightError.
    """
    if not (checkpoint / TOKENIZER).is_file():
        raise EdgewrightError(f"{checkpoint}: no {TOKENIZER}, which questions need")
    if not has_processor(checkpoint):
        raise EdgewrightError(_NO_PROCESSOR)
    description, tokenizer = described(model, checkpoint), Encoder(checkpoint / TOKENIZER)
    encode = encoder(checkpoint, model, tokenizer)
    context: Any = model.constants["max_tokens"]

    def prepared(given: Given) -> Prepared:
        images = [decode_image(medium.raw, str(medium.path)) for medium in given.media if medium.kind == "image"]
        clips = [read_clip(medium.path, description) for medium in given.media if medium.kind == "clip"]
        return prepare(given.text, description, images, clips)

    def read(given: Given) -> Prompt:
        found = prepared(given)
        ids = np.array(encode(Document(found.text, given.templated)), np.int64)
        refuse_overlong(len(ids), context, description, found.image_tokens)
        return Prompt(ids, (lambda: prepared(given).pixels) if found.pixels else None)

    def enter() -> Enter:
        return entering(model, description.images.normalisation, (see or tower)(model))

    return Reader(read, enter, tokenizer, sees=True)


def tower(model: Model) -> See:
    """The tower over tiles, every picture's at once."""
    import torch

    vision = model.component("vision")
    module = vision.module(vision.entry("tile"), {})
    return lambda pictures: [module(torch.from_numpy(picture))[0].flatten(0, 1) for picture in pictures]


def entering(model: Model, normalisation: Normalisation, see: See) -> Enter:
    """What enters the decoder: embeddings of ids, features in the places of image tokens; computed once a prompt."""
    import torch

    embed = model.component("embed")
    rows = embed.module(embed.entry("embed"), {})
    image = model.constants["image_token_id"]
    features: dict[int, torch.Tensor] = {}

    def enter(ids: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        found: torch.Tensor = rows(ids)[0]
        for row, prompt in enumerate(prompts):
            if prompt.pictures is None:
                continue
            if id(prompt) not in features:
                features[id(prompt)] = torch.cat(see([normalise(seen, normalisation) for seen in prompt.pictures()]))
            found[row, : len(prompt.ids)][torch.from_numpy(prompt.ids == image)] = features[id(prompt)]
        return found

    return enter
