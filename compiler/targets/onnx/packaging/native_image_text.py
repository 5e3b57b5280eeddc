"""Ministral 3 with its eyes as onnxruntime-genai loads it, model type "mistral3": `vision.onnx`, `embedding.onnx` and
`model.onnx` beside `genai_config.json` and `processor_config.json`.

genai hands one prepared image at a time to `vision.onnx`, as a whole, and the features of all of them with the token
ids to `embedding.onnx`. Beside these two lie the graphs of the entries themselves, over the same data files: an app on
plain onnxruntime fills a call of theirs as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.formats import onnx as formats
from artifacts.formats import preprocessing
from compiler.quantize.kv import CacheScales
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.targets.onnx import generic
from compiler.targets.onnx.packaging import text
from compiler.targets.onnx.packaging.text import (
    CONFIG,
    DATA,
    MODEL,
    decoder_plan,
    entries_of_components,
    genai_config,
    write_json,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.targets.onnx.layout import Plan

FAMILIES = ("ministral3",)
LIBRARY = text.LIBRARY
TOKENIZER_OPTIONS: dict[str, str] = {}  # prompts say their first token themselves
VISION, EMBEDDING, PROCESSOR = "vision.onnx", "embedding.onnx", "processor_config.json"
refusals, measured, entries = generic.refusals, generic.measured, entries_of_components
_PIXELS, _FEATURES, _EMBEDS = "pixel_values", "image_features", "inputs_embeds"
_FILTERS = {"nearest": "NEAREST", "bilinear": "LINEAR", "bicubic": "CUBIC", "lanczos": "LANCZOS"}


def plans(job: Job, cache: Sequence[CacheScales] | None) -> list[Plan]:
    """A graph for each entry, and genai's own of vision and embed; see `packaging.Packaging`."""
    from compiler.targets.onnx.layout import Plan

    vision, embed, decoder = (job.model.component(name) for name in ("vision", "embed", "decoder"))
    constants: Any = job.model.constants
    takes_images = partial(_take_an_image, constants["patch_size"], constants["merge"])
    takes_features = partial(_take_features, constants["image_token_id"], _hidden(job))
    found = []
    for component, file, outputs, finish in (
        (vision, VISION, {"features": _FEATURES}, takes_images),
        (embed, EMBEDDING, {"embeddings": _EMBEDS}, takes_features),
    ):
        (entry,), data = component.shipped, f"{component.name}.onnx.data"
        own = Plan(f"{component.name}.{entry.name}.onnx", data, component, entry, (entry.name,), inline=False)
        found += [own, Plan(file, data, component, entry, (), outputs=outputs, inline=False, finish=finish)]
    return [*found, decoder_plan(job, decoder, MODEL, DATA, cache, entered=_EMBEDS)]


def _hidden(job: Job) -> int:
    size = job.model.component("embed").entries[0].outputs[0].shape[-1]
    assert isinstance(size, int)
    return size


def _take_an_image(patch: int, merge: int, graph: ir.Graph) -> None:
    """Pixels [1, 3, height, width] in the place of cells and their places."""
    import onnx_ir as ir

    from compiler.targets.onnx.packaging.nodes import Nodes

    cell = patch * merge
    pixels, rows, columns, images = graph.inputs
    new = Nodes(graph, _PIXELS)
    op, integers = new.op, new.integers
    given = ir.val(_PIXELS, pixels.dtype, [1, 3, "height", "width"])
    squares = op("SpaceToDepth", given, blocksize=cell)  # [1, pixels of a cell by row, column, channel, rows, columns]
    cells = op("Transpose", op("Reshape", squares, integers(cell, cell, 3, -1)), perm=(3, 2, 0, 1))
    count = op("Squeeze", op("Shape", cells, start=0, end=1))
    wide = op("Squeeze", op("Shape", squares, start=3, end=4))
    each = op("Range", integers(0, scalar=True), count, integers(1, scalar=True))

    def places(at: ir.Value, of_patch: list[int]) -> ir.Value:
        first = op("Unsqueeze", op("Mul", at, integers(merge, scalar=True)), integers(1))
        return op("Add", first, integers(*of_patch))

    down = [at for at in range(merge) for _ in range(merge)]
    right = [at for _ in range(merge) for at in range(merge)]
    replaced = {
        pixels: cells,
        rows: places(op("Div", each, wide), down),
        columns: places(op("Mod", each, wide), right),
        images: op("Mul", each, integers(0, scalar=True)),
    }
    for old, value in replaced.items():
        ir.convenience.replace_all_uses_with(old, value)
    graph.inputs[:] = [given]


