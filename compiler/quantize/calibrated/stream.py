"""Running a captured graph node by node: with weights that are held while they are needed, and values kept in files.

Two streams run side by side when a model is quantized, the unquantized one and the one in which every earlier matrix
is quantized already. What must not live here: which values are kept, and why (`segments.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.fx.node import map_arg

from compiler import dialect
from compiler.graph import Captured, Node
from compiler.quantize.calibrated.kinds import kind_of
from compiler.quantize.calibrated.segments import Plan
from compiler.quantize.calibrated.states import Spill
from compiler.quantize.calibrated.task import Inputs
from compiler.slots import Weights

if TYPE_CHECKING:
    from torch import Tensor


class Stream:
    """A model at work on the samples.

    table: slots that are no matrices. matrix: what a node that reads a matrix computes with, see `kinds.Kind`.
    held: these, of the nodes about to run. spills: the values that are in files.
    """

    def __init__(
        self,
        name: str,
        captured: Captured,
        samples: Inputs,
        folder: Path,
        table: Weights,
        matrix: Callable[[Node], Any],
    ) -> None:
        self.name = name
        self.held: dict[Node, Any] = {}
        self.spills: dict[Node, Spill] = {}
        self._lent: frozenset[Node] = frozenset()
        self._captured, self._samples, self._folder = captured, samples, folder
        self._table, self._matrix = table, matrix

    def branch(self, name: str) -> Stream:
        """A stream of the same weights that starts from the values of this one, and leaves them their files."""
        other = Stream(name, self._captured, self._samples, self._folder, self._table, self._matrix)
        other.spills, other._lent = dict(self.spills), frozenset(self.spills)
        return other

    def hold(self, plan: Plan) -> None:
        """Get the weights that a plan needs."""
        for node, _ in plan.steps:
            if kind_of(node) is not None and node not in self.held:
                self.held[node] = self._matrix(node)

    def release(self, plan: Plan) -> None:
        """Let go of the weights that a plan needed."""
        for node, _ in plan.steps:
            self.held.pop(node, None)

    def run(self, plan: Plan, sample: int) -> dict[Node, Tensor]:
        """The values that a plan leads to; those that it starts from are read from their files."""
        values: dict[Node, Any] = dict(zip(self._captured.inputs, self._samples[sample], strict=True))
        values |= self._captured.constants
        values |= {node: self.spills[node].read(sample) for node in plan.known}
        with dialect.weights(self._table):
            for node, dead in plan.steps:
                arguments = map_arg(node.args, values.__getitem__)
                kind = kind_of(node)
                if kind is None:
                    values[node] = node.target(*arguments, **map_arg(node.kwargs, values.__getitem__))
                else:
                    values[node] = kind.compute(node, arguments[0], self.held[node])
                for spent in dead:
                    values.pop(spent)
        return {node: values[node] for node in plan.wanted}

    def create(self, nodes: Iterable[Node]) -> list[Node]:
        """Make files for the values that have none; which these are."""
        new = [node for node in nodes if node not in self.spills]
        for node in new:
            self.spills[node] = self.spill(node)
            self.spills[node].create()
        return new

    def write(self, values: dict[Node, Tensor], nodes: Iterable[Node], sample: int) -> None:
        """Write values to their files."""
        for node in nodes:
            self.spills[node].write(sample, values[node])

    def find(self, nodes: Iterable[Node]) -> bool:
        """Take up the files that `create` made in an earlier run; whether all are there."""
        found = {node: self.spill(node) for node in nodes if node not in self.spills}
        if not all(spill.exists for spill in found.values()):
            return False
        self.spills |= found
        return True

    def keep_only(self, nodes: Iterable[Node]) -> None:
        """Let go of all other values, and delete their files."""
        for node in set(self.spills) - set(nodes):
            spill = self.spills.pop(node)
            if node not in self._lent:
                spill.delete()

    def spill(self, node: Node) -> Spill:
        """The file of a value."""
        value = node.meta["val"]
        path = self._folder / f"{self.name}-{node.name}.values"
        return Spill(path, len(self._samples), tuple(value.shape), value.dtype)
