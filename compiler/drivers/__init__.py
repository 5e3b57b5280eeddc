"""What the compiler does for a driver's models beyond lowering them: one file for each driver's name.

What lives here: the protocol. What a model is calibrated on, and by which vectors of its own an artifact is judged
beside the vectors of its entries, is a driver's; how an app drives the components is `runtime_tests/drivers/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from artifacts import Progress
from compiler.models.base import Model
from compiler.questions import Reader
from compiler.slots import Schemes, Weights
from compiler.text import Held
from recipes.schema import Calibration, Recipe

if TYPE_CHECKING:
    from compiler.quantize.calibrated.task import Samples


class Driver(Protocol):
    """A module of `compiler/drivers/`.

    FILE: of its own vectors in an artifact; None without any.
    """

    FILE: str | None

    def covered(self, model: Model) -> set[tuple[str, str]]:
        """The entries that its own vectors judge, by component; others have entry vectors (`compiler/vectors.py`)."""

    def warnings(self, model: Model, checkpoint: Path) -> list[str]:
        """What a user has to know of what lies beside the weights."""

    def check(self, recipe: Recipe, model: Model, checkpoint: Path) -> None:
        """What lies beside the weights, before any work. Raises EdgewrightError."""

    def write_companions(self, model: Model, checkpoint: Path, folder: Path) -> None:
        """Files that an app of this driver needs beside tokenizer and weights, into a package's empty folder."""

    def looked_at(self, calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[Any]:
        """What calibration looks at; text: the recipe's file or folder, None for what is built in. Raises
        EdgewrightError."""

    def samples(self, model: Model, table: Weights, looked_at: NDArray[Any]) -> Iterator[Samples]:
        """Of every component, in order. table: the unquantized weights."""

    def held_out(self, recipe: Recipe, text: Path | None, model: Model, checkpoint: Path) -> Held | None:
        """What its own vectors are of; None without any. Raises EdgewrightError."""

    def reader(self, model: Model, checkpoint: Path) -> Reader:
        """What reads the questions of `validate.task`. Raises EdgewrightError where the model answers none."""

    def write_vectors(
        self, path: Path, model: Model, schemes: Schemes, held: Held, sides: Mapping[str, Weights], progress: Progress
    ) -> None:
        """Its own vectors. sides: "reference" (dequantized) and "original" weights."""

    def copy_vectors(self, source: Path, path: Path, tolerances: Mapping[str, float]) -> bool:
        """Vectors as `write_vectors` left them, with a target's tolerances; False where there are none."""


def driver_of(model: Model) -> Driver:
    """The driver of a model."""
    driver: Any = importlib.import_module(f"{__name__}.{model.driver}")
    found: Driver = driver
    return found
