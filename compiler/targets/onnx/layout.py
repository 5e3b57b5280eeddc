"""One graph file: from an entry's plan to an ONNX graph without weights, and the record by which a session calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from artifacts.formats import onnx as formats
from compiler.graph import capture
from compiler.models.base import Component, Entry
from compiler.targets.base import Job
from compiler.targets.onnx.attention import Attention
from compiler.targets.onnx.importer import import_program
from compiler.targets.onnx.lower import Lowering
from compiler.targets.onnx.weights import Weight


@dataclass(frozen=True)
class Plan:
    """A graph file to be: an entry of a component, lowered, which answers the entries `serves`.

    inputs, outputs: names in the file where they are not those of the ports; states are among both.
    inline: whether small vectors of slots are part of the graph. finish: has the last word on the graph.
    """

    file: str
    data: str
    component: Component
    entry: Entry
    serves: tuple[str, ...]
    attention: Attention = field(default_factory=Attention)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    inline: bool = True
    finish: Callable[[ir.Graph], None] | None = None


@dataclass(frozen=True)
class Lowered:
    """A graph, what its initializers are to be, and how a session calls it."""

    model: ir.Model
    weights: Mapping[ir.Value, Weight]
    record: formats.Graph


def lower(job: Job, plan: Plan) -> Lowered:
    """Capture, import and rewrite. Raises EdgewrightError naming what has no lowering; no weight is read."""
    component, entry = plan.component, plan.entry
    where = f"{component.name}.{entry.name}"
    model = import_program(capture(component, entry, job.schemes), plan.attention.table, where)
    graph = model.graph
    graph.name = job.name
    inputs = dict(zip((port.name for port in (*entry.inputs, *component.states)), graph.inputs, strict=True))
    low = Lowering(model, component.slots, job.options, where)
    low.run(plan.attention.table)
    cache = plan.attention.asked({value: name for name, value in inputs.items()})
    outputs = dict(zip((port.name for port in (*entry.outputs, *component.states)), graph.outputs, strict=True))
    for state in component.states:
        if outputs[state.name] is inputs[state.name]:
            del outputs[state.name]  # the entry leaves it as it is
    shared = {name for name in inputs if name in outputs and _in_place(inputs[name], outputs[name])}
    outputs = dict(zip(outputs, _apart(graph, list(outputs.values())), strict=True))
    graph.outputs[:] = outputs.values()
    for name in [name for name, value in inputs.items() if not value.uses()]:
        graph.inputs.remove(inputs.pop(name))
    fixed = {name: low for name, (low, high) in entry.dimensions.items() if low == high}
    for port in (*entry.inputs, *component.states):
        if port.name in inputs:
            inputs[port.name].name = plan.inputs.get(port.name, port.name)
            inputs[port.name].shape = ir.Shape([fixed.get(size, size) for size in port.shape])
    for port in (*entry.outputs, *component.states):
        if port.name in outputs:
            following = f"{port.name}.next" if port in component.states else port.name
            outputs[port.name].name = plan.outputs.get(port.name, following)
            outputs[port.name].shape = ir.Shape([fixed.get(size, size) for size in port.shape])
    tokens = _tokens(plan, graph)
    if plan.finish is not None:
        plan.finish(graph)
    NameFixPass()(model)
    for value in low.unused:
        value.name = ""
    states = {state.name for state in component.states}
    record = formats.Graph(
        file=plan.file,
        component=component.name,
        entries=plan.serves,
        inputs={name: _named(value) for name, value in inputs.items() if name not in states},
        outputs={name: _named(value) for name, value in outputs.items() if name not in states},
        states={
            name: formats.State(
                input=_named(inputs[name]) if name in inputs else None,
                output=_named(outputs[name]) if name in outputs else None,
                shared=name in shared,
            )
            for name in (state.name for state in component.states)
            if name in inputs or name in outputs
        },
        cache=cache,
        tokens=tokens,
    )
    return Lowered(model, low.weights, record)


def _named(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def _in_place(read: ir.Value, written: ir.Value) -> bool:
    """Whether a state is read and written by one attention only, which does so in one buffer."""
    node = written.producer()
    return (
        node is not None
        and node.op_type == "GroupQueryAttention"
        and [(use.node, use.idx) for use in read.uses()] == [(node, written.index() + 2)]
    )


def _apart(graph: ir.Graph, outputs: list[ir.Value]) -> list[ir.Value]:
    """Outputs of which none is an input, an initializer or there twice, which ONNX does not allow: copies of those."""
    found: list[ir.Value] = []
    for value in outputs:
        if value.producer() is None or value in found:
            copy = ir.node("Identity", [value], name=f"{value.name}/copy")
            copy.outputs[0].dtype = value.dtype
            graph.append(copy)
            value = copy.outputs[0]
        found.append(value)
    return found


def _tokens(plan: Plan, graph: ir.Graph) -> str | None:
    """Marks the node that keeps the last token, where a component can be asked for all of them: see `formats.Graph`."""
    if plan.entry.name == formats.SCORE:
        return "all"
    if not any(entry.name == formats.SCORE for entry in plan.component.entries):
        return None
    last = [node for node in graph if node.op_type == "Slice" and _keeps_the_last(node)]
    if len(last) != 1:
        return None
    last[0].name = formats.LAST_POSITION
    return "last"


def _keeps_the_last(node: ir.Node) -> bool:
    """Whether a Slice takes the last of axis 1."""
    constants = [ir.convenience.get_const_tensor(value) if value is not None else None for value in node.inputs[1:4]]
    start, stop, axis = (None if tensor is None else tensor.numpy().tolist() for tensor in constants)
    return (start, axis) == ([-1], [1]) and stop is not None and stop[0] > 1 << 32