def _take_features(image_token: int, hidden: int, graph: ir.Graph) -> None:
    """Image features [n, hidden] beside the ids; they take the places of image tokens, in their order, as far as there
    are any: a token that the model itself says shows nothing."""
    import onnx_ir as ir

    from compiler.targets.onnx.packaging.nodes import Nodes

    (ids,), (embeddings,) = graph.inputs, graph.outputs
    new = Nodes(graph, _FEATURES, last=True)
    op, integers = new.op, new.integers
    one, zero = integers(1, scalar=True), integers(0, scalar=True)
    features = ir.val(_FEATURES, embeddings.dtype, ["image_tokens", hidden])
    marks = op("Equal", op("Reshape", ids, integers(-1)), integers(image_token))
    nth = op("CumSum", op("Cast", marks, to=ir.DataType.INT64), zero)
    shown = op("And", marks, op("LessOrEqual", nth, op("Shape", features, start=0, end=1)))
    count = op("Size", ids)
    # rows of features lie behind those of tokens
    behind = op("Add", nth, op("Sub", count, one))
    row = op("Where", shown, behind, op("Range", zero, count, one))
    table = op("Concat", op("Reshape", embeddings, integers(-1, hidden)), features, axis=0)
    found = op("Reshape", op("Gather", table, row, axis=0), op("Shape", embeddings))
    found.name, embeddings.name = embeddings.name, f"{_FEATURES}/embeddings"
    found.type, found.shape = embeddings.type, embeddings.shape
    graph.inputs.append(features)
    graph.outputs[:] = [found]


def write(job: BuildJob, folder: Path, graphs: Sequence[formats.Graph]) -> None:
    """genai_config.json, and processor_config.json where preprocessing.json lies there."""
    decoder, constants = job.model.component("decoder"), job.model.constants
    config = genai_config(job, decoder, graphs[-1], "mistral3", _EMBEDS, _hidden(job))
    config["model"] |= {
        "image_token_id": constants["image_token_id"],
        "embedding": {
            "filename": EMBEDDING,
            "inputs": {"input_ids": "input_ids", _FEATURES: _FEATURES},
            "outputs": {_EMBEDS: _EMBEDS},
        },
        "vision": {
            "filename": VISION,
            "config_filename": PROCESSOR,
            "patch_size": constants["patch_size"],
            "spatial_merge_size": constants["merge"],
            "inputs": {_PIXELS: _PIXELS},
            "outputs": {_FEATURES: _FEATURES},
        },
    }
    write_json(folder / CONFIG, config)
    if (folder / preprocessing.PREPROCESSING).is_file():
        found = preprocessing.read(folder / preprocessing.PREPROCESSING)
        assert isinstance(found, preprocessing.Pixtral)
        cells: Any = constants["max_cells"]
        write_json(folder / PROCESSOR, processor_config(found.images, cells))


def processor_config(images: preprocessing.PixtralImages, most: int) -> dict[str, Any]:
    """The transforms of genai's processor for an image of at most so many cells.

    It rounds sides to the nearest whole cells and bounds their product, where transformers rounds up and bounds the
    longer side; an image that is of whole cells and within the bound stays as it is.
    """
    cell = images.patch * images.merge
    transforms: list[tuple[str, dict[str, Any]]] = [
        ("DecodeImage", {"color_space": "RGB"}),  # and no ConvertRGB behind it, which swaps red and blue
        (
            "Resize",
            {
                "interpolation": _FILTERS[images.resample],
                "smart_resize": 1,
                "patch_size": images.patch,
                "merge_size": images.merge,
                "min_pixels": cell**2,
                "max_pixels": most * cell**2,
            },
        ),
        ("Rescale", {"rescale_factor": images.normalisation.rescale}),
        ("Normalize", {"mean": list(images.normalisation.mean), "std": list(images.normalisation.std)}),
        ("Permute3D", {"dims": [2, 0, 1]}),
        ("PixtralImageSizes", {}),
    ]
    steps = [{"operation": {"name": kind, "type": kind, "attrs": attrs}} for kind, attrs in transforms]
    return {"processor": {"name": "pixtral_image_processor", "transforms": steps}}


def about(job: Job) -> About:
    """See `packaging.Packaging`."""
    constants = job.model.constants
    purpose = (
        f" for an image of at most {constants['max_image']:,} pixels along an edge and {constants['max_tokens']:,} "
        "tokens of context"
    )
    return About("Vision tower, embeddings and text decoder", "image-text-to-text", purpose)


