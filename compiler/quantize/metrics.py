"""Divergences and likelihoods used while quantizing, over logits or over golden vectors; natural logarithms.

The runtime tests have their own (`runtime_tests/metrics.py`): they judge artifacts and import nothing from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from artifacts import EdgewrightError
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

    The divergence is over the ids that both sides list, and one bin for all others: a lower bound. Raises
    EdgewrightError, which names the tensor, for a file that holds no golden vectors.
    """
    from safetensors import SafetensorError, safe_open

    sides = ("original", "reference")
    try:
        with safe_open(golden, "numpy") as file:
            text = (file.metadata() or {}).get("text", "")
            names = [n for n in file.keys() if file.get_slice(n).get_dtype() in ("F32", "I32")]  # noqa: SIM118
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise EdgewrightError(f"{golden}: cannot be read as safetensors ({error}); build the artifact again") from error
    _check(golden, arrays, sides)
    with np.errstate(all="ignore"):  # numbers from nowhere may overflow; TextEvidence takes none that did
        perplexities = [float(np.exp(-arrays[f"{s}.target_logprob"].astype(np.float64).mean())) for s in sides]
        mean_kl = float(_shared_divergence(arrays).mean())
    top = [arrays[f"{s}.top_ids"][..., 0] for s in sides]
    try:
        return TextEvidence(
            text=text,
            tokens=int(arrays["tokens"].size),
            perplexity=perplexities[1],
            perplexity_original=perplexities[0],
            mean_kl=mean_kl,
            top1_agreement=float((top[0] == top[1]).mean()),
        )
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise EdgewrightError(f"{golden}: {field} comes out as no number; build the artifact again") from error


def _check(golden: Path, arrays: dict[str, NDArray[Any]], sides: Sequence[str]) -> None:
    """EdgewrightError unless every tensor that is read is there, in its shape (`compiler/golden.py`), and finite."""

    def problem(name: str, shape: tuple[int | None, ...], kind: str) -> str | None:
        if name not in arrays:
            return "is missing, or of another type"
        found = arrays[name]
        if found.ndim != len(shape) or any(w not in (None, h) for w, h in zip(shape, found.shape, strict=True)):
            return f"has shape {list(found.shape)}"
        if found.dtype.kind != kind or not np.isfinite(found).all():
            return "holds something else than finite numbers of its kind"
        return None

    shapes: dict[str, tuple[tuple[int | None, ...], str]] = {"tokens": ((None, None), "i")}
    count, length = arrays["tokens"].shape if problem("tokens", (None, None), "i") is None else (0, 0)
    for side in sides:
        shapes[f"{side}.target_logprob"] = ((count, length - 1), "f")
        shapes[f"{side}.logsumexp"] = ((count, length), "f")
        shapes[f"{side}.top_ids"] = ((count, length, None), "i")
        shapes[f"{side}.top_logits"] = ((count, length, None), "f")
    for name, (shape, kind) in shapes.items():
        if what := problem(name, shape, kind):
            raise EdgewrightError(f"{golden}: tensor {name!r} {what}; build the artifact again")
    for side in sides:
        ids, logits = arrays[f"{side}.top_ids"], arrays[f"{side}.top_logits"]
        if ids.shape != logits.shape or ids.size == 0 or length < 2:
            raise EdgewrightError(f"{golden}: tensor '{side}.top_ids' has shape {list(ids.shape)}; build it again")


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
