"""Text decoders as onnxruntime-genai loads them and users of plain onnxruntime know them: one graph for prefill and
decoding, `genai_config.json`, the tokenizer's files beside it.

`attention_mask` stands for the positions, except where queries are scaled by them; caches are `past_key_values.*` and
`present.*`, which may be one buffer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts.formats import onnx as formats
from compiler.drivers import driver_of
from compiler.models.base import Component, Entry
from compiler.quantize import kv
from compiler.quantize.kv import CacheScales
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.targets.onnx.geometry import padded_head
from compiler.targets.onnx.packaging import readme
from compiler.targets.text_card import text_about, tokens_section
from compiler.tokenizer import FILE as TOKENIZER
from recipes.schema import Calibration

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.targets.onnx.layout import Plan

MODEL, DATA, CONFIG = "model.onnx", "model.onnx.data", "genai_config.json"
LIBRARY = "onnxruntime-genai"
# no file of the package can make genai's tokenizer add a text's first token: the app has to ask for it
TOKENIZER_OPTIONS = {"add_special_tokens": "true"}
_MASK, _POSITIONS = "attention_mask", "position_ids"
_PAST, _PRESENT = "past_key_values.{}.{}", "present.{}.{}"
BATCH = 1 << 20


def refusals(job: Job) -> list[str]:
    """None."""
    return []


def entries(job: Job, component: Component) -> list[Entry]:
    """One, for prefill and decoding."""
    return [decoder_entry(job, component)]


def decoder_entry(job: Job, decoder: Component) -> Entry:
    """What the graph of a decoder computes."""
    return decoder.entry("prefill" if job.options.logits == "last" else formats.SCORE)


def plans(job: Job, cache: Sequence[CacheScales] | None) -> list[Plan]:
    """One graph for all entries; see `packaging.Packaging`."""
    (decoder,) = job.model.components
    return [decoder_plan(job, decoder, MODEL, DATA, cache)]


def entries_of_components(job: Job, component: Component) -> list[Entry]:
    """One of each component of a model that sees: a decoder's is for prefill and decoding."""
    return [decoder_entry(job, component)] if component.states else list(component.shipped)


def decoder_plan(
    job: Job,
    decoder: Component,
    file: str,
    data: str,
    cache: Sequence[CacheScales] | None,
    *,
    entered: str = "input_ids",
    batch: str = "batch",
) -> Plan:
    """A graph for all entries of a decoder. entered: what its first port is called there; batch: its first size."""
    from compiler.targets.onnx.attention import Attention
    from compiler.targets.onnx.layout import Plan

    entry = decoder_entry(job, decoder)
    kinds = [(at // 2, kind) for at, kind in enumerate(("key", "value") * (len(decoder.states) // 2))]
    past, present = (
        {state.name: name.format(*kind) for state, kind in zip(decoder.states, kinds, strict=True)}
        for name in (_PAST, _PRESENT)
    )

    def finish(graph: ir.Graph) -> None:
        """Sizes by the names that users of such packages know, and the caches' own type."""
        import onnx_ir as ir

        for value in (*graph.inputs, *graph.outputs):
            assert value.name is not None and value.shape is not None
            if value.name == _MASK:
                value.shape = ir.Shape([batch, "total"])
            elif value.name in (entered, _POSITIONS):
                value.shape = ir.Shape([batch, "sequence", *value.shape[2:]])
            elif value.name in (*past.values(), *present.values()):
                length = "past" if value.name in past.values() else "total"
                value.shape = ir.Shape([batch, value.shape[1], length, value.shape[3]])
                if cache is not None:
                    value.dtype = ir.DataType.INT8
            else:
                rows = 1 if job.options.logits == "last" else "sequence"
                value.shape = ir.Shape([batch, rows, value.shape[2]])
        mask = next(value for value in graph.inputs if value.name == _MASK)
        graph.inputs.remove(mask)
        graph.inputs.insert(1, mask)

    return Plan(
        file=file,
        data=data,
        component=decoder,
        entry=replace(entry, dimensions={**entry.dimensions, "batch": (1, BATCH)}),
        serves=tuple(shipped.name for shipped in decoder.shipped),
        attention=Attention(_MASK, cache),
        inputs={entry.inputs[0].name: entered, "positions": _POSITIONS, **past},
        outputs=present,
        finish=finish,
    )


def measured(job: BuildJob) -> list[CacheScales]:
    """On the text of the recipe's `quantize.calibration`, the built-in text where it has none, or on random tokens
    where the checkpoint has no tokenizer."""
    constants: Any = job.model.constants
    count = min(kv.TOKENS, constants["max_positions"])
    if job.calibration is not None:
        ids = job.calibration
    elif (job.source / TOKENIZER).is_file():
        ids = driver_of(job.model).looked_at(Calibration(tokens=count), None, job.model, job.source)
    else:
        ids = np.random.default_rng(0).integers(0, constants["vocab_size"], count, np.int32)
    ids = ids.reshape(1, -1)[:, :count]
    (decoder,) = job.model.at(ids.shape[1]).components
    inputs = {"input_ids": ids.astype(np.int64), "positions": np.arange(ids.shape[1], dtype=np.int64)[None]}
    return kv.measure(decoder, decoder.entry("prefill"), job.schemes, job.weights, inputs, job.options.kv_scales)


def write(job: BuildJob, folder: Path, graphs: Sequence[formats.Graph]) -> None:
    """genai_config.json."""
    (decoder,) = job.model.components
    hidden = next(slot.columns for slot in decoder.slots if slot.kind == "embedding")
    write_json(folder / CONFIG, genai_config(job, decoder, graphs[0], "mistral", "input_ids", hidden))


def write_json(path: Path, value: Any) -> None:
    """A file for people and programs."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def genai_config(
    job: Job, decoder: Component, graph: formats.Graph, kind: str, entered: str, hidden: int
) -> dict[str, Any]:
    """onnxruntime-genai's description of a package (its `genai_config.json`): of a model of the type `kind`, and of its
    decoder, which is entered by the input `entered` and has embeddings of this size."""
    constants: Any = job.model.constants
    heads = decoder.attention
    assert heads is not None
    inputs = {entered: entered, "attention_mask": _MASK}
    if "positions" in graph.inputs:
        inputs["position_ids"] = _POSITIONS
    past, present = (name.format("%d", "{}") for name in (_PAST, _PRESENT))
    inputs |= {f"past_{kind}_names": past.format(kind) for kind in ("key", "value")}
    eos, limit = constants["eos"], constants["max_tokens"]
    return {
        "model": {
            "type": kind,
            "bos_token_id": constants["bos"] if constants["bos"] is not None else 0,
            "eos_token_id": eos,
            "pad_token_id": eos[0] if eos else 0,
            "vocab_size": constants["vocab_size"],
            "context_length": limit,
            "decoder": {
                "filename": MODEL,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": padded_head(heads.head_dim),
                "hidden_size": hidden,
                "num_attention_heads": heads.heads,
                "num_key_value_heads": heads.kv_heads,
                "num_hidden_layers": len(decoder.states) // 2,
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    **{f"present_{kind}_names": present.format(kind) for kind in ("key", "value")},
                },
            },
        },
        "search": {"do_sample": False, "max_length": limit, "past_present_share_buffer": True},
    }


def about(job: Job) -> About:
    """A text decoder."""
    return text_about(job)


def sections(job: BuildJob, graphs: Sequence[formats.Graph]) -> list[str]:
    """Its tokens, and how the two runtimes load and call the package."""
    return [tokens_section(job), *readme.sections(job, graphs[0])]
