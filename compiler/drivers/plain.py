"""Components called one after another, each entry's outputs offered to the next under their names.

Inputs that nothing gave come from the generator that `artifacts/formats/vectors.py` specifies; entry vectors judge the
artifact, and it has no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Progress
from artifacts.formats import vectors
from artifacts.formats.frames import pace
from compiler.models.base import Model
from compiler.models.interface import described
from compiler.questions import Reader
from compiler.slots import Schemes, Weights
from compiler.text import Held
from recipes.fields import BUILT_IN_TEXT
from recipes.schema import Calibration, Recipe

if TYPE_CHECKING:
    from compiler.quantize.calibrated.task import Samples

FILE = None
_CALLS = 16


def covered(model: Model) -> set[tuple[str, str]]:
    """Nothing: entry vectors judge every entry."""
    return set()


def warnings(model: Model, checkpoint: Path) -> list[str]:
    """See `Driver`: that a frame takes long."""
    return list(filter(None, [pace(model.constants)]))


def check(recipe: Recipe, model: Model, checkpoint: Path) -> None:
    """See `Driver`."""
    refuse_text(recipe, "this model does not write")


def write_companions(model: Model, checkpoint: Path, folder: Path) -> None:
    """See `Driver`: none."""


def refuse_text(recipe: Recipe, why: str) -> None:
    """Refuse what is measured on text. why: ends the sentence. Raises EdgewrightError."""
    if recipe.validation.quality is not None:
        raise EdgewrightError(f"validate.quality: measures text, which {why}; leave it out")
    refuse_budget(recipe, why)


def refuse_budget(recipe: Recipe, why: str) -> None:
    """Refuse a budget, which is measured on text. why: ends the sentence. Raises EdgewrightError."""
    if recipe.quantize.budget is not None:
        raise EdgewrightError(f"quantize.budget: is measured on text, which {why}; leave it out")


def refuse_calibration(calibration: Calibration) -> None:
    """Refuse text and images. Raises EdgewrightError."""
    if (given := calibration.images) is not None or (given := calibration.text) != BUILT_IN_TEXT:
        raise EdgewrightError(f"quantize.calibration: {given}: this model does not read text or images; leave it out")


def looked_at(calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[Any]:
    """The seeds of the calls."""
    refuse_calibration(calibration)
    return np.arange(calibration.seed, calibration.seed + _CALLS, dtype=np.int64)


def samples(model: Model, table: Weights, looked_at: NDArray[Any]) -> Iterator[Samples]:
    """Every component over generated inputs, at the largest sizes of its first entry, its states going on."""
    import torch

    from compiler import dialect
    from compiler.quantize.calibrated.task import Samples

    given: list[dict[str, torch.Tensor]] = [{} for _ in looked_at]
    for component, stated in zip(model.components, described(model, {}), strict=True):
        entry = component.shipped[0]
        call = vectors.Call(component=component.name, entry=entry.name, sizes=entry.largest())
        module = component.module(entry, {})
        states = [torch.zeros(state.sized({}), dtype=getattr(torch, state.dtype)) for state in component.states]
        inputs = []
        with torch.no_grad(), dialect.weights(table):
            for seed, values in zip(looked_at, given, strict=True):
                plan = vectors.Calls(seed=int(seed), calls=(call,), exact=1.0, shipped=1.0)
                _, arrays = next(iter(vectors.inputs(plan, (stated,))))
                ports = [values.get(port.name, torch.from_numpy(arrays[port.name])) for port in entry.inputs]
                inputs.append((*ports, *states))
                found = module(*inputs[-1])
                values |= {port.name: value for port, value in zip(entry.outputs, found, strict=False)}
                if entry.keeps:
                    states = list(found[len(entry.outputs) :])
        yield Samples(component, module, inputs)


def held_out(recipe: Recipe, text: Path | None, model: Model, checkpoint: Path) -> Held | None:
    """None: there are no vectors of its own."""
    return None


def reader(model: Model, checkpoint: Path) -> Reader:
    """See `Driver`; refused before (`check`)."""
    raise EdgewrightError("validate.task: asks questions, which this model does not answer; leave it out")


def write_vectors(
    path: Path, model: Model, schemes: Schemes, held: Held, sides: Mapping[str, Weights], progress: Progress
) -> None:
    """See `Driver`; never asked."""
    raise AssertionError("held_out gave nothing")


def copy_vectors(source: Path, path: Path, tolerances: Mapping[str, float]) -> bool:
    """See `Driver`; never asked."""
    raise AssertionError("held_out gave nothing")
