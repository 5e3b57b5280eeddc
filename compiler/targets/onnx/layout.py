"""One graph file: from an entry's plan to an ONNX graph without weights, and the record by which a session calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from artifacts.formats import onnx as formats
from compiler import activations
from compiler.graph import capture
from compiler.models.base import Component, Entry, Port
from compiler.targets.base import BuildJob, Job
from compiler.targets.onnx.attention import Attention
from compiler.targets.onnx.imported import import_ahead, imported
from compiler.targets.onnx.lower import Lowering
from compiler.targets.onnx.weights import Weight

Values = dict[str, ir.Value]


@dataclass(frozen=True)
class Plan:
    """A graph file to be: an entry of a component, lowered, which answers the entries `serves`; where it is for a
    loader of the ecosystem alone, none.

    inputs, outputs: names in the file where they are not those of the ports; states are among both.
    inline: whether small vectors of slots are part of the graph. images: see `formats.Graph`. finish: has the last word
    on the graph.
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
    images: formats.Images | None = None
    finish: Callable[[ir.Graph], None] | None = None


@dataclass(frozen=True)
class Lowered:
    """A graph, what its initializers are to be, and how a session calls it; None where none does."""

    model: ir.Model
    weights: Mapping[ir.Value, Weight]
    record: formats.Graph | None


def lower_all(job: Job, plans: Sequence[Plan]) -> list[Lowered]:
    """`lower` of each. The graphs of a wide model are captured and imported elsewhere, for what PyTorch's exporters
    load to be gone again."""
    if job.model.wide:
        floats = [p for p in plans if not (isinstance(job, BuildJob) and p.component.name in job.roundings)]
        import_ahead([(p.component, p.entry, job.schemes, frozenset(p.attention.table)) for p in floats])
    return [lower(job, plan) for plan in plans]


def lower(job: Job, plan: Plan) -> Lowered:
    """Capture, import and rewrite. Raises EdgewrightError naming what has no lowering; no weight is read."""
    component, entry = plan.component, plan.entry
    where = f"{component.name}.{entry.name}"
    rounding = job.roundings.get(component.name) if isinstance(job, BuildJob) else None
    if rounding is None:
        model = imported(component, entry, job.schemes, plan.attention.table)
    else:  # which puts nodes of its own into the graph
        from compiler.targets.onnx.importer import import_program

        program = capture(component, entry, job.schemes)
        activations.insert(program, rounding)
        model = import_program(program, plan.attention.table, where)
    model.graph.name = job.name
    inputs = _by_port((*entry.inputs, *component.states), list(model.graph.inputs))
    low = Lowering(model, component, job.options, where, rounding, job.rounded.get(component.name, ()))
    low.run(plan.attention.table)
    outputs = _by_port((*entry.outputs, *component.states), list(model.graph.outputs))
    cache = plan.attention.asked({value: name for name, value in inputs.items()})
    states = [state.name for state in component.states]
    _drop_unused(model.graph, component, inputs, outputs)
    shared = {name for name in inputs if name in outputs and _in_place(inputs[name], outputs[name])}
    _name(plan, inputs, outputs)
    sizes = {name: value.shape.numpy() for name, value in (outputs | inputs).items() if name in states and value.shape}
    tokens = _tokens(plan, model.graph)
    if plan.finish is not None:
        plan.finish(model.graph)
    NameFixPass()(model)  # a port may be called like a value inside
    codes = {name: value.name or "" for name, value in low.codes.items()}
    for value in low.unused:
        value.name = ""
    if not plan.serves:
        return Lowered(model, low.weights, None)
    record = formats.Graph(
        file=plan.file,
        component=component.name,
        entries=plan.serves,
        inputs={name: value.name or "" for name, value in inputs.items() if name not in states},
        outputs={name: value.name or "" for name, value in outputs.items() if name not in states},
        states={
            name: formats.State(
                input=inputs[name].name if name in inputs else None,
                output=outputs[name].name if name in outputs else None,
                shape=sizes[name],
                shared=name in shared,
            )
            for name in states
            if name in inputs or name in outputs
        },
        cache=cache,
        tokens=tokens,
        images=plan.images,
        codes=codes,
    )
    return Lowered(model, low.weights, record)


def _by_port(ports: tuple[Port, ...], values: list[ir.Value]) -> Values:
    return dict(zip((port.name for port in ports), values, strict=True))


def _drop_unused(graph: ir.Graph, component: Component, inputs: Values, outputs: Values) -> None:
    """Take states that an entry leaves as they are from the outputs, and what is not read from the inputs."""
    for state in component.states:
        copy = outputs[state.name].producer()
        if copy is not None and copy.op_type == "Identity" and copy.inputs[0] is inputs[state.name]:
            graph.outputs.remove(outputs.pop(state.name))
            graph.remove(copy, safe=True)
    for name in [name for name, value in inputs.items() if not value.uses()]:
        graph.inputs.remove(inputs.pop(name))


def _in_place(read: ir.Value, written: ir.Value) -> bool:
    """Whether a state is read and written by one attention only, which does so in one buffer."""
    node, index = written.producer(), written.index()
    if node is None or index is None or node.op_type != "GroupQueryAttention":
        return False
    return [(use.node, use.idx) for use in read.uses()] == [(node, index + 2)]


def _name(plan: Plan, inputs: Values, outputs: Values) -> None:
    """Names of inputs and outputs, and of their sizes, by their ports; a state's sizes are numbers."""
    entry = plan.entry
    fixed: dict[int | str, int] = {name: low for name, (low, high) in entry.dimensions.items() if low == high}
    following = {state.name: f"{state.name}.next" for state in plan.component.states} | dict(plan.outputs)
    for ports, values, names in ((entry.inputs, inputs, plan.inputs), (entry.outputs, outputs, following)):
        for name, value in values.items():
            value.name = names.get(name, name)
        for port in ports:
            if port.name in values:
                values[port.name].shape = ir.Shape([fixed.get(size, size) for size in port.shape])


def _tokens(plan: Plan, graph: ir.Graph) -> Literal["last", "all"] | None:
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
