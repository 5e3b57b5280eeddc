"""Images and text in, text out: what an app needs to cut an image and write a prompt travels along as data.

Entry vectors judge every entry: the tower over tiles, the table, and the decoder over embeddings. What must not live
here: tiles and prompts themselves (`artifacts/media/`), and the order of calls (`runtime_tests/drivers/image_text.py`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.formats.preprocessing import PREPROCESSING, SPECIFICATION, content
from artifacts.media import PAGE
from compiler.drivers import plain
from compiler.models.base import Model
from compiler.processor import from_processor
from compiler.tokenizer import FILE as TOKENIZER
from compiler.tokenizer import check_tokenizer
from recipes.schema import Calibration, Recipe

FILE = None
# entry vectors alone judge it, and nothing is looked at
covered, held_out = plain.covered, plain.held_out
samples, write_vectors, copy_vectors = plain.samples, plain.write_vectors, plain.copy_vectors
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
_NO_TOKENIZER = f"the checkpoint has no {TOKENIZER}: the package cannot turn a prompt into tokens"
_NO_PROCESSOR = (
    f"the checkpoint has neither {' nor '.join(_PROCESSOR)}: the package does not say how an image becomes tiles; "
    "processor.save_pretrained(folder) writes it"
)


def warnings(model: Model, checkpoint: Path) -> list[str]:
    """See `Driver`."""
    found = [] if (checkpoint / TOKENIZER).exists() else [_NO_TOKENIZER]
    return found if _has_processor(checkpoint) else [*found, _NO_PROCESSOR]


def check(recipe: Recipe, model: Model, checkpoint: Path) -> None:
    """See `Driver`: tokenizer and processor are those of this model."""
    plain.refuse_text(recipe, "says nothing about images yet")
    vocabulary: Any = model.constants["vocab_size"]
    check_tokenizer(checkpoint, vocabulary)
    if _has_processor(checkpoint):
        from_processor(checkpoint)


def write_companions(model: Model, checkpoint: Path, folder: Path) -> None:
    """preprocessing.json and the page by which an app follows it, where the checkpoint has a processor."""
    write_description(checkpoint, folder)


def write_description(checkpoint: Path, folder: Path, largest: int | None = None) -> None:
    """See `write_companions`. largest: pixels of the longest edge that no image may have more of."""
    if not _has_processor(checkpoint):
        return
    found = from_processor(checkpoint)
    if largest is not None and largest < found.images.longest_edge:
        images = found.images.model_copy(update={"longest_edge": largest})
        found = found.model_copy(update={"images": images})
    (folder / PREPROCESSING).write_text(content(found), encoding="utf-8")
    shutil.copyfile(PAGE, folder / SPECIFICATION)


def looked_at(calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[Any]:
    """Raises EdgewrightError: there is no calibration with images yet, and without them it would fit other inputs."""
    raise EdgewrightError(
        "quantize: methods that look at calibration data (gptq, awq) are not there yet for models that see images; "
        "take rtn, mse or hqq"
    )


def _has_processor(checkpoint: Path) -> bool:
    return any((checkpoint / name).is_file() for name in _PROCESSOR)
