"""Weights a second time in the data file, as the kernels of one processor pack them, and graphs that point there.

ONNX Runtime packs the weights of its kernels when it loads a graph, into anonymous memory, unless a packed copy of the
same bytes lies in the data file: then that one is mapped and what was just packed is freed, a tensor at a time. Copies
are found by a hash of the packed bytes, so on another processor they are of no use and do no harm, and the originals
have to stay. Both graphs share one data file.

ONNX Runtime writes such files itself (`session.save_external_prepacked_constant_initializers`), with copies at any byte
where they are smaller than a megabyte. Kernels round an address up to 64 bytes, so what was packed at a multiple of 64
and lies at another is read shifted: other answers, and no error (1.31). Here ONNX Runtime writes pieces of a graph, a
process for each, and the copies are taken from there to addresses that fit; memory is bound by the largest piece.

What lives here: that, for every graph that a package has. What must not: how a machine runs ONNX Runtime; `SAVERS` are
called for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts import EdgewrightError, Progress, scratch_folder, silent
from artifacts.formats import onnx as formats
from compiler.apart import apart
from compiler.targets.base import Estimate, Job
from compiler.targets.onnx import packer

if TYPE_CHECKING:
    from compiler.targets.onnx.external import ExternalData


@dataclass(frozen=True)
class Saver:
    """A runtime that packs. save(graph, weights, saved): `packer.save` of one piece, in a process of its
    own. missing(): what keeps it from running here, as "state: what to run"; None where nothing does."""

    save: Callable[[Path, Path, Path], formats.Packing]
    missing: Callable[[], str | None]


# one activation, then constants: their packed form depends on nothing else of the graph
_OPERATORS = ("MatMulNBits", "DynamicQuantizeMatMul")
_PIECE_BYTES = 256 << 20
_BLOCK_BYTES = 16 << 20
_KEY = "prepacked_"
# ONNX Runtime starts what is larger on a page of its own (onnxruntime 1.31)
_ALIGNED_BYTES = 1 << 20


def _here(graph: Path, weights: Path, saved: Path) -> formats.Packing:
    packing: formats.Packing = apart(_save, graph, weights, saved, progress=silent)
    return packing


def _save(graph: Path, weights: Path, saved: Path, progress: Progress) -> formats.Packing:
    return packer.save("host", graph, weights, saved)


SAVERS: dict[str, Saver] = {"host": Saver(_here, lambda: None)}
"""By the recipe's word; those that run elsewhere are added by who can run them."""


def refusals(job: Job, estimates: Sequence[Estimate]) -> Iterator[str]:
    """Why `prepacked` cannot be had."""
    wanted = job.options.prepacked
    missing = SAVERS[wanted].missing() if wanted in SAVERS else "nothing runs ONNX Runtime for it"
    if missing is not None:
        yield f"onnx: prepacked: {wanted} cannot be made here ({missing}); take prepacked: host, or leave it out"
    elif not any(estimate.packed_bytes for estimate in estimates):
        yield "onnx: prepacked is for matrices of 4 or 8 bits, which this model has not; leave it out"


def prepack(
    folder: Path, graphs: Sequence[formats.Graph], data: Mapping[str, ExternalData], saver: Saver, progress: Progress
) -> tuple[list[formats.Graph], formats.Packing]:
    """Add the packed copies to the data files, and write beside each graph one that points at them.

    data: the files by their paths in the folder, still open. Returns the records of all graphs. Raises EdgewrightError
    where ONNX Runtime packs nothing on that machine.
    """
    import onnx

    found: list[formats.Graph] = []
    packing = None
    for graph in graphs:
        path = folder / graph.file
        model = onnx.load(path, load_external_data=False)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        pieces = list(_pieces(model, tensors))
        copies = 0
        for at, piece in enumerate(pieces):
            progress(f"prepacking {graph.file}", at, len(pieces))
            place = _entries(piece.graph.initializer[0])["location"]
            file = data[(Path(graph.file).parent / place).as_posix()]
            file.flush()
            with scratch_folder() as scratch:
                given, saved = scratch / "piece.onnx", scratch / "saved.onnx"
                given.write_bytes(piece.SerializeToString())
                packing = saver.save(given, path.parent, saved)
                for tensor in onnx.load(saved, load_external_data=False).graph.initializer:
                    for key, value in _entries(tensor).items():
                        if key.startswith(_KEY):
                            entry = tensors[tensor.name].external_data.add()
                            entry.key, entry.value = key, _moved(value, file, scratch / f"{saved.name}.data")
                            copies += 1
        progress(f"prepacking {graph.file}", len(pieces), len(pieces))
        if copies:
            name = Path(graph.file).with_suffix(".prepacked.onnx").as_posix()
            (folder / name).write_bytes(model.SerializeToString(deterministic=True))
            graph = graph.model_copy(update={"prepacked": name})
        found.append(graph)
    if packing is None or all(graph.prepacked is None for graph in found):
        raise EdgewrightError("onnx: prepacked: ONNX Runtime packs no weight of this model here; leave it out")
    return found, packing


