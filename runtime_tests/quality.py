"""Quality: how far is the artifact, as it ships, from the unquantized checkpoint on held-out text?

What lives here: figures and checks against the original. What must not: parity with the reference that holds the same
weights (``parity.py``): that asks whether the runtime is right, this asks whether quantization was worth it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from artifacts import Check, Figure, checked, ran_here
from artifacts.formats.golden import RANDOM
from runtime_tests.golden import Golden
from runtime_tests.metrics import agreement, mean_interval, perplexity
from runtime_tests.parity import Observed, mean_kl

QUALITY = "quality"


@dataclass(frozen=True)
class QualityLimits:
    """A recipe's limits; None: reported only. Increase, agreement and closure are fractions (0.03 is 3 %), KL is in
    nats, the drop in dB, the change of blendshapes the root of the mean square."""

    max_perplexity_increase: float | None = None
    min_top1_agreement: float | None = None
    max_mean_kl: float | None = None
    max_psnr_drop: float | None = None
    max_blendshape_change: float | None = None
    min_lip_closure: float | None = None


def quality(
    golden: Golden, shipped: Observed, limits: QualityLimits, stand_in: str | None
) -> tuple[list[Figure], list[Check]]:
    """Perplexities of artifact, reference and original over the same tokens, and the distances to the original.

    The artifact's own perplexity is the runtime's; the two others are PyTorch's, as the golden vectors declare them.
    The change carries an interval: it comes from a few thousand tokens, each of which both sides predicted.
    """
    own, original = perplexity(shipped.target_logprob), perplexity(golden.original.target_logprob)
    lost = golden.original.target_logprob.astype(np.float64) - shipped.target_logprob
    sampled = mean_interval(lost)
    change = ran_here(
        "perplexity_increase",
        own / original - 1.0,
        "change",
        stand_in,
        interval=None if sampled is None else (float(np.expm1(sampled[0])), float(np.expm1(sampled[1]))),
    )
    same = ran_here("top1_agreement", agreement(shipped.top1, golden.original.top_ids[..., 0]), "fraction", stand_in)
    kl = ran_here("mean_kl", mean_kl(golden.original, shipped.at_original, shipped.logsumexp), "nat", stand_in)
    figures = [
        ran_here("perplexity", own, "perplexity", stand_in),
        _declared("perplexity_reference", perplexity(golden.reference.target_logprob)),
        _declared("perplexity_original", original),
        change,
        same,
        kl,
    ]
    checks = [
        checked(change, QUALITY, "perplexity, change", limits.max_perplexity_increase, "at most"),
        checked(same, QUALITY, "same token as unquantized", limits.min_top1_agreement, "at least"),
    ]
    if limits.max_mean_kl is not None:
        checks.append(checked(kl, QUALITY, "mean KL to unquantized, lower bound", limits.max_mean_kl, "at most"))
    return figures, [_unassessed(check) for check in checks] if golden.text == RANDOM else checks


def _unassessed(check: Check) -> Check:
    if check.limit is None:
        return check
    reason = (
        "The package has no tokenizer: these are random tokens, over which quality says nothing. Add the tokenizer, or "
        "leave validate.quality out."
    )
    return check.model_copy(update={"verdict": "not assessed", "reason": reason})


def _declared(name: str, value: float) -> Figure:
    return Figure(name=name, value=value, unit="perplexity", obtained="declared")
