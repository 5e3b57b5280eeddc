"""Images at their own size and text in, text out: `image_text`, for models that see an image in one piece.

What an app needs travels along as there; the largest image is the recipe's, however large the processor lets it be.
What must not live here: cells and prompts themselves (`artifacts/media/`), and the order of calls
(`runtime_tests/drivers/native_image_text.py`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.media.pixtral import cut
from compiler.drivers import image_text
from compiler.drivers.image_text import See
from compiler.models.base import Model
from recipes.schema import Calibration

if TYPE_CHECKING:
    import torch

FILE = image_text.FILE
covered, warnings, check = image_text.covered, image_text.warnings, image_text.check
held_out, samples, write_companions = image_text.held_out, image_text.samples, image_text.write_companions
write_vectors, copy_vectors = image_text.write_vectors, image_text.copy_vectors


def looked_at(calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[Any]:
    """Raises EdgewrightError: samples of one component have one shape, and these images have many."""
    raise EdgewrightError(
        "quantize: methods that look at calibration data (gptq, awq) are not there yet for models that see an image in "
        "one piece; take rtn, mse or hqq"
    )


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
