"""Quality: how far is the artifact, as it ships, from the unquantized checkpoint on held-out text?

What lives here: figures and gates against the original. What must not: parity with the reference that holds the same
weights (``parity.py``): that asks whether the runtime is right, this asks whether quantization was worth it.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifacts import Figure
from runtime_tests.golden import Golden
from runtime_tests.metrics import agreement, perplexity
from runtime_tests.parity import AT_LEAST, AT_MOST, Gate, Observed, figure, gate, mean_kl


@dataclass(frozen=True)
class QualityLimits:
    """A recipe's limits; None: reported only. Increase and agreement are fractions (0.03 is 3 %), KL is in nats."""

    max_perplexity_increase: float | None = None
    min_top1_agreement: float | None = None
    max_mean_kl: float | None = None


def quality_figures(golden: Golden, shipped: Observed) -> list[Figure]:
    """Perplexities of artifact, reference and original over the same tokens, and the distances to the original."""
    own, original = perplexity(shipped.target_logprob), perplexity(golden.original.target_logprob)
    return [
        figure("perplexity", own, "perplexity"),
        figure("perplexity_reference", perplexity(golden.reference.target_logprob), "perplexity"),
        figure("perplexity_original", original, "perplexity"),
        figure("perplexity_increase", own / original - 1.0, "fraction"),
        figure("top1_agreement", agreement(shipped.top1, golden.original.top_ids[..., 0]), "fraction"),
        figure("mean_kl", mean_kl(golden.original, shipped.at_original, shipped.logsumexp), "nat"),
    ]


def quality_gates(values: dict[str, float], limits: QualityLimits) -> list[Gate]:
    """The gates that the recipe asks for, over figures by name."""
    wanted = (
        ("perplexity_increase", limits.max_perplexity_increase, AT_MOST),
        ("top1_agreement", limits.min_top1_agreement, AT_LEAST),
        ("mean_kl", limits.max_mean_kl, AT_MOST),
    )
    return [gate(name, values.get(name), limit, how) for name, limit, how in wanted if limit is not None]
