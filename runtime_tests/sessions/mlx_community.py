"""Folders of the mlx-community as `mlx_lm.load` takes them: its model class, its own caches.

What lives here: where that differs from our packages, whose loading, calls and stand-ins these are (`mlx.py`). What
must not: anything that reads the folder otherwise than mlx-lm does.

On a CPU the answers are computed in float32, from the same codes: in the half precision of the file MLX's kernels there
mislead, and putting that right takes some thirty times as long. Memory is that of the folder as it ships.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from artifacts import Manifest
from artifacts.formats.mlx import MlxRuntime
from runtime_tests.sessions.mlx import FLOAT32_ON_CPU, MlxSession, TextModel


class CommunitySession(MlxSession):
    """See `Session`."""

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        context = manifest.components[0].entry("prefill").dimensions["tokens"].high
        runtime = MlxRuntime(loader="mlx-lm", max_tokens=context).model_dump(mode="json")
        super().__init__(artifact, manifest.model_copy(update={"runtime": runtime}))
        self.exact_stand_in = None if mx.metal.is_available() else FLOAT32_ON_CPU

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """See `MlxSession`."""
        self._model = None
        mx.clear_cache()
        self._model = model = _Model(self._artifact, self._runtime, exact)
        self.stand_in = self.exact_stand_in if exact else model.stand_in


class _Model(TextModel):
    def reset(self) -> None:
        """Another conversation: mlx-lm's own caches, which grow."""
        self._cache = make_prompt_cache(self._model)


SESSION = CommunitySession
