"""Golden vectors: what an artifact is compared with, wherever it runs, computed once from PyTorch.

Held-out tokens with, at every position, the target's log-likelihood, logsumexp and the 64 largest logits, from the
dequantized weights ("reference") and from the unquantized checkpoint ("original"); full logits of the reference at
four positions. Computed in float64, so that what a comparison shows is the artifact's own rounding. The dialect's
reference reads weights row block by row block, and the head runs over a few positions at a time, so memory is set by
the hidden states, not by the model. The layout is checked by `runtime_tests`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import Progress
from compiler.models import decoder
from compiler.slots import Schemes, Weights
from compiler.tokenizer import Encoder
from recipes.corpus import stdlib_texts

if TYPE_CHECKING:
    import torch

MAX_BYTES = 5_000_000
TOP = 64
_LENGTH = 1024
_FULL = 4
_HEAD_POSITIONS = 128
_HEADER_BYTES = 8192

Arrays = dict[str, NDArray[Any]]


def held_out_tokens(
    tokenizer: Path | None, spec: decoder.DecoderSpec, max_tokens: int
) -> tuple[NDArray[np.int32], str]:
    """Token ids [sequences, length] that fill the size limit, and what they are.

    Each sequence is the beginning of another held-out file. Without a tokenizer they are random ids: parity is still
    proven on them, while perplexity says nothing.
    """
    top = min(TOP, spec.vocab)
    position_bytes = 2 * (8 * top + 8) + 4
    room = MAX_BYTES - _HEADER_BYTES - _FULL * 4 * spec.vocab
    if room < 128 * position_bytes:
        room = 128 * position_bytes
    length = min(_LENGTH, max_tokens, room // position_bytes)
    count = max(1, room // (position_bytes * length))
    if tokenizer is None:
        ids = np.random.default_rng(0).integers(0, spec.vocab, (count, length), np.int32)
        return ids, "random token ids (the checkpoint has no tokenizer)"
    encoder = Encoder(tokenizer)
    sequences: list[list[int]] = []
    spare: list[int] = []
    for text in stdlib_texts("held-out"):
        found = encoder.encode(text).ids
        if spec.bos is not None:
            found = [spec.bos, *found]
        if len(found) >= length:
            sequences.append(found[:length])
        else:
            spare += found
        if len(sequences) == count:
            break
    while len(sequences) < count and len(spare) >= length:
        sequences.append(spare[:length])
        spare = spare[length:]
    return np.asarray(sequences, np.int32), "held-out files of the Python standard library"


def write(
    path: Path,
    spec: decoder.DecoderSpec,
    schemes: Schemes,
    tokens: NDArray[np.int32],
    text: str,
    sides: Mapping[str, Weights],
    progress: Progress,
) -> None:
    """Compute both sides and write them to `path`, without tolerances yet.

    sides: "reference" (dequantized) and "original" weights.
    """
    from safetensors.numpy import save_file

    count, length = tokens.shape
    spread = np.linspace(0, count * length - 1, _FULL + 1).astype(np.int64)[1:]
    arrays: Arrays = {"tokens": tokens, "full.index": np.stack([spread // length, spread % length], 1).astype(np.int32)}
    for at, (side, table) in enumerate(sides.items()):
        full = [int(i) for i in spread] if side == "reference" else []

        def report(done: int, total: int, at: int = at) -> None:
            progress("golden vectors", at * total + done, len(sides) * total)

        arrays |= {f"{side}.{k}": v for k, v in _vectors(spec, schemes, tokens, table, full, report).items()}
    metadata = {
        "version": "1",
        "text": text,
        "original_positions": str(spec.original_positions),
    }
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, metadata)


def copy_with_tolerances(source: Path, path: Path, tolerances: Mapping[str, float]) -> None:
    """Copy golden vectors, adding a target's tolerances, by name."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(source, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        metadata = file.metadata()
    save_file(arrays, path, {**metadata, "tolerances": json.dumps(dict(tolerances))})


class _Counted:
    """A table that reports how many rows of all it has given out."""

    def __init__(self, table: Weights, total: int, report: Any) -> None:
        self._table, self._total, self._report, self._done = table, total, report, 0

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        rows = self._table.rows(name, start, stop)
        if rows.ndim == 2 and rows.shape[0] > 1:
            self._done += rows.size
            self._report(min(self._done, self._total), self._total)
        return rows


def _vectors(
    spec: decoder.DecoderSpec,
    schemes: Schemes,
    tokens: NDArray[np.int32],
    table: Weights,
    full: list[int],
    report: Any,
) -> Arrays:
    import torch

    from compiler import dialect

    count, length = tokens.shape
    top = min(TOP, spec.vocab)
    total = sum(s.rows * s.columns for s in decoder.slots(spec) if s.kind == "linear")
    ids = torch.from_numpy(tokens.astype(np.int64))
    positions = torch.arange(length).expand(count, length)
    target = torch.cat([ids[:, 1:], ids[:, :1]], 1).flatten()
    out: dict[str, torch.Tensor] = {
        "target_logprob": torch.empty(count * length),
        "logsumexp": torch.empty(count * length),
        "top_ids": torch.empty((count * length, top), dtype=torch.int32),
        "top_logits": torch.empty((count * length, top)),
        "full_logits": torch.empty((len(full), spec.vocab)),
    }
    with torch.no_grad(), dialect.weights(_Counted(table, total, report), torch.float64):
        model = decoder.build(spec, schemes, "states")
        states, _ = model(ids, positions, decoder.empty_caches(spec, length, count))
        states = states.flatten(0, 1)
    with torch.no_grad(), dialect.weights(table, torch.float64):
        step = max(_HEAD_POSITIONS, (1 << 21) // spec.vocab)
        for start in range(0, count * length, step):
            rows = slice(start, min(start + step, count * length))
            logits = dialect.edge.linear(
                states[rows], [decoder.head_slot(spec)], [spec.vocab], spec.hidden, 16, 0, True
            )
            total_log = torch.logsumexp(logits, -1)
            out["logsumexp"][rows] = total_log
            out["target_logprob"][rows] = logits.gather(1, target[rows, None])[:, 0] - total_log
            values, where = logits.topk(top)
            out["top_logits"][rows], out["top_ids"][rows] = values, where.int()
            for i, position in enumerate(full):
                if rows.start <= position < rows.stop:
                    out["full_logits"][i] = logits[position - rows.start]
    if not full:
        del out["full_logits"]
    shaped = {k: v if k == "full_logits" else v.unflatten(0, (count, length)) for k, v in out.items()}
    shaped["target_logprob"] = shaped["target_logprob"][:, :-1]
    return {k: v.numpy() for k, v in shaped.items()}
