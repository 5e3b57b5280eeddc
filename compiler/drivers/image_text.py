"""Images and text in, text out: what an app needs to cut an image and write a prompt travels along as data.

Entry vectors judge every entry: the tower over tiles, the table, and the decoder over embeddings. What must not live
here: tiles and prompts themselves (`artifacts/media/`), and the order of calls (`runtime_tests/drivers/image_text.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from artifacts import EdgewrightError, Progress
from artifacts.formats.preprocessing import PREPROCESSING, SPECIFICATION, content
from artifacts.media import PAGE
from compiler.drivers import plain
from compiler.models.base import Model
from compiler.processor import from_processor
from compiler.slots import Schemes, Weights
from compiler.text import Held
from compiler.tokenizer import FILE as TOKENIZER
from compiler.tokenizer import check_tokenizer
from recipes.schema import Calibration, Recipe

if TYPE_CHECKING:
    from compiler.quantize.calibrated.task import Samples

FILE = None
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
_NO_TOKENIZER = f"the checkpoint has no {TOKENIZER}: the package cannot turn a prompt into tokens"
_NO_PROCESSOR = (
    f"the checkpoint has neither {' nor '.join(_PROCESSOR)}: the package does not say how an image becomes tiles; "
    "processor.save_pretrained(folder) writes it"
)


def covered(model: Model) -> set[tuple[str, str]]:
    """Nothing: entry vectors judge every entry."""
    return set()


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
    if _has_processor(checkpoint):
        (folder / PREPROCESSING).write_text(content(from_processor(checkpoint)), encoding="utf-8")
        shutil.copyfile(PAGE, folder / SPECIFICATION)


def looked_at(calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[Any]:
    """Raises EdgewrightError: there is no calibration with images yet, and without them it would fit other inputs."""
    raise EdgewrightError(
        "quantize: methods that look at calibration data (gptq, awq) are not there yet for models that see images; "
        "take rtn, mse or hqq"
    )


def samples(model: Model, table: Weights, looked_at: NDArray[Any]) -> Iterator[Samples]:
    """See `Driver`; never asked."""
    raise AssertionError("looked_at gave nothing")


def held_out(recipe: Recipe, text: Path | None, model: Model, checkpoint: Path) -> Held | None:
    """None: there are no vectors of its own."""
    return None


def write_vectors(
    path: Path, model: Model, schemes: Schemes, held: Held, sides: Mapping[str, Weights], progress: Progress
) -> None:
    """See `Driver`; never asked."""
    raise AssertionError("held_out gave nothing")


def copy_vectors(source: Path, path: Path, tolerances: Mapping[str, float]) -> bool:
    """See `Driver`; never asked."""
    raise AssertionError("held_out gave nothing")


def _has_processor(checkpoint: Path) -> bool:
    return any((checkpoint / name).is_file() for name in _PROCESSOR)
