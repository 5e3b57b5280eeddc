"""Text decoders: token ids and the position of the first one in, logits of the last one out.

    forward(input_ids int32 [1, length], position int32 [1], *caches) -> (logits [1, 1, vocab], *caches)

Positions count up from `position`, so the writes to a cache are one contiguous block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts.formats.coreml import CoreMLRuntime
from compiler.models.base import Component, Entry, Port
from compiler.slots import Schemes
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.targets.coreml.capture import Call, Sizes
from compiler.targets.coreml.options import CoreMLOptions
from compiler.targets.coreml.packaging.readme import swift_page
from compiler.targets.text_card import text_about, tokens_section

if TYPE_CHECKING:
    import torch

PACKAGE = "model.mlpackage"
PURPOSE = ": a text decoder with a key-value cache"
FEATURES = {
    "input_ids": "Token ids of this call, [1, length].",
    "position": "Position of the first of these tokens: how many tokens the cache holds.",
    "logits": "Logits of the last position, [1, 1, vocabulary].",
    "key_cache": "Rotated keys of one layer, [1, key-value heads, context, head size].",
    "value_cache": "Values of one layer, [1, key-value heads, context, head size].",
    "new_key_cache": "key_cache after this call: the next call's input.",
    "new_value_cache": "value_cache after this call: the next call's input.",
}


def refusals(job: Job) -> list[str]:
    """Nothing of its own."""
    return []


def packages(job: Job) -> dict[str, list[Call]]:
    """The functions of the one package: prefill and decode, or below iOS 18 a single one for both."""
    component = job.model.component("decoder")
    most = component.entry("prefill").largest()["tokens"]
    many: Sizes = lengths(job.options, most) or (None, 1, most)
    if job.options.multifunction:
        return {PACKAGE: [_call("prefill", component, "prefill", many), _call("decode", component, "decode", (1,))]}
    return {PACKAGE: [_call("main", component, "prefill", many)]}


def lengths(options: CoreMLOptions, max_tokens: int) -> tuple[int, ...]:
    """The prompt lengths that a call takes, ascending; without any: every length up to max_tokens."""
    if options.prompt == "range":
        return ()
    fitting = tuple(n for n in options.prompt_lengths if n <= max_tokens)
    return fitting if options.multifunction else tuple(sorted({1, *fitting}))


def _call(function: str, component: Component, entry: str, tokens: Sizes) -> Call:
    inputs = (Port("input_ids", "int32", (1, "tokens")), Port("position", "int32", (1,)))
    found = component.entry(entry)
    return Call(
        function,
        component,
        found,
        inputs,
        partial(_module, component, found),
        {"tokens": tokens},
        {"position": "positions"},
    )


def _module(component: Component, entry: Entry, schemes: Schemes) -> torch.nn.Module:
    import torch

    body = component.module(entry, schemes)

    class FromPosition(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, position: torch.Tensor, *caches: torch.Tensor) -> Any:
            positions = (torch.arange(input_ids.shape[1], dtype=torch.int32) + position)[None]
            return body(input_ids, positions, *caches)

    return FromPosition()


def metadata(job: Job) -> dict[str, str]:
    """What the model's metadata says beside what every package's does."""
    return {"com.edgewright.max_tokens": str(job.model.constants["max_tokens"])}


def about(job: Job) -> About:
    """How the README begins."""
    return text_about(job)


def sections(job: BuildJob, runtime: CoreMLRuntime, units: str) -> list[str]:
    """Of the README: tokens, features, and Swift for exactly these functions and shapes."""
    counts = lengths(job.options, job.model.component("decoder").entry("prefill").largest()["tokens"])
    return [tokens_section(job), swift_page(job, runtime, list(counts), units)]


def examples(job: Job) -> Iterator[tuple[Call, dict[str, Any]]]:
    """A short call of each function that enters caches of zeros at the end of the context."""
    for call in packages(job)[PACKAGE]:
        sizes = call.sizes["tokens"]
        most = call.component.states[0].sized({})[2]
        count = max(n for n in sizes if n is not None) if sizes[0] is not None else min(16, most)
        vocabulary = call.entry.inputs[0].below or 2
        ids = [(7 * i + 3) % vocabulary for i in range(count)]
        yield call, {"input_ids": np.asarray([ids], np.int32), "position": np.asarray([most - count], np.int32)}
