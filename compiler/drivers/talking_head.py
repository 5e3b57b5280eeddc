"""Sound in, a talking head out: the page by which an app cuts windows and puts frames together travels along.

Entry vectors judge every entry. A checkpoint may bring clips, which it is calibrated on, and a recipe may name held-out
ones, by which quality is judged (`artifacts/media/clips.py`); they are this driver's own vectors. What must not live
here: windows and frames themselves (`compiler/talking.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Progress
from artifacts.documents import DocumentError, read_bytes
from artifacts.formats.talking_head import PAGE
from artifacts.formats.tensor_file import write_tensors
from artifacts.media import TALKING_HEAD
from artifacts.media.clips import CLIPS, MAX_BYTES, Clips, parse_clips, stored
from compiler import talking
from compiler.drivers import plain
from compiler.golden import own_text
from compiler.models.base import Model
from compiler.slots import Schemes, Weights
from compiler.text import Held
from recipes.schema import Calibration, Recipe

if TYPE_CHECKING:
    from compiler.quantize.calibrated.task import Samples

FILE = CLIPS
KEY = "validate.quality.clips"
_WINDOWS, _FRAMES = 24, 24  # that are calibrated on, from all over the clips
covered, warnings, reader = plain.covered, plain.warnings, plain.reader


def check(recipe: Recipe, model: Model, checkpoint: Path) -> None:
    """See `Driver`: of quality only what clips tell, and of it only what these frames have."""
    quality = recipe.validation.quality
    if quality is None or quality.clips is None:
        plain.check(recipe, model, checkpoint)
        return
    if key := quality.of_text():
        raise EdgewrightError(f"validate.quality.{key}: measures text, which this model does not write; leave it out")
    shown = talking.constants_of(model).picture is not None
    wrong = "max_blendshape_change" if shown else "max_psnr_drop"
    if getattr(quality, wrong) is not None:
        frames = "pictures" if shown else "blendshapes"
        raise EdgewrightError(f"validate.quality.{wrong}: the frames of this model are {frames}; leave it out")
    plain.refuse_budget(recipe, "this model does not write")


def write_companions(model: Model, checkpoint: Path, folder: Path) -> None:
    """The page by which an app follows the constants."""
    shutil.copyfile(TALKING_HEAD, folder / PAGE)


def looked_at(calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[Any]:
    """The checkpoint's own clips, uint8 [bytes of their file]; the seeds of generated calls where it has none."""
    if not (checkpoint / CLIPS).is_file():
        return plain.looked_at(calibration, text, model, checkpoint)
    plain.refuse_calibration(calibration)
    return _bytes(checkpoint / CLIPS)


def samples(model: Model, table: Weights, looked_at: NDArray[Any]) -> Iterator[Samples]:
    """Windows of the clips, and the frames that the unquantized encoder has the renderer draw of them."""
    if looked_at.dtype != np.uint8:
        yield from plain.samples(model, table, looked_at)
        return
    import torch

    from compiler import dialect
    from compiler.quantize.calibrated.task import Samples

    clips = _parsed(looked_at, CLIPS, model).clips
    hearing, constants = talking.hearing(model), talking.constants_of(model)
    module = hearing.module(hearing.entries[0], {})
    given = [
        talking.heard_inputs(model, window, clip.identity)
        for clip in clips
        for window in talking.windows(clip, constants)
    ]
    yield Samples(hearing, module, [given[at] for at in _spread(len(given), _WINDOWS)])
    if constants.picture is None:
        return
    with torch.no_grad(), dialect.weights(table):
        heard = [talking.tokens(model, module, clip) for clip in clips]
    drawing = model.component(talking.RENDERER)
    places = [(n, at) for n, clip in enumerate(clips) for at in range(len(clip.mouth))]
    chosen = [places[at] for at in _spread(len(places), _FRAMES)]
    inputs = [next(talking.drawn_inputs(model, clips[n], heard[n], iter([at]))) for n, at in chosen]
    yield Samples(drawing, drawing.module(drawing.entries[0], {}), inputs)


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(at) for at in np.linspace(0, count - 1, min(count, most))})


def held_out(recipe: Recipe, text: Path | None, model: Model, checkpoint: Path) -> Held | None:
    """The recipe's clips, uint8 [bytes of their file]."""
    quality = recipe.validation.quality
    if quality is None or quality.clips is None:
        return None
    file, own = recipe.resolve(quality.clips), checkpoint / CLIPS
    found = _bytes(file)
    if own.is_file() and np.array_equal(found, _bytes(own)):
        raise EdgewrightError(f"{KEY}: {quality.clips} is what the checkpoint is calibrated on; give another file")
    _parsed(found, f"{KEY}: {file}", model)
    return Held(found, own_text(file))


def write_vectors(
    path: Path, model: Model, schemes: Schemes, held: Held, sides: Mapping[str, Weights], progress: Progress
) -> None:
    """The clips, with the frames of both sides."""
    from safetensors.numpy import load

    clips = _parsed(held.tokens, held.text, model).clips
    arrays, metadata = load(held.tokens.tobytes()), _metadata(held.tokens.tobytes())
    for at, (side, table) in enumerate(sides.items()):
        for n, clip in enumerate(clips):
            progress("frames in PyTorch", at * len(clips) + n, len(sides) * len(clips))
            made = talking.frames(model, schemes if side == "reference" else {}, table, clip)
            arrays[f"{n}.{side}"] = stored(made)
    progress("frames in PyTorch", 1, 1)
    write_tensors(path, arrays, {**metadata, "text": held.text}, MAX_BYTES)


def copy_vectors(source: Path, path: Path, tolerances: Mapping[str, float]) -> bool:
    """See `Driver`: no target has tolerances of its own for them."""
    if not source.is_file():
        return False
    shutil.copyfile(source, path)
    return True


def _metadata(raw: bytes) -> dict[str, str]:
    import json

    found: dict[str, str] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    return found


def _bytes(path: Path) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(read_bytes(path, MAX_BYTES), np.uint8)
    except DocumentError as error:
        raise EdgewrightError(str(error)) from error


def _parsed(raw: NDArray[Any], source: str, model: Model) -> Clips:
    return parse_clips(raw.tobytes(), source, talking.constants_of(model))
