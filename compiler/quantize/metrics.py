"""Divergences and likelihoods used while quantizing, over logits or over golden vectors; natural logarithms.

The runtime tests have their own (`runtime_tests/metrics.py`): they judge artifacts and import nothing from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compiler.quantize.evidence import TextEvidence

if TYPE_CHECKING:
    from torch import Tensor

Float64 = NDArray[np.float64]
_TINY = 1e-7


def divergence(expected: Tensor, found: Tensor) -> Tensor:
    """KL(p‖q) in nats, [...], of the distributions that logits [..., vocab] give."""
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def held_out(golden: Path) -> TextEvidence:
    """What golden vectors say of the quantized weights ("reference") against the unquantized ("original") ones.

    The divergence is over the ids that both sides list, and one bin for all others: a lower bound.
    """
    from safetensors import safe_open

    with safe_open(golden, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        text = file.metadata()["text"]
    sides = ("original", "reference")
    perplexities = [float(np.exp(-arrays[f"{s}.target_logprob"].astype(np.float64).mean())) for s in sides]
    top = [arrays[f"{s}.top_ids"][..., 0] for s in sides]
    return TextEvidence(
        text=text,
        tokens=int(arrays["tokens"].size),
        perplexity=perplexities[1],
        perplexity_original=perplexities[0],
        mean_kl=float(_shared_divergence(arrays).mean()),
        top1_agreement=float((top[0] == top[1]).mean()),
    )


def _shared_divergence(arrays: dict[str, NDArray[Any]]) -> Float64:
    """KL per position, [positions], over the ids in both lists and the bin of the others."""
    ids = [arrays[f"{s}.top_ids"].reshape(-1, arrays[f"{s}.top_ids"].shape[-1]) for s in ("original", "reference")]
    logprob = [
        arrays[f"{s}.top_logits"].reshape(ids[0].shape).astype(np.float64)
        - arrays[f"{s}.logsumexp"].reshape(-1, 1).astype(np.float64)
        for s in ("original", "reference")
    ]
    found = np.zeros(len(ids[0]))
    for at, (own, other) in enumerate(zip(*ids, strict=True)):
        _, first, second = np.intersect1d(own, other, assume_unique=True, return_indices=True)
        p, q = logprob[0][at, first], logprob[1][at, second]
        rest = [max(1 - float(np.exp(v).sum()), 0.0) for v in (p, q)]
        found[at] = float((np.exp(p) * (p - q)).sum())
        if rest[0] > _TINY:
            found[at] += rest[0] * np.log(rest[0] / max(rest[1], _TINY))
    return found
