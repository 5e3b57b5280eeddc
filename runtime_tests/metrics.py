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


def mean_interval(values: Float64) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of values [N, T] of N sequences; None for a single value.

    From the standard error over blocks of neighbouring positions, which are taken as independent of each other:
    neighbours are not, and so single positions would give too narrow an interval. The blocks are of 64 positions,
    shorter where there would be fewer than 32 of them, and Student's t (to first order) makes up for their number.
    """
    length = max(1, min(_BLOCK, values.size // _BLOCKS))
    blocks = [block for row in values for block in np.array_split(row, max(1, len(row) // length))]
    if len(blocks) < 2:
        return None
    counts = np.array([len(block) for block in blocks], np.float64)
    totals = np.array([block.sum() for block in blocks], np.float64)
    count, mean = len(blocks), float(totals.sum() / counts.sum())
    squares = float(((totals - mean * counts) ** 2).sum())
    half = (_Z + (_Z**3 + _Z) / (4 * (count - 1))) * np.sqrt(count / (count - 1) * squares) / counts.sum()
    return mean - float(half), mean + float(half)


def disagreement_cost(top_logits: Array, p_logsumexp: Array) -> Float64:
    """The least KL(p‖q) in nats, [...], of any q that ranks another token at least as high as p's first.

    top_logits [..., 2 or more] in descending order. The nearest such q is p with its first two tokens made equal: with
    m the margin between their logits, σ the logistic function and H the entropy of a coin in nats, it costs

        (p₁ + p₂) · (ln 2 - H(σ(m)))        about (p₁ + p₂) · m² / 8 for small margins

    so a limit K of the divergence allows the other token wherever m is at most about √(8 K / (p₁ + p₂)).
    """
    first, second = (top_logits[..., i].astype(np.float64) - p_logsumexp for i in (0, 1))
    share = 1.0 / (1.0 + np.exp(second - first))
    mass = np.exp(first) + np.exp(second)
    entropy = -share * np.log(share) - (1 - share) * np.log(np.maximum(1 - share, _LEAST))
    cost: Float64 = mass * np.maximum(np.log(2) - entropy, 0.0)
    return cost


def agreement(ids: NDArray[np.integer], expected: NDArray[np.integer]) -> float:
    """The share of positions at which both name the same token."""
    return float((ids == expected).mean())


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson's score interval)."""
    share, z2 = right / count, _Z * _Z / count
    middle, half = share + z2 / 2, _Z * ((share * (1 - share) + z2 / 4) / count) ** 0.5
    return (middle - half) / (1 + z2), (middle + half) / (1 + z2)


def rms(errors: Array) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.square(errors.astype(np.float64)).mean()))


def psnr(picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """The peak signal-to-noise ratio in dB of 8-bit pictures, over all of them; 99 where they are the same."""
    error = rms(picture.astype(np.float64) - truth)
    return 99.0 if error == 0 else min(99.0, float(20 * np.log10(255 / error)))


# float32 logits leave an error of about 1e-7 in a probability: a rest below that is none, its logarithm noise
_TINY = 1e-7
_LEAST = 1e-300  # its logarithm is finite, and comes times zero
_BLOCK = 64
_BLOCKS = 32
_Z = 1.959964


def _rest(logprob: Float64) -> Float64:
    rest: Float64 = 1.0 - np.exp(logprob).sum(axis=-1)
    return np.where(rest > _TINY, rest, 0.0)
