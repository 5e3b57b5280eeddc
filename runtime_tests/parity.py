"""Parity: does the runtime compute what the PyTorch reference with the same dequantized weights computes?

What lives here: running an artifact over its golden tokens, prefill and cached decode, and the figures and checks of
that comparison. What must not: the unquantized checkpoint (``quality.py``) and which process this runs in
(``child.py``).

Logits are reduced while they come: a row of a large vocabulary is half a megabyte, and there are thousands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from artifacts import Check, Figure, GateFailed, Progress, checked, ran_here
from runtime_tests.golden import Golden, Side
from runtime_tests.metrics import Float64, agreement, disagreement_cost, logsumexp, top_kl
from runtime_tests.vectors import PARITY

Logits = NDArray[np.float32]


class Decoder(Protocol):
    """What is observed: one conversation, see `drivers/text.py`."""

    def logits(self, ids: NDArray[np.int64]) -> Logits:
        """[S, V]"""

    def prefill(self, ids: NDArray[np.int64]) -> Logits:
        """[V]"""

    def decode(self, token: int) -> Logits:
        """[V]"""


DECODE_STEPS = 64
_BEFORE_BORDER = 8


@dataclass(frozen=True)
class Observed:
    """What a runtime said about the golden tokens, reduced: [N, L] each, [N, L, 64] at a side's ids, and [F, V]."""

    logsumexp: Float64
    target_logprob: Float64
    top1: NDArray[np.int64]
    at_reference: NDArray[np.float32]
    at_original: NDArray[np.float32]
    full: NDArray[np.float32]


@dataclass(frozen=True)
class Decoded:
    """Cached decoding of one sequence: [T] positions and at each logsumexp, arg max, the reference's ids [T, 64]."""

    positions: NDArray[np.int64]
    logsumexp: Float64
    top1: NDArray[np.int64]
    at_reference: NDArray[np.float32]


@dataclass(frozen=True)
class Ran:
    """What stood in for the runtime in each mode; None: the runtime itself ran."""

    exact: str | None = None
    shipped: str | None = None


def observe(decoder: Decoder, golden: Golden, progress: Progress, stage: str) -> Observed:
    """One prefill per golden sequence; GateFailed when the runtime gives another shape or NaN."""
    n, length = golden.tokens.shape
    observed = Observed(
        logsumexp=np.empty((n, length), np.float64),
        target_logprob=np.empty((n, length - 1), np.float64),
        top1=np.empty((n, length), np.int64),
        at_reference=np.empty(golden.reference.top_ids.shape, np.float32),
        at_original=np.empty(golden.original.top_ids.shape, np.float32),
        full=np.empty((len(golden.full_index), golden.vocabulary), np.float32),
    )
    for i, tokens in enumerate(golden.tokens.astype(np.int64)):
        progress(stage, i, n)
        logits = decoder.logits(tokens)
        _check(logits, (length, golden.vocabulary))
        for position in range(length):  # row by row: a float64 copy of all rows would not fit a phone
            row = logits[position]
            observed.logsumexp[i, position] = logsumexp(row)
            observed.top1[i, position] = row.argmax()
            observed.at_reference[i, position] = row[golden.reference.top_ids[i, position]]
            observed.at_original[i, position] = row[golden.original.top_ids[i, position]]
        next_logits = logits[np.arange(length - 1), tokens[1:]].astype(np.float64)
        observed.target_logprob[i] = next_logits - observed.logsumexp[i, :-1]
        for k, (sequence, position) in enumerate(golden.full_index):
            if sequence == i:
                observed.full[k] = logits[position]
    progress(stage, n, n)
    return observed


def decode_span(golden: Golden) -> tuple[int, int]:
    """First and last + 1 position to decode: across the border of the original context and 64 beyond, where it can."""
    border, length = golden.original_positions, golden.length
    stop = min(length, border + DECODE_STEPS)
    if border >= length:  # the golden text ends before the border; decode its last positions
        return max(1, length - DECODE_STEPS), length
    return max(1, border - _BEFORE_BORDER), stop


def observe_decode(decoder: Decoder, golden: Golden, progress: Progress, stage: str) -> Decoded:
    """Prefill the beginning of the first sequence, then feed its own next tokens one by one through the cache."""
    first, stop = decode_span(golden)
    tokens = golden.tokens[0].astype(np.int64)
    rows = [decoder.prefill(tokens[:first])]
    for position in range(first, stop):
        progress(stage, position - first, stop - first)
        rows.append(decoder.decode(int(tokens[position])))
    progress(stage, stop - first, stop - first)
    logits, positions = np.stack(rows), np.arange(first - 1, stop)
    _check(logits, (len(positions), golden.vocabulary))
    return Decoded(
        positions=positions,
        logsumexp=logsumexp(logits),
        top1=logits.argmax(axis=-1),
        at_reference=np.take_along_axis(logits, golden.reference.top_ids[0, positions], axis=-1),
    )


