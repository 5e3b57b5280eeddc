"""Golden vectors: what an artifact is compared with, wherever it runs, computed once from PyTorch.

Held-out tokens with, at every position, the target's log-likelihood, logsumexp and the 64 largest logits, from the
dequantized weights ("reference") and from the unquantized checkpoint ("original"); full logits of the reference at
four positions. The layout and its limits are `artifacts/formats/golden.py`'s, `runtime_tests` checks them.

Computed in float32, sums over the vocabulary in float64. Against float64 throughout, the largest error of a listed
logit is 3.4e-5 on the shipped tiny checkpoint (logits up to 20) and 3.2e-5 at 3.43B parameters (up to 6.3), which no
target's tolerance has to make room for. The dialect's reference reads weights row block by row block and so does the
head, so memory is set by the activations of some thousand positions, not by the model or the vocabulary. The two sides
hold different bytes of every weight, so each has a pass of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Progress
from artifacts.formats.golden import FEWEST_POSITIONS, MAX_BYTES, RANDOM, TOP, VERSION, room
from artifacts.formats.tensor_file import write_tensors
from compiler.models.base import Component, Model
from compiler.slots import Schemes, Slot, Weights
from compiler.tensors import row_blocks
from compiler.text import Held, documents, encoder
from compiler.tokenizer import FILE as TOKENIZER
from recipes.corpus import STDLIB_VERSION

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BUILT_IN = f"held-out source files of the Python {STDLIB_VERSION} standard library"
TEXT_KEY = "validate.quality.text"
_LENGTH = 1024
_MOST_PRODUCTS = 4e12  # multiplications of one side: half a minute on two cores of 2024
_BLOCK_BYTES = 1 << 23
_BLOCK_LOGITS = 1 << 22
_MOST_WORKERS = 8

Arrays = dict[str, NDArray[Any]]


def held_out(file: Path | None, checkpoint: Path, model: Model, max_tokens: int) -> Held:
    """The tokens of golden vectors, int32 [sequences, length]: of a recipe's own text, or of the built-in one.

    As many as their file holds, fewer for models of billions of parameters, never under 1,024. A document gives a
    sequence with its beginning, and what is left of all documents fills up. Without a tokenizer they are random ids:
    parity is still proven on them, while perplexity says nothing. Raises EdgewrightError when the text is too short or
    cannot be read.
    """
    vocabulary: Any = model.constants["vocab_size"]
    count, length = _shape(model, vocabulary, max_tokens)
    if not (checkpoint / TOKENIZER).is_file():
        if file is not None:
            raise EdgewrightError(f"{TEXT_KEY}: {checkpoint} has no {TOKENIZER}, which {file} needs")
        return Held(np.random.default_rng(0).integers(0, vocabulary, (count, length), np.int32), RANDOM)
    encode = encoder(checkpoint, model)
    ids = _sequences((encode(found) for found in documents(TEXT_KEY, file, "held-out", checkpoint)), count, length)
    if ids.size < min(count * length, FEWEST_POSITIONS):
        source = f"{file} has" if file is not None else f"{checkpoint / TOKENIZER} makes of the built-in text"
        raise EdgewrightError(
            f"{TEXT_KEY}: {source} {ids.size} tokens in sequences of {length}; {FEWEST_POSITIONS} are needed"
            + ("; give more text" if file is not None else ": is it this model's tokenizer?")
        )
    return Held(ids, BUILT_IN if file is None else own_text(file))


def own_text(file: Path) -> str:
    """What reports call a recipe's own text: its name, and the beginning of its digest."""
    name = "".join(c if c.isprintable() else "?" for c in file.name)[:80]
    return f"{name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}…)"


