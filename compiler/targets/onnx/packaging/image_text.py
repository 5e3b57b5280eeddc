"""SmolVLM as transformers.js loads it, from a browser or Node: three graphs in `onnx/` with the names of their inputs
and outputs, each with a data file of its own, config.json, tokenizer and the processor's files.

`vision_encoder` takes the tiles of a batch of prompts, filled up with empty ones to equal numbers, and gives the
features of those of which a pixel is marked, one prompt's after another's.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.formats import onnx as formats
from compiler.slots import HALF
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.targets.onnx import generic
from compiler.targets.onnx.packaging.text import BATCH, decoder_plan, entries_of_components
from compiler.targets.smolvlm import FAMILY, explicit_config, image_text_about, stored_twice, write_processor

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.targets.onnx.layout import Plan

FAMILIES = (FAMILY,)
LIBRARY = "transformers.js"
TOKENIZER_OPTIONS: dict[str, str] = {}
refusals, measured, entries = generic.refusals, generic.measured, entries_of_components
_MASK = "pixel_attention_mask"
_FILES = {"vision": "vision_encoder", "embed": "embed_tokens", "decoder": "decoder_model_merged"}
# how transformers.js calls what most of a model's weights are, and what ends the names of its files
_DTYPES = {4: ("q4", "_q4"), 8: ("int8", "_int8"), 16: ("fp32", "")}


def plans(job: Job, cache: Sequence[None] | None) -> list[Plan]:
    """A graph for each component; see `packaging.Packaging`."""
    from compiler.targets.onnx.layout import Plan

    suffix = _dtype(job)[1]
    vision, embed, decoder = (job.model.component(name) for name in _FILES)
    paths = {part: f"onnx/{name}{suffix}.onnx" for part, name in _FILES.items()}
    (tile,), (ids,) = vision.shipped, embed.shipped
    return [
        Plan(
            file=paths["vision"],
            data=f"{paths['vision']}_data",
            component=vision,
            entry=tile,
            serves=(tile.name,),
            inputs={"pixels": "pixel_values"},
            outputs={"features": "image_features"},
            images=formats.Images(port="pixels", mask=_MASK),
            finish=partial(_take_batches, tile.inputs[0].sized(tile.largest())[1:]),
        ),
        Plan(
            file=paths["embed"],
            data=f"{paths['embed']}_data",
            component=embed,
            entry=replace(ids, dimensions={**ids.dimensions, "batch": (1, BATCH)}),
            serves=(ids.name,),
            outputs={"embeddings": "inputs_embeds"},
        ),
        decoder_plan(
            job,
            decoder,
            paths["decoder"],
            f"{paths['decoder']}_data",
            None,
            entered="inputs_embeds",
            batch="batch_size",  # by this name transformers.js knows how large an empty cache is
        ),
    ]


def _dtype(job: Job) -> tuple[str, str]:
    counts: Counter[int] = Counter()
    for slot in job.model.slots:
        counts[job.schemes.get(slot.name, HALF).bits] += slot.rows * slot.columns
    return _DTYPES[counts.most_common(1)[0][0]]


def _take_batches(tile: tuple[int, ...], graph: ir.Graph) -> None:
    """Tiles [batch, images, *tile] and their mask in the place of tiles alone; those without a marked pixel are left
    out before anything is computed of them."""
    import onnx_ir as ir

    from compiler.targets.onnx.packaging.nodes import Nodes

    (pixels,) = graph.inputs
    mask = ir.val(_MASK, ir.DataType.BOOL, ["batch_size", "num_images", *tile[1:]])
    new = Nodes(graph, _MASK)
    op, sizes = new.op, new.integers
    marked = op("Cast", op("Reshape", mask, sizes(-1, math.prod(tile[1:]))), to=ir.DataType.UINT8)
    shown = op("Cast", op("ReduceMax", marked, sizes(1), keepdims=0), to=ir.DataType.BOOL)
    given = ir.val(pixels.name, pixels.dtype, ["batch_size", "num_images", *tile])
    ir.convenience.replace_all_uses_with(pixels, op("Compress", op("Reshape", given, sizes(-1, *tile)), shown, axis=0))
    graph.inputs[:] = [given, mask]


def write(job: BuildJob, folder: Path, graphs: Sequence[formats.Graph]) -> None:
    """config.json with what transformers.js has to know of the files, and the processor's files."""
    files = {Path(graph.file).name: 1 for graph in graphs}
    own = {"dtype": _dtype(job)[0], "use_external_data_format": files}
    config = json.dumps(explicit_config(job) | {"transformers.js_config": own}, indent=2)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    write_processor(job, folder)


