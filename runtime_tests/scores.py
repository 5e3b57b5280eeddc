"""What a runtime says about every golden token, kept per position: what paired differences are made of.

What lives here: those values of one artifact, and their differences to those of another. What must not: limits and
verdicts (`quality.py` judges one artifact by the same formulas), and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from artifacts import Progress
from runtime_tests.golden import Golden
from runtime_tests.metrics import Float64, mean_interval, top_kl
from runtime_tests.parity import Decoder, observe


class Scores(BaseModel):
    """Per sequence and position against the unquantized checkpoint in PyTorch: nats of the next token that are lost
    [N, L-1], whether the likeliest token is the same [N, L], and the divergence in nats [N, L], see `top_kl`.

    stand_in: what computed in place of the runtime. None for what PyTorch says of the same weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lost: list[list[float]]
    same: list[list[float]]
    kl: list[list[float]] | None
    stand_in: str | None = None

    def values(self, name: str) -> Float64 | None:
        """`lost`, `same` or `kl` as an array."""
        found = getattr(self, name)
        return None if found is None else np.asarray(found, np.float64)


def scores(decoder: Decoder, golden: Golden, stand_in: str | None, progress: Progress) -> Scores:
    """Of a runtime, over all golden tokens."""
    seen = observe(decoder, golden, progress, "scoring the golden text")
    original = golden.original
    return _scores(
        original.target_logprob.astype(np.float64) - seen.target_logprob,
        seen.top1 == original.top_ids[..., 0],
        top_kl(original.top_logits, original.logsumexp, seen.at_original, seen.logsumexp),
        stand_in,
    )


def weights_scores(golden: Golden) -> Scores:
    """Of the quantized weights alone, by PyTorch, as golden vectors declare it; they do not hold the divergence."""
    lost = golden.original.target_logprob.astype(np.float64) - golden.reference.target_logprob
    return _scores(lost, golden.reference.top_ids[..., 0] == golden.original.top_ids[..., 0], None, None)


def difference(first: Float64, second: Float64) -> tuple[float, tuple[float, float] | None]:
    """The mean of second - first [N, T] and its 95 % interval, position by position: what makes a token hard for both
    cancels."""
    return float((second - first).mean()), mean_interval(second - first)


def ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """second / first - 1 of rounds that were run side by side, and its 95 % interval: by the mean of the logarithms,
    round by round, so that what slows down both cancels."""
    logs = np.log(np.asarray(second, np.float64)) - np.log(np.asarray(first, np.float64))
    around = mean_interval(logs[None])
    grown: Any = np.expm1(logs.mean())
    return float(grown), None if around is None else (float(np.expm1(around[0])), float(np.expm1(around[1])))


def _scores(lost: Float64, same: NDArray[np.bool_], kl: Float64 | None, stand_in: str | None) -> Scores:
    return Scores(
        lost=lost.tolist(),
        same=same.astype(np.float64).tolist(),
        kl=None if kl is None else kl.tolist(),
        stand_in=stand_in,
    )