def _pieces(model: Any, tensors: Mapping[str, Any]) -> Iterator[Any]:
    """Graphs of those nodes alone whose weights are packed, each with at most `_PIECE_BYTES`, or one node."""
    nodes: list[Any] = []
    held = 0
    for node in model.graph.node:
        names = [name for name in node.input[1:] if name]
        if node.op_type not in _OPERATORS or not {*names} <= tensors.keys() or not tensors[names[0]].external_data:
            continue
        size = int(_entries(tensors[names[0]])["length"])
        if nodes and held + size > _PIECE_BYTES:
            yield _piece(model, nodes, tensors)
            nodes, held = [], 0
        nodes, held = [*nodes, node], held + size
    if nodes:
        yield _piece(model, nodes, tensors)


def _piece(model: Any, nodes: Sequence[Any], tensors: Mapping[str, Any]) -> Any:
    """Each node over an activation of its own."""
    from onnx import NodeProto, helper

    copies, inputs, outputs = [], [], []
    for at, node in enumerate(nodes):
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[0], copy.output[0] = f"x{at}", f"y{at}"
        copies.append(copy)
        inputs.append(helper.make_tensor_value_info(f"x{at}", 1, ["rows", f"columns{at}"]))
        outputs.append(helper.make_tensor_value_info(f"y{at}", 1, None))
    names = dict.fromkeys(name for node in nodes for name in node.input[1:] if name)
    graph = helper.make_graph(copies, "piece", inputs, outputs, [tensors[name] for name in names])
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _moved(value: str, file: ExternalData, source: Path) -> str:
    """A record of packed copies, `hash|offset;bytes;checksum|…`, after they were added to another data file.

    A copy that is there already, of the same weight in another graph, is used again.
    """
    import onnx_ir as ir

    key, *parts = value.split("|")
    moved = [key]
    for at, part in enumerate(parts):
        offset, size, checksum = part.split(";")
        blocks = partial(_blocks, source, int(offset), int(size))
        tensor = file.add(("packed", key, at), key, ir.DataType.UINT8, (int(size),), blocks)
        moved.append(f"{tensor.offset};{size};{checksum}")
    return "|".join(moved)


def _blocks(source: Path, offset: int, size: int) -> Iterator[Any]:
    with source.open("rb") as file:
        file.seek(offset)
        while size:
            block = np.frombuffer(file.read(min(size, _BLOCK_BYTES)), np.uint8)
            if not block.size:
                raise ValueError(f"{source}: ends before its packed copies do")
            size -= block.size
            yield block


def section(graphs: Sequence[formats.Graph], packing: formats.Packing | None, smallest: int | None) -> list[str]:
    """Of README.md: how weights stay in their file; nothing where no kernel packs any.

    packing: of the graphs' packed forms. smallest: bytes of the smallest matrix as kernels pack it.
    """
    if smallest is None:
        return []
    parts = [
        "## Weights that stay in their file\n\nLoading a graph, ONNX Runtime copies its weights into anonymous "
        "memory, in the layout of its kernels, unless such copies lie in the data file: then those are mapped, and "
        "while loading it holds the largest of them besides."
    ]
    if packing is not None:
        rows = [f"| `{graph.prepacked}` | `{graph.file}` |" for graph in graphs if graph.prepacked is not None]
        known = ", ".join(packing.instructions) or "no instruction sets known"
        parts += [
            "\n".join(["| with copies | the same as |", "|---|---|", *rows]),
            f"The copies were made by onnxruntime {packing.onnxruntime} for {packing.machine} ({known}). With another "
            "onnxruntime or on another processor these graphs answer as the others do, and hold as much. For "
            "onnxruntime-genai name the file as `filename` in `genai_config.json`.",
        ]
    if smallest > _ALIGNED_BYTES:
        parts += [_FIRST_START]
    return ["\n\n".join(parts)]


_FIRST_START = """An app can make the copies at its first start, on the phone that it is on, and load what it wrote
from then on. The download stays small; what is written takes a bit more than twice the space.

```python
options = onnxruntime.SessionOptions()
options.optimized_model_filepath = "written/model.onnx"  # in an empty folder of the app's own
for key, value in (
    ("session.save_external_prepacked_constant_initializers", "1"),
    ("session.optimized_model_external_initializers_file_name", "model.onnx.data"),
):
    options.add_session_config_entry(key, value)
onnxruntime.InferenceSession("model.onnx", options)  # in a process that ends then: it holds all copies
```"""
