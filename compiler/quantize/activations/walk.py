"""Running a captured entry node by node, with some of its values rounded: the meaning of `compiler/activations.py`.

What is computed here is what a runtime's integer kernels have to give; entry vectors are made from it. A value is gone
with the last operation that reads it, which writes over it where it can: two of the widest are a hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.fx.node import map_arg

from compiler.activations import Affine
from compiler.dialect import edge
from compiler.graph import Node, op_name
from compiler.over import OVER

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Values = dict[Node, Any]
Change = Callable[[Node, Tensor], Tensor]
"""From a value as it is computed to the value that everything behind it gets."""

# what gives memory of its own, which no other value shares
_NEW = (
    *("edge::convolution", "edge::bias", "edge::scale", "edge::linear", "aten::cat", "aten::add", "aten::mul"),
    *("aten::relu", "aten::leaky_relu", "aten::sigmoid", "aten::gelu", "aten::group_norm", "aten::avg_pool2d"),
    *("aten::upsample_nearest2d", "aten::upsample_bilinear2d", "aten::upsample_linear1d"),
)
# what may give another view of the memory of its first operand
_VIEWS = ("aten::view", "aten::reshape", "aten::permute", "aten::transpose", "aten::slice", "aten::pixel_shuffle")


def unchanged(node: Node, value: Tensor) -> Tensor:
    return value


def rounding(affines: Mapping[Node, Affine]) -> Change:
    """Some values rounded."""

    def change(node: Node, value: Tensor) -> Tensor:
        affine = affines.get(node)
        return value if affine is None else edge.rounded(value, node.name, affine.scale, affine.zero)

    return change


class Walk:
    """A captured entry. nodes: its operations in order; inputs, outputs: the values that it is given, and gives."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.nodes: list[Node] = [node for node in program.graph.nodes if node.op == "call_function"]
        by_name = {node.name: node for node in program.graph.nodes}
        self.outputs: list[Node] = [by_name[spec.arg.name] for spec in signature.output_specs]
        self.inputs = [by_name[spec.arg.name] for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
        held = {**program.state_dict, **program.constants}
        self._constants = {
            by_name[s.arg.name]: held[s.target] for s in signature.input_specs if s.kind.name != "USER_INPUT"
        }
        self._dead: list[list[Node]] = [[] for _ in self.nodes]
        kept = set(self.outputs)
        for at in reversed(range(len(self.nodes))):
            for source in self.nodes[at].all_input_nodes:
                if source not in kept:
                    kept.add(source)
                    self._dead[at].append(source)
        self._over = self._written_over()

    def _written_over(self) -> dict[Node, Callable[..., Tensor]]:
        """Operations that may write over their first operand: nothing that shares its memory is read any more."""
        last = {node: at for at, dead in enumerate(self._dead) for node in dead}
        memory = _memory(self.nodes)
        found: dict[Node, Callable[..., Tensor]] = {}
        sharing: dict[Node, list[Node]] = {}
        for node, owner in memory.items():
            sharing.setdefault(owner, []).append(node)
        for at, node in enumerate(self.nodes):
            over = OVER.get(op_name(node))
            if over is None or (x := node.args[0]) not in memory or last.get(x) != at:
                continue
            others = (other for other in sharing[memory[x]] if other is not x)
            if _alike(x, node) and all(last.get(other, at) < at for other in others):
                found[node] = over
        return found

    def begin(self, tensors: Sequence[Tensor], change: Change = unchanged) -> Values:
        """The values before the first operation. tensors: inputs and states, in the order of their ports."""
        given = zip(self.inputs, tensors, strict=True)
        return {**self._constants, **{node: change(node, tensor) for node, tensor in given}}

    def run(
        self,
        values: Values,
        change: Change = unchanged,
        start: int = 0,
        stop: int | None = None,
        *,
        over: bool = False,
    ) -> Values:
        """Carry out operations `start:stop` on the values before them, in place; what nothing reads later goes.

        over: their tensors may be written over too, as nobody else has them.
        """
        for at in range(start, len(self.nodes) if stop is None else stop):
            node = self.nodes[at]
            made = self._computed(node, values, over)
            for spent in self._dead[at]:
                values.pop(spent)
            values[node] = change(node, made)
            del made  # which may be another tensor, and as wide
        return values

    def _computed(self, node: Node, values: Values, over: bool) -> Any:
        args, named = map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)
        function = node.target
        # what is computed of constants alone stays float32 in a walk in float64, and cannot take a wider value in
        if over and node in self._over and len({value.dtype for value in args if isinstance(value, Tensor)}) == 1:
            function = self._over[node]
        return function(*args, **named)

    def answer(self, tensors: Sequence[Tensor], change: Change = unchanged) -> list[Any]:
        """The outputs of one call. change: gives the tensor that it gets, or a new one, and keeps neither."""
        values = self.run(self.begin(tensors, change), change, over=True)
        return [values[node] for node in self.outputs]


def _memory(nodes: Sequence[Node]) -> dict[Node, Node]:
    """Values whose memory is known, each with the one that it was made for; others might share theirs with anything."""
    found: dict[Node, Node] = {}
    unknown = set()
    for node in nodes:
        name = op_name(node)
        if name in _NEW:
            found[node] = node
        elif name in _VIEWS and node.args[0] in found:
            found[node] = found[node.args[0]]
        else:
            unknown |= {found[source] for source in node.all_input_nodes if source in found}
    return {node: owner for node, owner in found.items() if owner not in unknown}


def _alike(x: Node, y: Node) -> bool:
    a, b = x.meta["val"], y.meta["val"]
    return bool(a.shape == b.shape and a.dtype == b.dtype)
