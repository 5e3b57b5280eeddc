"""Running a captured entry node by node, with some of its values rounded: the meaning of `compiler/activations.py`.

What is computed here is what a runtime's integer kernels have to give; entry vectors are made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.fx.node import map_arg

from compiler.activations import Affine
from compiler.dialect import edge
from compiler.graph import Node

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

Values = dict[Node, Any]
Change = Callable[[Node, "Tensor"], "Tensor"]
"""From a value as it is computed to the value that everything behind it gets."""


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
            for source in (*self.nodes[at].all_input_nodes, self.nodes[at]):
                if source not in kept:
                    kept.add(source)
                    self._dead[at].append(source)

    def begin(self, tensors: Sequence[Tensor], change: Change = unchanged) -> Values:
        """The values before the first operation. tensors: inputs and states, in the order of their ports."""
        given = zip(self.inputs, tensors, strict=True)
        return {**self._constants, **{node: change(node, tensor) for node, tensor in given}}

    def run(self, values: Values, change: Change = unchanged, start: int = 0, stop: int | None = None) -> Values:
        """Carry out operations `start:stop` on the values before them, in place; what nothing reads later goes."""
        for at in range(start, len(self.nodes) if stop is None else stop):
            node = self.nodes[at]
            found = node.target(*map_arg(node.args, values.__getitem__), **map_arg(node.kwargs, values.__getitem__))
            values[node] = change(node, found)
            for spent in self._dead[at]:
                values.pop(spent)
        return values

    def answer(self, tensors: Sequence[Tensor], change: Change = unchanged) -> list[Any]:
        """The outputs of one call."""
        values = self.run(self.begin(tensors, change), change)
        return [values[node] for node in self.outputs]
