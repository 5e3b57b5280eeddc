"""Capturing an entry of a component: from a module of edge ops to an exported program that holds no weights."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifacts import temporary_place
from compiler.models.base import Component, Entry
from compiler.slots import Schemes

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

Node = Any
"""A `torch.fx.Node`, whose arguments torch types as a union of everything they could be."""


def capture(
    component: Component, entry: Entry, schemes: Schemes, sizes: Mapping[str, int] | None = None
) -> ExportedProgram:
    """Export one entry: its placeholders are the inputs and then the states, its outputs those of the entry and then
    the states, each in the order of their ports.

    sizes: named dimensions to fix; the others stay symbolic between their bounds. Nothing of a tensor's size is
    allocated, however large the states.
    """
    temporary_place()  # which torch asks for when it is imported as far as here, and ends with a traceback without
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.export import Dim
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    bounds = entry.dimensions
    fixed = {name: low for name, (low, high) in bounds.items() if low == high} | dict(sizes or {})
    free = {name: Dim(name, min=low, max=high) for name, (low, high) in bounds.items() if name not in fixed}
    # example sizes that differ, and from 0 and 1 too, or two dimensions are taken for one
    example = fixed | {name: min(max(3 + 2 * at, bounds[name][0]), bounds[name][1]) for at, name in enumerate(free)}
    ports = [*entry.inputs, *component.states]
    body = component.module(entry, schemes)

    class Flat(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(body(*tensors))

    with torch.no_grad():
        with FakeTensorMode(shape_env=ShapeEnv()):
            tensors = tuple(torch.zeros(p.sized(example), dtype=getattr(torch, p.dtype)) for p in ports)
        shapes = tuple({at: free[d] for at, d in enumerate(p.shape) if d in free} for p in ports)
        return torch.export.export(Flat(), tensors, dynamic_shapes=(shapes,))


@dataclass(frozen=True)
class Captured:
    """A captured module: its operations in the order in which they run, its inputs in that of `forward`'s arguments,
    and the tensors that it holds itself (tables, masks; never weights)."""

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    constants: dict[Node, torch.Tensor]


def operations(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Captured:
    """Capture a module of edge ops at the shapes of `inputs`, for calibration to walk through.

    What an operation gives apart is taken apart right behind it, and a norm that adds first is an addition and a norm,
    so that every value is one tensor and every state of a residual stream is among them.
    """
    import torch
    from torch.export.graph_signature import InputKind

    with torch.no_grad():
        exported = torch.export.export(module, inputs)
    graph, signature = exported.graph, exported.graph_signature
    for node in [n for n in graph.nodes if op_name(n) == "edge::add_rms_norm"]:
        _split_sum(graph, node)
    for node in [n for n in graph.nodes if n.target is operator.getitem]:
        node.args[0].append(node)
    places = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    found: list[Node] = []
    constants: dict[Node, torch.Tensor] = {}
    for spec in signature.input_specs:
        node = places[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            found.append(node)
        else:
            held = {**exported.state_dict, **exported.constants}
            constants[node] = held[spec.target]
    nodes = tuple(node for node in graph.nodes if node.op == "call_function")
    return Captured(nodes, tuple(found), constants)


def _split_sum(graph: torch.fx.Graph, node: Node) -> None:
    """Replace add_rms_norm by what it stands for."""
    import torch

    x, residual, slot, columns, eps = node.args
    with graph.inserting_before(node):
        total = graph.call_function(torch.ops.aten.add.Tensor, (x, residual))
        normed = graph.call_function(torch.ops.edge.rms_norm.default, (total, slot, columns, eps))
    total.meta["val"], normed.meta["val"] = node.meta["val"][1], node.meta["val"][0]
    for part in list(node.users):
        part.replace_all_uses_with((normed, total)[part.args[1]])
        graph.erase_node(part)
    graph.erase_node(node)


def op_name(node: Node) -> str:
    """The name of a node's operation with its namespace, as in "edge::linear"; of what is no torch operation, ""."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name)


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an operation by name."""
    names = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def slots_of(node: Node) -> tuple[str, ...]:
    """The slots that a node reads, in order."""
    if not op_name(node).startswith("edge::"):
        return ()
    found = arguments(node)
    return (*((found["slot"],) if "slot" in found else ()), *found.get("slots", ()))