def parity(
    golden: Golden, exact: Observed, shipped: Observed, exact_decode: Decoded, shipped_decode: Decoded, ran: Ran
) -> tuple[list[Figure], list[Check]]:
    """This room's figures and checks, against the reference, with the tolerances that the golden file states.

    "exact" is the most precise mode, "shipped" the package as is. A shipped token other than the reference's counts
    only where the reference is clear: where its preference costs more to overturn (`disagreement_cost`) than the limit
    of the mean divergence allows. So a share s of counted ones adds at least s times that limit to the mean.
    """
    reference, tolerances = golden.reference, golden.tolerances
    step = exact_decode.positions
    expected = Side(
        target_logprob=reference.target_logprob[:0],
        logsumexp=reference.logsumexp[0, step],
        top_ids=reference.top_ids[0, step],
        top_logits=reference.top_logits[0, step],
    )
    full = np.abs(exact.full - golden.full_logits).max(initial=0)  # of a very large vocabulary there is none
    worst = max(full, np.abs(exact.at_reference - reference.top_logits).max())
    decode_worst = np.abs(exact_decode.at_reference - expected.top_logits).max()
    decode_kl = mean_kl(expected, shipped_decode.at_reference, shipped_decode.logsumexp)
    clear = disagreement_cost(reference.top_logits, reference.logsumexp) > tolerances.shipped_mean_kl
    same = shipped.top1 == reference.top_ids[..., 0]

    def in_exact(name: str, value: float, unit: str) -> Figure:
        return ran_here(name, value, unit, ran.exact)

    def as_shipped(name: str, value: float, unit: str) -> Figure:
        return ran_here(name, value, unit, ran.shipped)

    def count(name: str, value: int) -> Figure:
        return Figure(name=name, value=value, unit="positions", obtained="declared")

    exact_logit = in_exact("exact_max_abs_logit", float(worst), "logit")
    decode_logit = in_exact("decode_exact_max_abs_logit", float(decode_worst), "logit")
    kl = as_shipped("shipped_mean_kl", mean_kl(reference, shipped.at_reference, shipped.logsumexp), "nat")
    decoded_kl = as_shipped("decode_shipped_mean_kl", decode_kl, "nat")
    clear_same = as_shipped("shipped_clear_top1", float((same | ~clear).mean()), "fraction")
    figures = [
        exact_logit,
        in_exact("exact_mean_kl", mean_kl(reference, exact.at_reference, exact.logsumexp), "nat"),
        kl,
        as_shipped("shipped_top1", float(same.mean()), "fraction"),
        clear_same,
        decode_logit,
        decoded_kl,
        as_shipped("decode_shipped_top1", agreement(shipped_decode.top1, expected.top_ids[..., 0]), "fraction"),
        count("golden_positions", int(golden.tokens.size)),
        count("golden_length", golden.length),
        count("golden_positions_past_original", golden.sequences * past_original(golden, golden.length)),
        count("golden_positions_clear", int(clear.sum())),
        count("decode_positions", len(step)),
        count("decode_positions_past_original", past_original(golden, int(step[-1]) + 1)),
    ]
    logit, nats, share = tolerances.exact_max_abs_logit, tolerances.shipped_mean_kl, tolerances.shipped_min_top1
    unsure = ""
    if float(same.mean()) < share:
        unsure = (
            f"Of all tokens {same.mean():.2%} are the reference's; at {int(clear.sum()):,} of {clear.size:,} positions "
            "it is clear enough that the limit of the KL leaves room for no other."
        )
    checks = [
        checked(exact_logit, PARITY, "prefill, exact: max |Δlogit|", logit, "at most"),
        checked(decode_logit, PARITY, "cached decode, exact: max |Δlogit|", logit, "at most"),
        checked(kl, PARITY, "prefill, as shipped: mean KL, lower bound", nats, "at most"),
        checked(decoded_kl, PARITY, "cached decode, as shipped: mean KL, lower bound", nats, "at most"),
        checked(clear_same, PARITY, "prefill, as shipped: same clear token", share, "at least", reason=unsure),
    ]
    return figures, checks


def mean_kl(side: Side, at_ids: NDArray[np.float32], own_logsumexp: Float64) -> float:
    """Mean KL(side ‖ runtime) over positions, in nats."""
    return float(top_kl(side.top_logits, side.logsumexp, at_ids, own_logsumexp).mean())


def past_original(golden: Golden, stop: int) -> int:
    """How many positions before ``stop`` lie beyond the original context."""
    return max(0, stop - golden.original_positions)


def _check(logits: Logits, shape: tuple[int, int]) -> None:
    if logits.shape != shape:
        raise GateFailed(f"the runtime gave logits of shape {logits.shape}, the golden vectors need {shape}")
    if not np.isfinite(logits).all():
        position = int(np.argwhere(~np.isfinite(logits))[0, 0])
        raise GateFailed(f"the runtime gave NaN or infinity, first at position {position}")