def sections(job: BuildJob, graphs: Sequence[formats.Graph]) -> list[str]:
    """Of README.md: how onnxruntime-genai and plain onnxruntime call the package, and what was run."""
    return [_genai(job), _plain(job, graphs), _RUN]


def _genai(job: BuildJob) -> str:
    edge, limit = job.model.constants["max_image"], job.model.constants["max_tokens"]
    return (
        "## onnxruntime-genai\n\n```python\nimport onnxruntime_genai as og\n\n"
        'model = og.Model("path/to/this/folder")\n'
        "processor = model.create_multimodal_processor()\n"
        'prompt = "<s>[INST][IMG]What is in the picture?[/INST]"\n'
        'inputs = processor(prompt, images=og.Images.open("picture.png"))\n'
        "parameters = og.GeneratorParams(model)\n"
        f"parameters.set_search_options(do_sample=False, max_length={limit})\n"
        "generator = og.Generator(model, parameters)\n"
        "generator.set_inputs(inputs)\n"
        "stream = processor.create_stream()\n"
        "while not generator.is_done():\n"
        "    generator.generate_next_token()\n"
        '    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)\n```\n\n'
        "- The prompt is what the checkpoint's chat template makes, its first token too: the processor adds none.\n"
        "- **Give it images that are prepared as `PREPROCESSING.md` says**, as PNG: reduced, if they are larger, and "
        "resized to whole cells; these it leaves as they are. By itself it rounds each side to the nearest number of "
        "cells, where the model was trained with the next larger one, and it bounds the area alone: an image of more "
        f'than {edge:,} pixels along one side may end in an error of `vision.onnx`, "indices element out of data '
        'bounds".\n'
        "- Of several images the highest must be the widest too, or genai refuses them. It takes markers side by side, "
        "`[IMG][IMG]`, for one: put something between them."
    )


def _plain(job: BuildJob, graphs: Sequence[formats.Graph]) -> str:
    image, ids, decoder = graphs
    constants: Any = job.model.constants
    layers, hidden, merge = len(decoder.states) // 2, _hidden(job), constants["merge"]
    heads, width = next(iter(decoder.states.values())).shape[1::2]
    cell = merge * constants["patch_size"]
    positions = ", `position_ids` int64 [1, n]" if "positions" in decoder.inputs else ""
    shown = f"`{_FEATURES}` float32 [image tokens, {hidden}]"
    rows = [
        (image.file, f"`pixels` float32 [cells, 3, {cell}, {cell}], `rows`, `columns` int64 [cells, {merge**2}], "
         "`images` int64 [cells]", f"`features` float32 [cells, {hidden}]"),
        (VISION, f"`{_PIXELS}` float32 [1, 3, height, width]", shown),
        (ids.file, "`input_ids` int64 [1, n]", f"`embeddings` float32 [1, n, {hidden}]"),
        (EMBEDDING, f"`input_ids` int64 [1, n], {shown}", f"`{_EMBEDS}` float32 [1, n, {hidden}]"),
        (decoder.file, f"`{_EMBEDS}` float32 [1, n, {hidden}], `attention_mask` int64 [1, past + n]{positions}, "
         f"`past_key_values.0.key` … `.{layers - 1}.value` float32 [1, {heads}, past, {width}]",
         "`logits`, `present.*`"),
    ]  # fmt: skip
    table = "\n".join(f"| `{file}` | {inputs} | {outputs} |" for file, inputs, outputs in rows)
    return (
        "## Plain onnxruntime\n\n"
        f"| file | inputs | outputs |\n|---|---|---|\n{table}\n\n"
        f"`{VISION}` and `{EMBEDDING}` are the graphs above them with what onnxruntime-genai hands over; an app needs "
        "one of each pair. An image becomes cells and a prompt as `PREPROCESSING.md` says, with the numbers of "
        f"`preprocessing.json`. The context ends at {constants['max_tokens']:,} tokens. Weights are mapped from the "
        "`.onnx.data` of each component, which two graphs share."
    )


_RUN = (
    "## What was run, and what was not\n\n"
    "`edgewright validate` runs this folder in onnxruntime on your machine, compares every output with PyTorch's and "
    "what onnxruntime-genai says of a picture with what its own graphs say, and holds its memory there against the "
    "byte limit of a phone. Whether that was done, and what came of it, stands in `edgewright.json`. It was **not run "
    "on a phone**; speed there is unknown."
)
