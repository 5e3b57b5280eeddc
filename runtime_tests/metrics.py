"""Distances between what a runtime says and what golden vectors expect: plain functions over arrays.

What lives here: formulas. What must not: files, runtimes, limits. Everything is computed in float64; logarithms are
natural.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32] | NDArray[np.float64]
Float64 = NDArray[np.float64]


def logsumexp(logits: Array) -> Float64:
    """log Σ exp over the last axis, shifted by the maximum so that nothing overflows."""
    top = logits.max(axis=-1, keepdims=True).astype(np.float64)
    total: Float64 = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return total


def top_kl(p_logits: Array, p_logsumexp: Array, q_logits: Array, q_logsumexp: Array) -> Float64:
    """KL(p‖q) in nats per position, from the logits of the ids that p ranks first and one bin for all other ids.

    Shapes [..., 64], [...], [..., 64], [...]; both logits belong to the same ids. Merging ids into a bin can only
    make the divergence smaller (data processing inequality), so this is a lower bound, and a tight one where the ids
    hold the mass.
    """
    p = p_logits.astype(np.float64) - p_logsumexp.astype(np.float64)[..., None]
    q = q_logits.astype(np.float64) - q_logsumexp.astype(np.float64)[..., None]
    listed = (np.exp(p) * (p - q)).sum(axis=-1)
    p_rest, q_rest = _rest(p), _rest(q)
    rest = np.where(p_rest > 0, p_rest * (np.log(np.maximum(p_rest, _TINY)) - np.log(np.maximum(q_rest, _TINY))), 0.0)
    total: Float64 = listed + rest
    return total


def perplexity(target_logprob: Array) -> float:
    """exp of the mean negative log likelihood of the next token."""
    return float(np.exp(-target_logprob.astype(np.float64).mean()))


def agreement(ids: NDArray[np.integer], expected: NDArray[np.integer]) -> float:
    """The share of positions at which both name the same token."""
    return float((ids == expected).mean())


# float32 logits leave an error of about 1e-7 in a probability: a rest below that is none, its logarithm noise
_TINY = 1e-7


def _rest(logprob: Float64) -> Float64:
    rest: Float64 = 1.0 - np.exp(logprob).sum(axis=-1)
    return np.where(rest > _TINY, rest, 0.0)
