"""Text decoders: token ids of calibration and held-out text, and what a decoder makes of them.

What lives here: which text becomes which samples. What must not: the decoder's graph (`compiler/models/`), and golden
vectors themselves (`compiler/golden.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Progress
from artifacts.formats.golden import GOLDEN
from artifacts.manifest import sha256_file
from compiler import golden
from compiler.answers import Prompt
from compiler.models.base import Component, Entry, Model
from compiler.questions import Given, Reader
from compiler.slots import Schemes, Slot, Weights
from compiler.tensors import row_blocks
from compiler.text import CALIBRATION, Document, Held, documents, encoder, text_file
from compiler.tokenizer import FILE as TOKENIZER
from compiler.tokenizer import Encoder, check_tokenizer
from recipes.schema import Calibration, Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compiler.quantize.calibrated.task import Samples, Weighting

DECODER = "decoder"
LENGTH = 512
_WEIGHED_BYTES = 1 << 25
_NO_TOKENIZER = (
    "the checkpoint has no tokenizer.json: the package cannot turn text into tokens, and its golden vectors are random "
    "tokens, over which perplexity says nothing"
)
FILE = GOLDEN


def covered(model: Model) -> set[tuple[str, str]]:
    """Golden vectors judge prefill, cached decoding and scores."""
    return {(DECODER, entry.name) for entry in model.component(DECODER).entries}


def warnings(model: Model, checkpoint: Path) -> list[str]:
    """See `Driver`."""
    return [] if (checkpoint / TOKENIZER).exists() else [_NO_TOKENIZER]


def check(recipe: Recipe, model: Model, checkpoint: Path) -> None:
    """See `Driver`: the tokenizer is one of this model."""
    vocabulary: Any = model.constants["vocab_size"]
    check_tokenizer(checkpoint, vocabulary)
    if recipe.validation.quality is not None and recipe.validation.quality.clips is not None:
        raise EdgewrightError("validate.quality.clips: is for a talking head, and this model writes; leave it out")


def write_companions(model: Model, checkpoint: Path, folder: Path) -> None:
    """None: the tokenizer's files are every package's."""


def looked_at(calibration: Calibration, text: Path | None, model: Model, checkpoint: Path) -> NDArray[np.int32]:
    """Token ids [sequences, length] of at most `calibration.tokens` in all, whole sequences only.

    text: the .txt or .jsonl file (None: the built-in text). Documents are shuffled by the seed. Raises EdgewrightError
    when the text is empty, not decodable or too short.
    """
    if calibration.images is not None:
        raise EdgewrightError(f"{CALIBRATION}.images: {calibration.images}: this model sees none; give a text")
    if not (checkpoint / TOKENIZER).is_file():
        raise EdgewrightError(
            f"{checkpoint}: no {TOKENIZER}, which calibrated methods (gptq, awq) need; rtn, mse and hqq do not"
        )
    rng = np.random.default_rng(calibration.seed)
    found = list(documents(CALIBRATION, text, "train", checkpoint))
    encode = encoder(checkpoint, model)
    ids: list[int] = []
    for at in rng.permutation(len(found)):
        ids += encode(found[at])
        if len(ids) >= calibration.tokens:
            break
    if len(ids) < calibration.tokens:
        raise EdgewrightError(
            f"{CALIBRATION}: {text or calibration.text} has {len(ids)} tokens, {calibration.tokens} are asked for; "
            f"give more text or set tokens: {len(ids)}"
        )
    most: Any = model.constants["max_positions"]
    length = min(LENGTH, most, calibration.tokens)
    count = calibration.tokens // length
    return np.asarray(ids[: count * length], np.int32).reshape(count, length)


def samples(model: Model, table: Weights, looked_at: NDArray[Any]) -> Iterator[Samples]:
    """The decoder over whole sequences, head included; positions of the head weigh by their uncertainty."""
    import torch

    yield decoder_samples(model, table, torch.from_numpy(looked_at.astype(np.int64)))


def decoder_samples(model: Model, table: Weights, entered: Tensor) -> Samples:
    """The decoder over whole sequences of what it is entered by, [sequences, length] ids or embeddings."""
    import torch

    from compiler.quantize.calibrated.task import Samples

    length = entered.shape[1]
    decoder = model.at(length).component(DECODER)
    positions = torch.arange(length)[None]
    head = next(slot for slot in decoder.slots if slot.name == decoder.head)
    return Samples(
        decoder,
        from_empty(decoder, decoder.entry("score")),
        [(sequence[None], positions) for sequence in entered],
        {head.name: uncertainty(table, head)},
    )


def from_empty(component: Component, entry: Entry, schemes: Schemes | None = None) -> torch.nn.Module:
    """An entry as a module of its inputs alone, from states of zeros, to its first output."""
    import torch

    body = component.module(entry, schemes or {})
    shapes = [state.sized({}) for state in component.states]

    class FromEmpty(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            found: Tensor = body(*inputs, *map(torch.zeros, shapes))[0]
            return found

    return FromEmpty()


def uncertainty(table: Weights, head: Slot) -> Weighting:
    """A head's positions by how much their divergence feels a change of logits: 1 - sum of p², [length].

    To second order the divergence is half the variance of the logits' error under the model's own distribution p.
    For errors that are independent between tokens it is proportional to that. The head, which is large, is read once:
    sums over the vocabulary grow block by block, relative to the largest logit so far.
    """
    import torch

    from compiler.matmul import linear

    def weigh(states: Callable[[int], Tensor], count: int) -> list[Tensor]:
        top = [torch.tensor(-torch.inf)] * count
        sums, squares = [torch.zeros(())] * count, [torch.zeros(())] * count
        for start, stop in row_blocks(head.rows, head.columns, _WEIGHED_BYTES):
            rows = torch.from_numpy(table.rows(head.name, start, stop))
            for n in range(count):
                logits = linear(states(n), rows)
                peak = torch.maximum(top[n], logits.amax(-1))
                shrink, powers = (top[n] - peak).exp(), (logits - peak[:, None]).exp()
                sums[n] = sums[n] * shrink + powers.sum(-1)
                squares[n] = squares[n] * shrink.square() + powers.square().sum(-1)
                top[n] = peak
        # rounding can go below zero
        return [(1 - square / total.square()).clamp(min=0) for square, total in zip(squares, sums, strict=True)]

    return weigh


def held_out(recipe: Recipe, text: Path | None, model: Model, checkpoint: Path) -> Held:
    """See `Driver`: the held-out text of golden vectors. text: the file that calibration looks at, None when nothing
    or the built-in text is looked at."""
    file = None
    if recipe.validation.quality is not None:
        name = recipe.validation.quality.text
        file = text_file(golden.TEXT_KEY, name, recipe.resolve(name))
        if file and text and sha256_file(file.resolve()) == sha256_file(text.resolve()):
            raise EdgewrightError(
                f"{golden.TEXT_KEY}: {name} is what {CALIBRATION} looks at, so it says nothing about other text; "
                "give another file"
            )
    return golden.held_out(file, checkpoint, model, recipe.context.max_tokens)


def reader(model: Model, checkpoint: Path) -> Reader:
    """See `Driver`: the decoder is entered by the ids themselves."""
    if not (checkpoint / TOKENIZER).is_file():
        raise EdgewrightError(f"validate.task: {checkpoint} has no {TOKENIZER}, which questions need")
    tokenizer = Encoder(checkpoint / TOKENIZER)
    encode = encoder(checkpoint, model, tokenizer)

    def read(given: Given) -> Prompt:
        return Prompt(np.array(encode(Document(given.text, given.templated)), np.int64))

    return Reader(read, lambda: lambda ids, prompts: ids, tokenizer)


def write_vectors(
    path: Path, model: Model, schemes: Schemes, held: Held, sides: Mapping[str, Weights], progress: Progress
) -> None:
    """See `Driver`."""
    golden.write(path, model, schemes, held, sides, progress)


def copy_vectors(source: Path, path: Path, tolerances: Mapping[str, float]) -> bool:
    """See `Driver`."""
    return golden.copy_with_tolerances(source, path, tolerances)
