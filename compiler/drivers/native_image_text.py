"""Images at their own size and text in, text out: `image_text`, for models that see an image in one piece.

What an app needs travels along as there; the largest image is the recipe's, however large the processor lets it be.
What must not live here: cells and prompts themselves (`artifacts/media/`), and the order of calls
(`runtime_tests/drivers/native_image_text.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts.media.pixtral import cut
from compiler.drivers import image_text
from compiler.drivers.image_text import See
from compiler.models.base import Model
from compiler.slots import Weights
from recipes.schema import Calibration

if TYPE_CHECKING:
    import torch

    from compiler.quantize.calibrated.task import Samples

FILE = image_text.FILE
covered, warnings, check = image_text.covered, image_text.warnings, image_text.check
held_out, write_companions = image_text.held_out, image_text.write_companions
write_vectors, copy_vectors = image_text.write_vectors, image_text.copy_vectors


def looked_at(calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[Any]:
    """A record: `ids` and `values` as `image_text` has them, and the cells of all images one after another: `pixels`
    uint8 [cells, 3, cell, cell], `rows` and `columns` of their patches, int64 [cells, merge²], and `images`, int64
    [cells], the number of the image that a cell is of. Raises EdgewrightError."""
    whole, pictures = image_text.conversations(calibration, text, reader(model, checkpoint), model, checkpoint)
    constants: Any = model.constants
    found = [
        cut(image.transpose(2, 0, 1), constants["patch_size"], constants["merge"])
        for picture in pictures
        for image in picture
    ]
    fields = {
        "ids": whole,
        "values": image_text.channel_values(checkpoint),
        "pixels": np.concatenate([image.pixels for image in found]),
        "rows": np.concatenate([image.rows for image in found]),
        "columns": np.concatenate([image.columns for image in found]),
        "images": np.concatenate([np.full(len(image.pixels), at) for at, image in enumerate(found)]),
    }
    return image_text.record(fields)


def samples(model: Model, table: Weights, looked_at: NDArray[Any]) -> Iterator[Samples]:
    """The tower over images, several a call, the table over ids, and the decoder over embeddings of conversations."""
    import torch

    from compiler import dialect
    from compiler.quantize.calibrated.task import Samples

    ids = torch.from_numpy(looked_at["ids"].astype(np.int64))
    vision = model.component("vision")
    module = vision.module(vision.entry("image"), {})
    images: NDArray[np.int64] = looked_at["images"]

    def call(cells: NDArray[np.int64], of: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        values = looked_at["values"][np.arange(3)[:, None, None], looked_at["pixels"][cells]]
        given = (values, looked_at["rows"][cells], looked_at["columns"][cells], of)
        return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in given)

    with torch.no_grad(), dialect.weights(table):
        each = (np.flatnonzero(images == at) for at in range(images[-1] + 1))
        features = torch.cat([module(*call(cells, np.zeros(len(cells), np.int64)))[0] for cells in each])
    calls = packed(images)
    merge: Any = model.constants["merge"]
    # as many patches as the decoder sees tokens, of images from all over
    count = min(len(calls), max(1, ids.numel() // (calls[0][0].size * merge**2)))
    chosen = np.linspace(0, len(calls) - 1, count, dtype=np.int64)
    yield Samples(vision, module, [call(*calls[at]) for at in chosen])
    yield from image_text.entered(model, table, ids, features)


def packed(images: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cells for calls of one size, that of the largest image: their numbers, and which image of the call each is of.

    images: [cells], the number of the image that a cell is of, ascending. Where one does not fit into what is left of a
    call, its first cells fill it, as an image of their own, and all of them begin the next; the last call is filled
    with the first images.
    """
    each = [np.flatnonzero(images == at) for at in range(images[-1] + 1)]
    size = max(map(len, each))
    calls: list[list[NDArray[np.int64]]] = [[]]
    for at, cells in enumerate(itertools.chain(each, itertools.cycle(each))):
        left = size - sum(map(len, calls[-1]))
        if at >= len(each) and not left:
            break
        if left:
            calls[-1].append(cells[:left])
        if left < len(cells) and at < len(each):
            calls.append([cells])
    return [(np.concatenate(some), np.repeat(np.arange(len(some)), list(map(len, some)))) for some in calls]


def tower(model: Model) -> See:
    """The tower over the cells of each image by itself."""
    import torch

    vision = model.component("vision")
    module = vision.module(vision.entry("image"), {})
    constants: Any = model.constants

    def features(pixels: NDArray[Any]) -> torch.Tensor:
        found = cut(pixels, constants["patch_size"], constants["merge"])
        one = torch.zeros(len(found.pixels), dtype=torch.int64)  # all cells are of the same image
        out: torch.Tensor = module(*map(torch.from_numpy, (found.pixels, found.rows, found.columns)), one)[0]
        return out

    return lambda pictures: [features(image) for picture in pictures for image in picture]


reader = partial(image_text.reader, see=tower)
