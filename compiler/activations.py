"""Activations of 8 bits: which values of a captured entry are rounded, to what, and the graph that does it.

A convolution multiplies codes where its rule says `activations: int8`: its inputs are rounded, and its output behind
bias and relu. So is what lies between two of them, as far as integer kernels go: a value that such a convolution reads,
back through additions, products and concatenations. All else is computed in float from the codes' values. What the
codes stand for is found by calibration (`quantize/activations/`); nothing here runs a model, or knows a target.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from compiler.graph import Node, op_name, slots_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "activations.json"
# where both operands are codes, kernels give codes
_INTEGER = ("aten::add", "aten::mul", "aten::cat", "aten::sigmoid", "aten::relu")
# in floats between codes: ONNX Runtime's kernel of codes truncates, and takes twice as long (1.31, x86)
_RESIZES = ("aten::upsample_linear1d", "aten::upsample_bilinear2d")
# what gives the values that it gets, elsewhere: their codes too
_MOVES = ("aten::view", "aten::reshape", "aten::permute", "aten::transpose", "aten::slice", "aten::pixel_shuffle")


class Affine(BaseModel):
    """What codes of 0 … 255 stand for: scale * (code - zero)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scale: float = Field(gt=0)
    zero: int = Field(ge=0, le=255)


class Rounding(BaseModel):
    """Of one component. slots: of the convolutions that multiply codes. values: the rounded ones, by the names of their
    nodes in what `graph.capture` gives for its entry under the schemes of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: frozenset[str]
    values: dict[str, Affine]


Roundings = Mapping[str, Rounding]
"""By component; one without is computed in float."""
_FILE = TypeAdapter(dict[str, Rounding])


def write(folder: Path, roundings: Roundings) -> None:
    content = {name: {"slots": sorted(r.slots), "values": r.model_dump()["values"]} for name, r in roundings.items()}
    (folder / FILE).write_bytes(TypeAdapter(dict).dump_json(content, indent=1) + b"\n")


def read(folder: Path) -> Roundings:
    """What `write` left in a folder of quantized weights; nothing where all activations are floats."""
    file = folder / FILE
    return _FILE.validate_json(file.read_bytes()) if file.is_file() else {}


@dataclass(frozen=True)
class Places:
    """Values to round in a graph. values: each with the one whose codes it has, itself for most. convolutions: those
    that multiply codes, with their outputs behind bias and relu."""

    values: Mapping[Node, Node]
    convolutions: Mapping[Node, Node]


def places(program: ExportedProgram, slots: Collection[str]) -> Places:
    """Which values of a captured entry are rounded where the convolutions of `slots` multiply codes."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    given = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    convolutions = {
        node: _behind(node) for node in nodes if op_name(node) == "edge::convolution" and slots_of(node)[0] in slots
    }
    found = dict.fromkeys(convolutions.values())
    wanted = {node.args[0] for node in convolutions}
    for node in reversed(nodes):
        if node not in wanted:
            continue
        found[node] = None
        made = _before(node)
        sources = made.all_input_nodes
        if any(source.op == "placeholder" and source.name not in given for source in sources):
            continue  # a constant
        if op_name(made) in (*_MOVES, *_RESIZES) or (op_name(made) in _INTEGER and _of_values(made)):
            wanted |= set(sources)
    found |= dict.fromkeys(node for node in wanted if node.op == "placeholder")
    order = [node for node in program.graph.nodes if node in found]
    like = {node: node.args[0] for node in order if op_name(node) in _MOVES and node.args[0] in found}
    for node in order:
        # what is put together is only copied where all of it has the same codes; a relu's have their zero at the least
        parts = node.args[0] if op_name(node) == "aten::cat" else ()
        like |= {part: node for part in parts if part in found and part not in like and op_name(part) != "aten::relu"}
    return Places({node: _last(like, node) for node in order}, convolutions)


def _last(like: Mapping[Node, Node], node: Node) -> Node:
    while node in like:
        node = like[node]
    return node


def _behind(node: Node) -> Node:
    """A convolution's output: behind bias and relu, where nothing else reads it."""
    for name in ("edge::bias", "aten::relu"):
        users = list(node.users)
        if len(users) == 1 and op_name(users[0]) == name:
            node = users[0]
    return node


def _before(node: Node) -> Node:
    """The operation that gives a value, or whose value nothing but a relu that gives it reads."""
    if op_name(node) == "aten::relu" and len(node.args[0].users) == 1 and node.args[0].op == "call_function":
        source: Node = node.args[0]
        return source
    return node


def _of_values(node: Node) -> bool:
    """Whether an operation has tensors alone as operands: a factor that is a number has no codes."""
    operands = node.args[0] if isinstance(node.args[0], list | tuple) else node.args
    return not node.kwargs and all(hasattr(operand, "all_input_nodes") for operand in operands)


def insert(program: ExportedProgram, rounding: Rounding) -> None:
    """Put `edge::rounded` behind every value of `rounding`, in place."""
    import torch

    from compiler.dialect import edge

    graph = program.graph
    by_name = {node.name: node for node in graph.nodes}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for name, affine in rounding.values.items():
        value = by_name[name]
        with graph.inserting_before(first) if value.op == "placeholder" else graph.inserting_after(value):
            new = graph.call_function(edge.rounded.default, (value, name, affine.scale, affine.zero))
        new.meta["val"] = value.meta["val"]
        value.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        for spec in program.graph_signature.output_specs:
            if spec.arg.name == name:
                spec.arg.name = new.name
    graph.lint()
    assert isinstance(program.graph_module, torch.fx.GraphModule)
    program.graph_module.recompile()