def _shape(model: Model, vocabulary: int, max_tokens: int) -> tuple[int, int]:
    parameters = sum(s.rows * s.columns for s in model.slots)
    positions = max(FEWEST_POSITIONS, min(room(vocabulary).positions, int(_MOST_PRODUCTS / parameters)))
    length = min(_LENGTH, max_tokens)
    while 2 * length > positions:  # two documents at the least
        length //= 2
    return max(positions // length, -(-FEWEST_POSITIONS // length)), length


def _sequences(documents: Iterable[list[int]], count: int, length: int) -> NDArray[np.int32]:
    beginnings: list[list[int]] = []
    rest: list[int] = []
    for ids in documents:
        taken = length if len(ids) >= length else 0
        if taken:
            beginnings.append(ids[:length])
        rest += ids[taken:]
        if len(beginnings) == count:
            break
    while len(beginnings) < count and len(rest) >= length:
        beginnings.append(rest[:length])
        rest = rest[length:]
    return np.asarray(beginnings, np.int32).reshape(-1, length)


def write(
    path: Path,
    model: Model,
    schemes: Schemes,
    held_out: Held,
    sides: Mapping[str, Weights],
    progress: Progress,
) -> None:
    """Compute both sides and write them to `path`, without tolerances yet.

    sides: "reference" (dequantized) and "original" weights.
    """
    count, length = held_out.tokens.shape
    vocabulary: Any = model.constants["vocab_size"]
    spread = np.linspace(0, count * length - 1, room(vocabulary).full + 1).astype(np.int64)[1:]
    index = np.stack([spread // length, spread % length], 1).astype(np.int32)
    arrays: Arrays = {"tokens": held_out.tokens, "full.index": index}
    for at, (side, table) in enumerate(sides.items()):
        full = [int(i) for i in spread] if side == "reference" else None

        def report(done: int, total: int, at: int = at) -> None:
            progress("golden vectors", at * total + done, len(sides) * total)

        found = vectors(model, schemes, held_out.tokens, table, full, report)
        arrays |= {f"{side}.{name}": values for name, values in found.items()}
    metadata = {
        "version": VERSION,
        "text": held_out.text,
        "original_positions": str(model.constants["original_positions"]),
    }
    write_tensors(path, arrays, metadata, MAX_BYTES)


def copy_with_tolerances(source: Path, path: Path, tolerances: Mapping[str, float]) -> bool:
    """Copy golden vectors, adding a target's tolerances, by name. False where there are none, or damaged ones."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            metadata = file.metadata()
    except (FileNotFoundError, SafetensorError):
        return False
    write_tensors(path, arrays, {**metadata, "tolerances": json.dumps(dict(tolerances))}, MAX_BYTES)
    return True


class _Counted:
    """A table that counts the weights it has given out, and reports when a norm is read: in the caller's own thread."""

    def __init__(self, table: Weights, total: int, report: Callable[[int, int], None]) -> None:
        self._table, self._total, self._report = table, total, report
        self._lock, self._done = Lock(), 0

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        rows = self._table.rows(name, start, stop)
        if rows.ndim == 1:
            self.report()
        with self._lock:
            self._done += rows.size
        return rows

    def report(self) -> None:
        self._report(min(self._done, self._total), self._total)


def vectors(
    model: Model,
    schemes: Schemes,
    tokens: NDArray[np.int32],
    table: Weights,
    full: list[int] | None,
    report: Callable[[int, int], None],
    dtype: torch.dtype | None = None,
) -> Arrays:
    """One side's tensors, by their names without the side.

    full: flat indices of the positions at which all logits are kept; None gives no such tensor. dtype: of activations
    and products, float32 or float64; sums over the vocabulary are in float64. Raises EdgewrightError when logits are
    not finite.
    """
    import torch

    from compiler import dialect

    count, length = tokens.shape
    decoder = model.at(length).component("decoder")
    head = next(slot for slot in decoder.slots if slot.name == decoder.head)
    total = sum(s.rows * s.columns for s in decoder.slots if s.kind == "linear" or s is head)
    counted = _Counted(table, total, report)
    ids = torch.from_numpy(tokens.astype(np.int64))
    positions = torch.arange(length).expand(count, length)
    workers = min(torch.get_num_threads(), _MOST_WORKERS)
    with torch.no_grad(), dialect.workers(workers), dialect.weights(counted, dtype or torch.float32):
        states = last_states(decoder, schemes, ids, positions)
        following = torch.cat([ids[:, 1:], ids[:, :1]], 1).flatten()
        found = _head(head, states.flatten(0, 1), following, counted, full)
    if not all(bool(values.isfinite().all()) for values in found.values()):
        raise EdgewrightError(
            "golden vectors: the model computes logits that are NaN or too large for float32; its weights are damaged, "
            "or config.json does not belong to them"
        )
    shaped = {k: v if k == "full_logits" else v.unflatten(0, (count, length)) for k, v in found.items()}
    shaped["target_logprob"] = shaped["target_logprob"][:, :-1]
    return {k: v.numpy() for k, v in shaped.items()}


def last_states(decoder: Component, schemes: Schemes, ids: Tensor, positions: Tensor) -> Tensor:
    """What the head gets, [batch, length, hidden], over whole sequences [batch, length] from empty caches."""
    import torch

    entry = decoder.entry("hidden")
    # every cache is the same view of one zero: an attention that writes takes a copy of it
    empty = (torch.zeros(()).expand(len(ids), *state.sized({})[1:]) for state in decoder.states)
    found: Tensor = decoder.module(entry, schemes)(ids, positions, *empty)[0]
    return found


def _head(head: Slot, states: Tensor, following: Tensor, table: _Counted, full: list[int] | None) -> dict[str, Tensor]:
    """From states [positions, hidden], one block of the vocabulary after the other: the head is read once, and the
    logits of all its rows are never together."""
    import torch

    from compiler import dialect

    positions, top = len(states), min(TOP, head.rows)
    block_bytes = min(_BLOCK_BYTES, 4 * head.columns * _BLOCK_LOGITS // positions)

    def block(at: tuple[int, int]) -> tuple[Tensor, ...]:
        start, stop = at
        logits = dialect.product(states, torch.from_numpy(table.rows(head.name, start, stop)))
        best = logits.topk(min(top, stop - start))
        total = (logits - best.values[:, :1]).exp_().sum(-1, dtype=torch.float64).log_() + best.values[:, 0]
        own = (following - start).clamp(0, stop - start - 1)
        return best.values, best.indices + start, total, logits.gather(1, own[:, None])[:, 0], logits[full or []]

    values, ids = torch.empty((positions, 0), dtype=states.dtype), torch.empty((positions, 0), dtype=torch.int64)
    log_total = torch.full((positions,), -torch.inf, dtype=torch.float64)
    target = torch.empty(positions, dtype=torch.float64)
    rows = torch.empty((len(full or []), head.rows))
    blocks = list(row_blocks(head.rows, head.columns, block_bytes))
    for (start, stop), (some, where, total, own, whole) in zip(blocks, dialect.each(block, blocks), strict=True):
        values, ids = torch.cat([values, some], 1), torch.cat([ids, where], 1)
        values, kept = values.topk(min(top, values.shape[1]))
        ids = ids.gather(1, kept)
        log_total = torch.logaddexp(log_total, total)
        target = torch.where((start <= following) & (following < stop), own.double(), target)
        rows[:, start:stop] = whole
        table.report()
    found = {
        "target_logprob": (target - log_total).float(),
        "logsumexp": log_total.float(),
        "top_ids": ids.int(),
        "top_logits": values.float(),
    }
    return found | ({} if full is None else {"full_logits": rows})
