"""Captured entries as plain data, which one process writes and another lowers, without `torch.export` there.

Loading an exported program costs 100 MB of modules that TVM's importer never asks for. What it asks for is a graph of
`torch.fx` and a signature; `program` makes both of the plain nodes. Knows no kernels, and TVM only by the shapes it is
given.

States that attention writes become caches in place: their placeholders come last, in the kernels' layout, and they are
no results. All other states are plain tensors that come and go.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.formats import tvm as formats
from artifacts.formats.interface import Dimension
from compiler.graph import Node, capture, op_name
from compiler.models.base import Component, Entry, Model, Port
from compiler.slots import Schemes
from compiler.targets.tvm.geometry import Heads, in_blocks

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_OPERATOR = "operator."
_EDGE = "edge."
# what has kernels of ours, and what decoders leave to upstream: never taken apart
_WHOLE = ("aten.cat.default", "aten.mul.Tensor", "aten.silu.default", "aten.slice.Tensor", "aten.split.Tensor")
_ATTENTION, _ROTARY = "edge::attention", "edge::rotary"
Frequencies = tuple[tuple[float, ...], float, int]
"""Inverse frequencies, the factor on cos and sin, and positions from 0 on, of one table."""


@dataclass(frozen=True)
class Reference:
    """An argument that is another node's result."""

    name: str


@dataclass(frozen=True)
class TorchName:
    """An argument that is a name of PyTorch's, such as a dtype."""

    name: str


