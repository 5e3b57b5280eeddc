"""Runners: one file per target that loads an artifact in its real runtime and gives logits.

What lives here: the protocol and the look-up by a manifest's target. What must not: metrics, limits, anything that
knows the compiler. A runner is used inside a child process only (``child.py``): a runtime may crash, or hold memory
that is never given back.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from artifacts import EdgewrightError, Manifest, MissingTool

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


class Runner(Protocol):
    """One artifact in one runtime; batch size 1.

    A runner may also have

    - `stand_in`: what computes in place of the real runtime since the last `load`, in a few words; None where it runs
      itself. Figures then say that they are emulated, and by what;
    - `warnings`: sentences about this machine that belong in the report;
    - `generate(text, tokens)`, where the runtime reads text itself: what its own tokenizer and generation make of it,
      as {"runtime": its name, "ids": [...], "continuation": [...]};
    - `model_memory()`, where the manifest says that memory is modelled: its figures.
    """

    def __init__(self, artifact: Path, runtime: Mapping[str, JsonValue]) -> None:
        """Import the runtime; load nothing of the model. ``runtime``: that key of the manifest."""

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Load the model and its whole cache. ``exact``: the same package at its highest precision."""

    def logits(self, ids: Ids) -> Logits:
        """[S, V]: the logits of all positions of one prefill of ``ids`` [S], from an empty cache."""

    def prefill(self, ids: Ids) -> Logits:
        """[V]: empty the cache, run ``ids`` [S] and return the logits of the last position, as shipped."""

    def decode(self, token: int) -> Logits:
        """[V]: the logits after one more token, as shipped."""


def make_runner(artifact: Path, manifest: Manifest) -> Runner:
    """The runner of the manifest's target; EdgewrightError when there is none, MissingTool without its runtime."""
    name = f"{__name__}.{manifest.target}"
    if importlib.util.find_spec(name) is None:
        raise EdgewrightError(
            f"{artifact}: no runner for the target {manifest.target!r} in this Edgewright; upgrade it"
        )
    try:
        runner: type[Runner] = importlib.import_module(name).RUNNER
        return runner(artifact, manifest.runtime)
    except ModuleNotFoundError as error:
        raise MissingTool(
            f"{artifact}: running it needs the module {error.name}; pip install 'edgewright[{manifest.target}]'"
        ) from error


def greedy(runner: Runner, prompt: Ids, tokens: int) -> list[int]:
    """The ``tokens`` most likely tokens after ``prompt``, one by one, each fed back."""
    produced = [int(runner.prefill(prompt).argmax())]
    while len(produced) < tokens:
        produced.append(int(runner.decode(produced[-1]).argmax()))
    return produced
