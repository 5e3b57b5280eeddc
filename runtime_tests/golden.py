"""golden.safetensors: the expected outputs that an artifact carries, read and checked.

What lives here: the file's tensors and their validation; it is untrusted input like everything in an artifact. What
does not: its name and limits (``artifacts/formats/golden.py``), running anything (``parity.py``) and judging
(``quality.py``).

N sequences of L held-out tokens, a vocabulary of V. Two sides: ``reference`` is the PyTorch model with the same
dequantized weights, ``original`` the unquantized checkpoint. Per side and position: log p of the next token,
logsumexp of the logits and the 64 largest logits (all of a vocabulary below 64); for the reference also all logits at F
positions: four, fewer of a vocabulary whose logits would not fit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artifacts import EdgewrightError
from artifacts.formats.golden import GOLDEN, MAX_BYTES, TOP, VERSION, room

__all__ = ["GOLDEN", "Golden", "Side", "Tolerances", "read_golden"]

_ROUNDING = 1e-5
_LONGEST_TEXT = 200

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


class Tolerances(BaseModel):
    """How far a runtime may be from the reference; written by the target that built the artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    exact_max_abs_logit: float = Field(gt=0)
    shipped_mean_kl: float = Field(gt=0)
    shipped_min_top1: float = Field(gt=0, le=1)


@dataclass(frozen=True)
class Side:
    """One side's expectations: f32 [N, L-1], f32 [N, L], int32 [N, L, 64] and f32 [N, L, 64] in descending order."""

    target_logprob: Floats
    logsumexp: Floats
    top_ids: Ids
    top_logits: Floats


@dataclass(frozen=True)
class Golden:
    """The whole file. ``full_index`` int32 [F, 2] holds (sequence, position) of the rows of ``full_logits`` f32 [F, V].

    Positions from ``original_positions`` on lie beyond the context that the model was first trained with. ``text`` says
    in a few printable words what the tokens are.
    """

    tokens: Ids
    reference: Side
    original: Side
    full_index: Ids
    full_logits: Floats
    original_positions: int
    tolerances: Tolerances
    text: str

    @property
    def sequences(self) -> int:
        """N."""
        return int(self.tokens.shape[0])

    @property
    def length(self) -> int:
        """L."""
        return int(self.tokens.shape[1])

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.full_logits.shape[1])

    def beginning(self, tokens: int) -> Golden:
        """The first sequence's first tokens alone, where a whole text would take too long."""

        def cut(side: Side) -> Side:
            return Side(
                side.target_logprob[:1, : tokens - 1],
                side.logsumexp[:1, :tokens],
                side.top_ids[:1, :tokens],
                side.top_logits[:1, :tokens],
            )

        inside = (self.full_index[:, 0] == 0) & (self.full_index[:, 1] < tokens)
        return replace(
            self,
            tokens=self.tokens[:1, :tokens],
            reference=cut(self.reference),
            original=cut(self.original),
            full_index=self.full_index[inside],
            full_logits=self.full_logits[inside],
        )


def read_golden(path: Path) -> Golden:
    """Read and check a golden file; EdgewrightError names the tensor or the metadata key that is wrong."""
    from safetensors import SafetensorError, safe_open

    try:
        if (size := os.stat(path).st_size) > MAX_BYTES:
            raise EdgewrightError(
                f"{path}: {size} bytes; golden vectors take {MAX_BYTES} at most. Build the artifact again"
            )
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EdgewrightError(f"{path}: cannot be read as safetensors ({error}); build the artifact again") from error
    try:
        return _checked(tensors, metadata)
    except (ValueError, ValidationError) as error:
        raise EdgewrightError(f"{path}: {error}; build the artifact again") from error


def _checked(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Golden:
    if (version := metadata.get("version")) != VERSION:
        raise ValueError(f"version {version!r}, this Edgewright reads {VERSION!r}")
    try:
        positions = int(metadata["original_positions"])
        tolerances = Tolerances.model_validate(json.loads(metadata["tolerances"]))
        text = metadata["text"]
    except KeyError as error:
        raise ValueError(f"metadata lacks {error}") from error
    if positions <= 0:
        raise ValueError(f"original_positions is {positions}")
    if not text.isprintable() or not 0 < len(text) <= _LONGEST_TEXT:
        raise ValueError(f"text is {text[:_LONGEST_TEXT]!r}; one to {_LONGEST_TEXT} printable characters are expected")
    take = _taker(tensors)
    tokens = take("tokens", np.int32, None, None)
    n, length = tokens.shape
    if n < 1 or length < 2:
        raise ValueError(f"tokens: shape {tokens.shape} leaves nothing to predict")
    full_logits = take("reference.full_logits", np.float32, None, None)
    full, vocabulary = full_logits.shape
    if not vocabulary or full != room(vocabulary).full:
        raise ValueError(f"reference.full_logits: {full} positions are not what a vocabulary of {vocabulary} has")
    top = min(TOP, vocabulary)

    def side(name: str) -> Side:
        result = Side(
            target_logprob=take(f"{name}.target_logprob", np.float32, n, length - 1),
            logsumexp=take(f"{name}.logsumexp", np.float32, n, length),
            top_ids=take(f"{name}.top_ids", np.int32, n, length, top),
            top_logits=take(f"{name}.top_logits", np.float32, n, length, top),
        )
        if np.any(np.diff(result.top_logits, axis=-1) > 0):
            raise ValueError(f"{name}.top_logits: not in descending order")
        if np.any(result.target_logprob > _ROUNDING):
            raise ValueError(f"{name}.target_logprob: a probability above 1")
        return result

    golden = Golden(
        tokens=tokens,
        reference=side("reference"),
        original=side("original"),
        full_index=take("full.index", np.int32, full, 2),
        full_logits=full_logits,
        original_positions=positions,
        tolerances=tolerances,
        text=text,
    )
    if tensors:
        raise ValueError(f"unknown tensors {', '.join(sorted(tensors))}")
    for name, ids in (
        ("tokens", tokens),
        *((f"{s}.top_ids", getattr(golden, s).top_ids) for s in ("reference", "original")),
    ):
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(f"{name}: ids outside of 0…{vocabulary - 1}")
    if np.any(golden.full_index < 0) or np.any(golden.full_index >= (n, length)):
        raise ValueError(f"full.index: outside of {n} × {length}")
    return golden


def _taker(tensors: dict[str, NDArray[Any]]) -> Callable[..., NDArray[Any]]:
    """Removes and returns a tensor after checking dtype, shape (None: any size) and that every value is finite."""

    def take(name: str, dtype: type[np.generic], *shape: int | None) -> NDArray[Any]:
        if name not in tensors:
            raise ValueError(f"{name}: missing")
        tensor = tensors.pop(name)
        fits = tensor.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if tensor.dtype != dtype or not fits:
            wanted = [size if size is not None else "any" for size in shape]
            raise ValueError(f"{name}: {tensor.dtype} {list(tensor.shape)}, expected {np.dtype(dtype)} {wanted}")
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise ValueError(f"{name}: holds NaN or infinity")
        return tensor

    return take