@dataclass(frozen=True)
class PlainNode:
    """A node of `torch.fx`; target: the name of an op like aten.silu.default or operator.getitem, or a placeholder's.

    Of edge.rotary and edge.attention, `args` end with the number of positions that can come, in whole blocks of keys.
    """

    op: str
    name: str
    target: str
    args: Any
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A function. Placeholders in order: `ports` (the entry's inputs, then states that come and go), the component's
    caches with the shapes of `caches`, and `constants` by name; results: the outputs, then the states that go.

    most: the dimensions that stay free, with the size that memory is planned for.
    """

    nodes: list[PlainNode]
    most: dict[str, int]
    ports: tuple[Port, ...]
    caches: tuple[tuple[int, ...], ...]
    constants: dict[str, NDArray[Any]]

    def calls(self, target: str) -> list[PlainNode]:
        """The nodes of an op."""
        return [node for node in self.nodes if node.op == "call_function" and node.target == target]


@dataclass(frozen=True)
class Captured:
    """What PyTorch knows of a job: a graph by the name of its function, and the states of all components."""

    graphs: dict[str, Graph]
    states: tuple[formats.State, ...]

    def in_place(self, component: str) -> list[formats.State]:
        """The caches of a component, in order."""
        return [state for state in self.states if state.component == component and state.in_place]


def capture_functions(
    model: Model,
    schemes: Schemes,
    functions: Sequence[formats.Function],
    narrowed: Mapping[tuple[str, str, str], Dimension],
) -> Captured:
    """The graphs of a model's functions. narrowed: see `targets.base.Built`.

    Raises EdgewrightError for an attention over anything but a state of its own, before anything is written.
    """
    entries = [(f, c := model.component(f.component), c.entry(f.entry)) for f in functions]
    programs = [_decomposed(capture(component, entry, schemes)) for _, component, entry in entries]
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for (_, component, entry), exported in zip(entries, programs, strict=True):
        for name, shape in _caches(component, entry, exported).items():
            if shapes.setdefault((component.name, name), shape) != shape:
                raise EdgewrightError(f"tvm: {component.name}: attentions disagree on the state {name}")
    graphs = {
        function.name: _graph(component, entry, exported, shapes, narrowed)
        for (function, component, entry), exported in zip(entries, programs, strict=True)
    }
    states = [
        formats.State(
            component=component.name,
            name=port.name,
            dtype=port.dtype,
            shape=shapes.get((component.name, port.name), port.sized({})),
            in_place=(component.name, port.name) in shapes,
        )
        for component in model.components
        for port in component.states
    ]
    return Captured(graphs, tuple(states))


def _decomposed(exported: ExportedProgram) -> ExportedProgram:
    """In PyTorch's core ops, for which upstream's converters are written, except for what stays whole."""
    from torch.export import default_decompositions

    nodes: list[Node] = list(exported.graph.nodes)
    if {str(n.target) for n in nodes if op_name(n).startswith("aten::")}.issubset(_WHOLE):
        return exported
    table = default_decompositions()
    for name in _WHOLE:
        table.pop(_torch_op(name), None)
    found: ExportedProgram = exported.run_decompositions(table)
    return found


def heads_of(node: PlainNode) -> Heads:
    """The geometry of an edge.attention."""
    return _heads(node.args, node.args[12])


def _heads(args: Sequence[Any], positions: int) -> Heads:
    heads, kv_heads, head_dim, scale = args[6:10]
    return Heads(heads, kv_heads, head_dim, positions, scale)


def _caches(component: Component, entry: Entry, exported: ExportedProgram) -> dict[str, tuple[int, ...]]:
    """States that the entry's attentions write, with the kernels' shapes. An entry may pass a cache on untouched."""
    nodes: list[Node] = list(exported.graph.nodes)
    ports = dict(zip(_placeholders(exported), [*entry.inputs, *component.states], strict=True))
    results = nodes[-1].args[0][len(entry.outputs) :]
    returned = dict(zip((state.name for state in component.states), results, strict=False))
    found: dict[str, tuple[int, ...]] = {}
    for node in nodes:
        if op_name(node) != _ATTENTION:
            continue
        for at, gives in ((4, 1), (5, 2)):
            cache = node.args[at]
            port = ports.get(cache)
            users = {user for user in cache.users if user is not node}
            part = next((u for u in node.users if u.args[1] == gives), None)
            own = port in component.states and not users and port is not None and port.name not in found
            if not own or not entry.keeps or port is None or returned.get(port.name) is not part:
                raise EdgewrightError(
                    f"tvm: {component.name}.{entry.name}: no lowering for edge.attention over {cache.name}; it has to "
                    "be a state that this attention alone reads, and leaves for the next call"
                )
            heads = _heads(node.args, in_blocks(port.sized({})[2]))
            found[port.name] = heads.key_shape if gives == 1 else heads.value_shape
    return found


def _placeholders(exported: ExportedProgram) -> list[Node]:
    """Of inputs and states, in order; not of constants."""
    from torch.export.graph_signature import InputKind

    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    specs = exported.graph_signature.input_specs
    return [nodes[spec.arg.name] for spec in specs if spec.kind is InputKind.USER_INPUT]


def _graph(
    component: Component,
    entry: Entry,
    exported: ExportedProgram,
    caches: Mapping[tuple[str, str], tuple[int, ...]],
    narrowed: Mapping[tuple[str, str, str], Dimension],
) -> Graph:
    most = {
        name: narrowed.get((component.name, entry.name, name), Dimension(low=low, high=high)).high
        for name, (low, high) in entry.dimensions.items()
        if low != high
    }
    ports = dict(zip(_placeholders(exported), [*entry.inputs, *component.states], strict=True))
    written = [at for at, state in enumerate(component.states) if (component.name, state.name) in caches]
    in_place = {node: caches[component.name, component.states[at].name] for node, at in _states(ports, entry, written)}
    constants = {
        spec.arg.name: exported.constants[spec.target].numpy()
        for spec in exported.graph_signature.input_specs
        if spec.target is not None and spec.target in exported.constants
    }
    nodes: list[Node] = list(exported.graph.nodes)
    left_out = {len(entry.outputs) + at for at in written}
    held = [node for node in nodes if node.op == "placeholder" and node not in ports]
    plain = [
        _plain_node(node, node.args, ports) for node in (*(n for n in ports if n not in in_place), *in_place, *held)
    ]
    for node in nodes:
        if node.op == "output":
            results = tuple(value for at, value in enumerate(node.args[0]) if at not in left_out)
            plain.append(_plain_node(node, (results,), ports))
        elif node.op != "placeholder":
            plain.append(_plain_node(node, node.args, ports))
    fixed: dict[Any, int] = {name: low for name, (low, high) in entry.dimensions.items() if low == high}
    given = [
        replace(p, shape=tuple(fixed.get(d, d) for d in p.shape)) for node, p in ports.items() if node not in in_place
    ]
    return Graph(plain, most, tuple(given), tuple(in_place.values()), constants)


def _states(ports: dict[Node, Port], entry: Entry, written: list[int]) -> list[tuple[Node, int]]:
    nodes = list(ports)[len(entry.inputs) :]
    return [(nodes[at], at) for at in written]


def _plain_node(node: Node, args: Any, ports: dict[Node, Port]) -> PlainNode:
    import torch.fx

    map_arg: Any = torch.fx.map_arg
    target = str(node.target)
    if getattr(node.target, "__module__", None) in ("_operator", "operator"):
        target = _OPERATOR + node.target.__name__
    if op_name(node) == _ROTARY:
        port = ports.get(args[0])
        if port is None or port.below is None:
            raise EdgewrightError(
                f"tvm: no lowering for edge.rotary of {args[0].name}; positions have to be an input that says "
                "what they are `below`"
            )
        args = (*args, in_blocks(port.below))
    if op_name(node) == _ATTENTION:
        args = (*args, in_blocks(ports[args[4]].sized({})[2]))
    args, kwargs = (map_arg(found, lambda n: Reference(n.name)) for found in (args, dict(node.kwargs)))
    return PlainNode(node.op, node.name, target, _plain(args), _plain(kwargs))


def _plain(value: Any) -> Any:
    """Lists and tuples as Python's own, and names for what is PyTorch's: either would bring PyTorch into every process
    that they travel to."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    kind = type(value)
    if kind.__module__.split(".")[0] == "torch":
        # a dtype, a layout or a memory format; a device is nothing here
        return None if kind.__name__ == "device" else TorchName(str(value).removeprefix("torch."))
    return value


def frequencies_of(node: PlainNode) -> Frequencies:
    """The table of an edge.rotary."""
    _, inverse, factor, positions = node.args
    return tuple(inverse), factor, positions


def factors_of(node: PlainNode) -> tuple[float, int, int] | None:
    """The table of factors on the queries of an edge.attention: beta, period, positions; None without any."""
    beta, period, positions = node.args[10:13]
    return (beta, period, positions) if beta else None


def program(graph: Graph, shapes: Sequence[Sequence[Any]]) -> Any:
    """What TVM's importer reads of an exported program. shapes: of the ports and then of the caches, in order."""
    import torch
    from torch.export.graph_signature import InputKind
    from torch.fx import Graph as FxGraph

    fx = FxGraph()
    made: dict[str, Any] = {}

    def resolved(value: Any) -> Any:
        if isinstance(value, Reference):
            return made[value.name]
        if isinstance(value, TorchName):
            return getattr(torch, value.name)
        if isinstance(value, (list, tuple)):
            return type(value)(resolved(v) for v in value)
        return {key: resolved(v) for key, v in value.items()} if isinstance(value, dict) else value

    dtypes = [*(getattr(torch, port.dtype) for port in graph.ports), *[torch.float32] * len(graph.caches)]
    given = iter(zip(shapes, dtypes, strict=True))
    constants = {name: torch.from_numpy(np.array(value)) for name, value in graph.constants.items()}
    specs: list[Any] = []
    for node in graph.nodes:
        fx_node = fx.create_node(node.op, _target(node), resolved(node.args), resolved(node.kwargs), node.name)
        made[node.name] = fx_node
        if node.op == "placeholder":
            held = node.name in constants
            kind = InputKind.CONSTANT_TENSOR if held else InputKind.USER_INPUT
            if not held:
                shape, dtype = next(given)
                fx_node.meta["tensor_meta"] = SimpleNamespace(shape=shape, dtype=dtype)
            target = node.name if held else node.target
            specs.append(SimpleNamespace(kind=kind, target=target, arg=SimpleNamespace(name=node.name)))
    none: dict[str, Any] = {}
    return SimpleNamespace(
        graph=fx,
        graph_module=torch.fx.GraphModule({}, fx),
        graph_signature=SimpleNamespace(input_specs=specs, output_specs=[]),
        range_constraints=none,
        constants=constants,
        tensor_constants=constants,
        state_dict=none,
        named_buffers=lambda: iter(()),
        named_parameters=lambda: iter(()),
    )


def _target(node: PlainNode) -> Any:
    if node.op != "call_function":
        return node.target
    if node.target.startswith(_OPERATOR):
        return getattr(operator, node.target.removeprefix(_OPERATOR))
    if node.target.startswith(_EDGE):
        return _named(node.target)
    return _torch_op(node.target)


def _torch_op(name: str) -> Any:
    import torch

    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _named(name: str) -> Callable[..., None]:
    """What stands for an op of ours: the importer goes by names that leave the namespace out, in which ours would pass
    for PyTorch's."""

    def op(*_: Any) -> None:
        raise NotImplementedError

    op.__name__ = name
    return op
