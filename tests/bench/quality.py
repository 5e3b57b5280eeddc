"""Mean divergence of many sets of weights from one checkpoint, on the same held-out tokens, in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compiler.checkpoint import Checkpoint
from compiler.models.base import read_model
from compiler.quantize.runner import OriginalWeights
from recipes.corpus import stdlib_texts
from tests.compiler.conftest import reference_logits

WINDOW = 256
_BATCH = 8


@dataclass(frozen=True)
class Quality:
    """mean_kl: nats, with its standard error over windows; perplexity of the next token; top-1 agreement."""

    mean_kl: float
    error: float
    perplexity: float
    top1: float


class Table:
    """Weights held in memory, by slot name; `changed` replaces some of them."""

    def __init__(self, source: Any, names: list[str]) -> None:
        self._rows = {name: np.array(source.rows(name)) for name in names}

    def changed(self, rows: Mapping[str, NDArray[np.float32]]) -> Table:
        copy = Table.__new__(Table)
        copy._rows = {**self._rows, **rows}
        return copy

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        rows = self._rows[name]
        return rows if rows.ndim == 1 else rows[start:stop]


class Bench:
    """A checkpoint, its held-out windows, and what its own logits say of other weights."""

    def __init__(self, source: Path, tokens: int) -> None:
        self.source = source
        self.checkpoint = Checkpoint(source)
        self.model = read_model(self.checkpoint.config, self.checkpoint.names(), WINDOW)
        self.slots = self.model.slots
        self.names = [s.name for s in self.slots]
        self.original = Table(OriginalWeights(self.checkpoint, self.slots), self.names)
        self.windows = held_out(source, -(-tokens // WINDOW))

    def logits(self, table: Any, windows: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(reference_logits(self.model, table, windows))

    def measure(self, tables: Mapping[str, Any]) -> dict[str, Quality]:
        """Every table's quality; an entry may also be a function from windows to logits (another runtime)."""
        sums = {name: ([], [], []) for name in tables}
        for start in range(0, len(self.windows), _BATCH):
            windows = self.windows[start : start + _BATCH]
            p = self.logits(self.original, windows).log_softmax(-1)
            weight, best = p.exp(), p.argmax(-1)
            target = torch.from_numpy(windows[:, 1:, None])
            for name, table in tables.items():
                q = (table(windows) if callable(table) else self.logits(table, windows)).log_softmax(-1)
                kl, nll, same = sums[name]
                nll += (-q[:, :-1].gather(-1, target)).mean((1, 2)).tolist()
                same += (best == q.argmax(-1)).float().mean(-1).tolist()
                kl += q.sub_(p).neg_().mul_(weight).sum(-1).mean(-1).tolist()
        return {
            name: Quality(
                float(np.mean(kl)),
                float(np.std(kl) / len(kl) ** 0.5),
                float(np.exp(np.mean(nll))),
                float(np.mean(same)),
            )
            for name, (kl, nll, same) in sums.items()
        }


def held_out(source: Path, count: int) -> NDArray[np.int64]:
    """`count` windows [count, WINDOW] of held-out files, drawn without replacement by a fixed seed."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    ids: list[int] = []
    for text in stdlib_texts("held-out"):
        ids += [1, *tokenizer.encode(text, add_special_tokens=False).ids, 2]
    windows = np.asarray(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)
    if len(windows) < count:
        raise SystemExit(f"the held-out files have {windows.size} tokens; {count * WINDOW} are asked for")
    return windows[np.sort(np.random.default_rng(0).permutation(len(windows))[:count])]
