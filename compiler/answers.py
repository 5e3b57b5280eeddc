"""Greedy answers of a decoder in PyTorch, many prompts at a time: what the unquantized checkpoint says.

An answer is guessed first and then checked in one pass over prompt and guess together; every pass proves at least one
more token, and a right guess proves them all. So weights are read a few times for hundreds of prompts, however long the
answers are. What must not live here: what a prompt is made of (`compiler/drivers/`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from compiler.golden import last_states
from compiler.models.base import Model
from compiler.slots import Schemes, Slot, Weights
from compiler.tensors import row_blocks

if TYPE_CHECKING:
    from torch import Tensor

_DECODER = "decoder"
_POSITIONS = 1 << 13  # of all prompts of a batch with their answers: sets the memory of activations
_MOST_WORKERS = 8
_BLOCK_BYTES = 1 << 23


@dataclass(frozen=True)
class Prompt:
    """Token ids [S]; pictures: gives what its image tokens stand for, in order, uint8 [tiles, height, width, 3] each;
    None without any."""

    ids: NDArray[np.int64]
    pictures: Callable[[], Sequence[NDArray[np.uint8]]] | None = None


Enter = Callable[["Tensor", Sequence[Prompt]], "Tensor"]
"""enter(ids int64 [batch, S], prompts): what a decoder is entered by. Each row begins with its prompt's ids, and what
comes after them is text. Called inside of `dialect.weights`, more than once for the same prompts."""


def greedy(
    model: Model,
    schemes: Schemes,
    table: Weights,
    enter: Callable[[], Enter],
    prompts: Sequence[Prompt],
    guesses: Sequence[Sequence[int]],
    most: int,
    report: Callable[[int, int], None],
) -> list[list[int]]:
    """For each prompt the most likely tokens, one after another, until the model ends its answer or there are `most`.

    An end token is not part of an answer. An answer also ends with the context. enter: makes what enters a batch.
    """
    import torch

    from compiler import dialect

    constants: Any = model.constants
    ends, context = frozenset(constants["eos"]), constants["max_tokens"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))  # batches of about one length
    answers: list[list[int]] = [[] for _ in prompts]
    at = 0
    workers = min(torch.get_num_threads(), _MOST_WORKERS)
    with torch.no_grad(), dialect.workers(workers), dialect.weights(table):
        while at < len(order):
            count = max(1, _POSITIONS // (len(prompts[order[at]].ids) + min(most, 16)))
            some = order[at : at + count]
            entering, open_ = enter(), list(some)
            left = {i: min(most, context - len(prompts[i].ids)) for i in some}
            guess = {i: list(guesses[i])[: left[i] - 1] for i in some}
            while open_:
                found = _check(model, schemes, table, entering, [prompts[i] for i in open_], [guess[i] for i in open_])
                for i, (proven, rest) in zip(list(open_), found, strict=True):
                    end = next((n for n, token in enumerate(proven) if token in ends), None)
                    if end is not None or len(proven) >= left[i]:
                        answers[i] = proven[: left[i] if end is None else end]
                        open_.remove(i)
                    else:
                        guess[i] = (proven + rest)[: left[i] - 1]
            at += count
            report(min(at, len(order)), len(order))
    return answers


def _check(
    model: Model,
    schemes: Schemes,
    table: Weights,
    enter: Enter,
    prompts: Sequence[Prompt],
    guesses: Sequence[list[int]],
) -> list[tuple[list[int], list[int]]]:
    """For each prompt the tokens that are proven, the first wrong one of the guess put right, and the guess's rest."""
    import torch

    width = max(len(p.ids) + len(g) for p, g in zip(prompts, guesses, strict=True))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    places = []
    for row, (prompt, guess) in enumerate(zip(prompts, guesses, strict=True)):
        ids[row, : len(prompt.ids)] = torch.from_numpy(prompt.ids)
        ids[row, len(prompt.ids) : len(prompt.ids) + len(guess)] = torch.tensor(guess, dtype=torch.int64)
        places += [row * width + len(prompt.ids) - 1 + n for n in range(len(guess) + 1)]
    decoder = model.at(max(width, 2)).component(_DECODER)
    head = next(slot for slot in decoder.slots if slot.name == decoder.head)
    positions = torch.arange(width).expand(len(prompts), width)
    states = last_states(decoder, schemes, enter(ids, prompts), positions).flatten(0, 1)
    best = _most_likely(head, states[places], table).tolist()
    found, at = [], 0
    for guess in guesses:
        said = best[at : at + len(guess) + 1]
        right = next((n for n, token in enumerate(guess) if said[n] != token), len(guess))
        found.append((said[: right + 1], guess[right + 1 :]))
        at += len(guess) + 1
    return found


def _most_likely(head: Slot, states: Tensor, table: Weights) -> Tensor:
    """The token with the largest logit for each of `states` [positions, hidden]; the head is read once, in blocks."""
    import torch

    from compiler import dialect

    value = torch.full((len(states),), -torch.inf)
    token = torch.zeros(len(states), dtype=torch.int64)
    for start, stop in row_blocks(head.rows, head.columns, _BLOCK_BYTES):
        some = dialect.product(states, torch.from_numpy(table.rows(head.name, start, stop))).max(-1)
        if not bool(some.values.isfinite().all()):
            raise EdgewrightError(
                "validate.task: the unquantized model computes logits that are NaN or too large for float32; its "
                "weights are damaged, or config.json does not belong to them"
            )
        token = torch.where(some.values > value, some.indices + start, token)
        value = torch.maximum(value, some.values)
    return token
