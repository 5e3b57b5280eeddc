"""Folders of onnxruntime-genai as its users load them: one generator is one conversation, on the CPU.

What lives here: tokens in, logits out. What must not: text and its tokenizer (`runtime_tests/genai.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Figure, Manifest, MissingTool

from . import Arrays, call_sizes

_SCORE, _SCORED = "score", "prefill"


class GenaiSession:
    """See `Session`. Whatever the folder asks for, nothing but the CPU computes."""

    warnings: tuple[str, ...] = ()
    stand_in: str | None = None
    exact_stand_in: str | None = None

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        try:
            import onnxruntime_genai
        except ModuleNotFoundError as error:
            raise MissingTool(
                f"{artifact}: running it needs onnxruntime-genai; pip install onnxruntime-genai"
            ) from error
        self._og: Any = onnxruntime_genai
        self._artifact, self._component = artifact, manifest.components[0]
        self._context = self._component.entry(_SCORED).dimensions["tokens"].high
        self._generator: Any = None
        self._whole: bool | None = None  # whether the graph gives the logits of all tokens

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Load the folder; `exact` changes nothing, as its precision is that of its graph."""
        try:
            config = self._og.Config(str(self._artifact))
            config.clear_providers()
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
            self._model = self._og.Model(config)
        except RuntimeError as error:  # the only kind that genai raises
            raise EdgewrightError(f"{self._artifact}: onnxruntime-genai cannot load it: {error}") from error
        self.reset()

    def reset(self) -> None:
        """Another conversation, with a cache of the whole context where the folder's is of a fixed size."""
        self._generator = None  # one cache is freed before the next is made
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=self._context)
        self._generator = self._og.Generator(self._model, parameters)

    def call(self, component: str, entry: str, **arrays: NDArray[Any]) -> Arrays:
        """See `Session`. A graph that keeps the last token's logits alone is asked for "score" token by token."""
        call_sizes(f"{component}.{entry}", self._component.entry(_SCORED if entry == _SCORE else entry), arrays)
        ids = arrays["input_ids"][0].astype(np.int32)
        if entry == _SCORE:
            return {"logits": self._scored(ids)}
        return {"logits": self._said(ids)[:, -1:]}

    def footprint(self) -> list[Figure]:
        """Nothing: the runtime runs here."""
        return []

    def _said(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        self._generator.append_tokens(ids)
        found: NDArray[np.float32] = np.array(self._generator.get_output("logits"), np.float32)
        return found

    def _scored(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        if self._whole is None and len(ids) > 1:
            begin = self._generator.token_count()
            self._whole = self._said(ids[:2]).shape[1] == 2
            self._generator.rewind_to(begin)
        if self._whole:
            return self._said(ids)
        return np.concatenate([self._said(ids[i : i + 1]) for i in range(len(ids))], axis=1)


SESSION = GenaiSession
