"""Sessions: one file per target that loads an artifact in its real runtime and calls its entries.

What lives here: the protocol, the look-up by a manifest's target, and what every session checks of a call. What must
not: the order of calls (``drivers/``), metrics, limits, anything that knows the compiler. A session is used inside a
child process only (``child.py``): a runtime may crash, or hold memory that is never given back.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from artifacts import MANIFEST, EdgewrightError, Figure, Manifest, MissingTool
from artifacts.documents import first_error
from artifacts.formats.interface import Entry

Arrays = dict[str, NDArray[Any]]
_Runtime = TypeVar("_Runtime", bound=BaseModel)


class Session(Protocol):
    """One artifact in one runtime. States are the session's: they last from call to call.

    warnings: sentences about this machine that belong in the report. stand_in: what computes in place of the real
    runtime since the last `load`, in a few words; None where it runs itself. Figures then say that they are emulated,
    and by what. exact_stand_in: what stands in, loaded exactly, where hundreds of questions would take this machine too
    long as the package ships; None where they do not.

    A session whose runtime reads text itself also has `generate(text, tokens)`: what its own tokenizer and generation
    make of it, as {"runtime": its name, "ids": [...], "continuation": [...]}. One whose packages may hold a graph in
    two forms has `forms(component, entry, **arrays)`: the outputs of both, None without a second. One whose packages
    multiply 8-bit activations has `steps(component, entry, codes, **arrays)`: outputs and codes where all that is
    behind a rounded value goes on from given codes, by the value's name. One whose packages may hold packed weights has
    `load(plain=True)`, which leaves them, and `repeated()`: how many of the first calls since the last load are
    answered otherwise without them, None where there are none. One whose target keeps traces of its programs
    has `divergence(function, inputs, values, tolerance)`: the first operation whose value differs, in words.
    """

    warnings: tuple[str, ...]
    stand_in: str | None
    exact_stand_in: str | None

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        """Import the runtime; load nothing of the model."""

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Load the model and all of its states. ``exact``: the same package at its highest precision."""

    def reset(self) -> None:
        """Every state to zeros."""

    def call(self, component: str, entry: str, **arrays: NDArray[Any]) -> Arrays:
        """The entry's outputs by name, the caller's to keep. Arrays have the dtypes and shapes of its ports.

        Of a component with an entry "prefill" that keeps the last token, "score" gives the outputs of all tokens.
        """

    def footprint(self) -> list[Figure]:
        """Memory counted from the program, where the runtime does not run here; else nothing."""


def make_session(artifact: Path, manifest: Manifest) -> Session:
    """The session of the manifest's target; EdgewrightError when there is none, MissingTool without its runtime."""
    name = f"{__name__}.{manifest.target}"
    if importlib.util.find_spec(name) is None:
        raise EdgewrightError(
            f"{artifact}: no session for the target {manifest.target!r} in this Edgewright; upgrade it"
        )
    try:
        session: type[Session] = importlib.import_module(name).SESSION
        return session(artifact, manifest)
    except ModuleNotFoundError as error:
        raise MissingTool(
            f"{artifact}: running it needs the module {error.name}; pip install 'edgewright[{manifest.target}]'"
        ) from error


def runtime_section(model: type[_Runtime], artifact: Path, manifest: Manifest) -> _Runtime:
    """The manifest's `runtime` by a target's model of it. Raises EdgewrightError naming the first key that is wrong."""
    try:
        return model.model_validate(manifest.runtime)
    except ValidationError as error:
        said = first_error(error, "runtime")
        raise EdgewrightError(f"{artifact / MANIFEST}: {said}; build the artifact again") from error


def call_sizes(where: str, entry: Entry, arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Sizes of an entry's named dimensions in a call; EdgewrightError naming the array that is not as its port."""
    names = {port.name for port in entry.inputs}
    if names != set(arrays):
        raise EdgewrightError(f"{where} takes {', '.join(sorted(names))}, not {', '.join(sorted(arrays)) or 'nothing'}")
    sizes: dict[str, int] = {}
    for port in entry.inputs:
        array = arrays[port.name]
        fits = array.dtype == port.dtype and array.ndim == len(port.shape)
        for wanted, size in zip(port.shape, array.shape, strict=False):
            fits &= size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
        if not fits:
            raise EdgewrightError(
                f"{where}: {port.name} is {array.dtype} {list(array.shape)}, not {port.dtype} {list(port.shape)}"
            )
    for name, size in sizes.items():
        bounds = entry.dimensions.get(name)
        if bounds and not (bounds.low <= size <= bounds.high and (not bounds.sizes or size in bounds.sizes)):
            taken = ", ".join(map(str, bounds.sizes)) or f"{bounds.low} to {bounds.high}"
            raise EdgewrightError(f"{where}: {name} is {size}; it takes {taken}")
    return sizes