def about(job: Job) -> About:
    """See `packaging.Packaging`."""
    return image_text_about(job)


def sections(job: BuildJob, graphs: Sequence[formats.Graph]) -> list[str]:
    """Of README.md: how transformers.js and plain onnxruntime call the graphs."""
    return [_JAVASCRIPT, _plain(job, graphs), _RUN]


def _plain(job: BuildJob, graphs: Sequence[formats.Graph]) -> str:
    vision, embed, decoder = graphs
    limit, layers = job.model.constants["max_tokens"], len(decoder.states) // 2
    tile = job.model.constants["tile_size"]
    hidden = job.model.component("embed").entries[0].outputs[0].shape[-1]
    heads, width = next(iter(decoder.states.values())).shape[1::2]
    rows = [
        (vision.file, f"`pixel_values` float32 [batch, images, 3, {tile}, {tile}], `{_MASK}` bool [batch, images, "
         f"{tile}, {tile}]", f"`image_features` float32 [marked images, {job.model.constants['tokens_per_tile']}, "
         f"{hidden}]"),
        (embed.file, "`input_ids` int64 [batch, n]", f"`inputs_embeds` float32 [batch, n, {hidden}]"),
        (decoder.file, f"`inputs_embeds` float32 [batch, n, {hidden}], `attention_mask` int64 [batch, past + n], "
         f"`past_key_values.0.key` … `.{layers - 1}.value` float32 [batch, {heads}, past, {width}]",
         "`logits`, `present.*`"),
    ]  # fmt: skip
    table = "\n".join(f"| `{file}` | {inputs} | {outputs} |" for file, inputs, outputs in rows)
    return (
        "## Plain onnxruntime\n\n"
        f"| file | inputs | outputs |\n|---|---|---|\n{table}\n\n"
        "An image becomes tiles and a prompt as `PREPROCESSING.md` says, with the numbers of `preprocessing.json`; "
        "the features of its tiles take the places of its image tokens in `inputs_embeds`. "
        f"The context ends at {limit:,} tokens. Weights are mapped from the `.onnx_data` beside each graph."
        + stored_twice(job)
    )


_JAVASCRIPT = """## transformers.js

```js
import { AutoModelForImageTextToText, AutoProcessor, env, load_image } from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "path/to/the/folder/above/";
const processor = await AutoProcessor.from_pretrained("this-folder");
const model = await AutoModelForImageTextToText.from_pretrained("this-folder");
const content = [{ type: "image" }, { type: "text", text: "What is in the picture?" }];
const prompt = processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
const inputs = await processor(prompt, [await load_image("picture.png")]);
const tokens = await model.generate({ ...inputs, do_sample: false, max_new_tokens: 64 });
const said = tokens.slice(null, [inputs.input_ids.dims[1], null]);
console.log(processor.batch_decode(said, { skip_special_tokens: true })[0]);
```

Its processor resizes by filters of its own: prompts are those of `preprocessing.json`, pixels are near them."""
_RUN = (
    "## What was run, and what was not\n\n"
    "`edgewright validate` runs these graphs in onnxruntime on your machine, compares every output with PyTorch's, and "
    "holds their memory there against the byte limit of a phone. Whether that was done, and what came of it, stands in "
    "`edgewright.json`. They were **not run on a phone**, nor in a browser; speed there is unknown."
)
