"""A captured decoder as plain data, which one process writes and another lowers, without `torch.export` there.

Loading an exported program costs 100 MB of modules that TVM's importer never asks for. What it asks for is a graph of
`torch.fx` and a signature; `program` makes both of the plain nodes. Knows no kernels, and TVM only by the shapes it is
given.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from artifacts import EdgewrightError
from compiler.graph import capture_decoder
from compiler.targets.base import Job

_GETITEM = "getitem"
# What `lower.py` turns into kernels and what upstream's converters do right, as far as tests show it.
LOWERED = frozenset(
    {_GETITEM, "aten.cat.default", "aten.mul.Tensor", "aten.silu.default", "aten.slice.Tensor", "aten.split.Tensor"}
    | {f"edge.{op}.default" for op in ("linear", "embedding", "rms_norm", "add_rms_norm", "rotary", "attention")}
)
_ALL = 1 << 40


@dataclass(frozen=True)
class Graph:
    """Which decoder to capture. tokens: 1, or None for any number up to the chunk; output: which logits."""

    tokens: int | None
    output: Literal["last", "all"]


NAMED = {"decode": Graph(1, "last"), "prefill": Graph(None, "last"), "score": Graph(None, "all")}
GRAPHS = tuple(NAMED.values())


@dataclass(frozen=True)
class Reference:
    """An argument that is another node's result."""

    name: str


@dataclass(frozen=True)
class PlainNode:
    """A node of `torch.fx`; target: the name of an op such as aten.silu.default, a placeholder's, or getitem."""

    op: str
    name: str
    target: str
    args: Any


def capture(job: Job, graph: Graph) -> list[PlainNode]:
    """The decoder of a job, with its logits as the only output.

    Raises EdgewrightError when it has ops that are not lowered, before anything is written or compiled.
    """
    import torch.fx

    map_arg: Any = torch.fx.map_arg
    found = []
    for node in capture_decoder(job.spec, job.schemes, output=graph.output, length=graph.tokens).graph.nodes:
        args = (node.args[0][:1],) if node.op == "output" else node.args
        target = _GETITEM if node.target is operator.getitem else str(node.target)
        found.append(PlainNode(node.op, node.name, target, _plain(map_arg(args, lambda n: Reference(n.name)))))
    refuse_unlowered(found)
    return found


def refuse_unlowered(nodes: list[PlainNode]) -> None:
    """Raises EdgewrightError naming the ops of a graph for which there is no lowering."""
    missing = {node.target for node in nodes if node.op == "call_function" and node.target not in LOWERED}
    for node in nodes:
        if node.target == "aten.slice.Tensor" and not (whole_slice(node.args) or last_slice(node.args)):
            missing.add(f"aten.slice.Tensor of {list(node.args[1:])}")
    if missing:
        raise EdgewrightError(f"tvm: no lowering for {', '.join(sorted(missing))}")


def whole_slice(args: Any) -> bool:
    """Whether the arguments of aten.slice (x, axis, start, stop) take all of x."""
    _, _, start, stop = (*args, None, None, None)[:4]
    return start in (0, None) and (stop is None or stop > _ALL)


def last_slice(args: Any) -> bool:
    """Whether they take the last token of [1, tokens, columns]."""
    return tuple(args[1:3]) == (1, -1)


def _plain(value: Any) -> Any:
    """Lists and tuples as Python's own: those of `torch.fx` would bring PyTorch into every process they travel to."""
    return (
        [_plain(v) for v in value]
        if isinstance(value, list)
        else (tuple(_plain(v) for v in value) if isinstance(value, tuple) else value)
    )


def program(nodes: list[PlainNode], shapes: list[tuple[Any, ...]]) -> Any:
    """What TVM's importer reads of an exported program. shapes: of the inputs, in order; the first two are int64."""
    import torch
    from torch.export.graph_signature import InputKind
    from torch.fx import Graph as FxGraph

    graph = FxGraph()
    made: dict[str, Any] = {}

    def resolved(value: Any) -> Any:
        if isinstance(value, Reference):
            return made[value.name]
        if isinstance(value, (list, tuple)):
            return type(value)(resolved(v) for v in value)
        return value

    specs: list[Any] = []
    for node in nodes:
        made[node.name] = graph.create_node(node.op, _target(node), resolved(node.args), {}, node.name)
        if node.op == "placeholder":
            dtype = torch.int64 if len(specs) < 2 else torch.float32
            made[node.name].meta["tensor_meta"] = SimpleNamespace(shape=shapes[len(specs)], dtype=dtype)
            specs.append(
                SimpleNamespace(kind=InputKind.USER_INPUT, target=node.target, arg=SimpleNamespace(name=node.name))
            )
    none: dict[str, Any] = {}
    return SimpleNamespace(
        graph=graph,
        graph_module=torch.fx.GraphModule({}, graph),
        graph_signature=SimpleNamespace(input_specs=specs, output_specs=[]),
        range_constraints=none,
        constants=none,
        tensor_constants=none,
        state_dict=none,
        named_buffers=lambda: iter(()),
        named_parameters=lambda: iter(()),
    )


def _target(node: PlainNode) -> Any:
    import torch

    if node.op != "call_function":
        return node.target
    if node.target == _GETITEM:
        return operator.getitem
    found: Any = torch.ops
    for part in node.target.split("."):
        found = getattr(found, part)
    return found
