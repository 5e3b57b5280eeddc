"""The reference for a package's intermediate values: every value of the captured graph, from PyTorch.

For comparing a converted program operation by operation (`runtime_tests.mil.bisect`): the names are those that the
conversion started from, the weights the same dequantized ones. Streams weights like every reference here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compiler.slots import Schemes, Weights
from compiler.targets.coreml.capture import Call, capture

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


def program_values(program: ExportedProgram, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Run an exported program on its inputs (lifted weights before the user's) and keep every tensor by node name."""
    import torch

    found: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                found[n.name] = value
            elif isinstance(value, tuple) and value and isinstance(value[0], torch.Tensor):
                found[n.name] = value[0]
            return value

    with torch.no_grad():
        Recorder(program.graph_module).run(*inputs)
    return found


def call_values(call: Call, schemes: Schemes, weights: Weights, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every value of one call of a function from states of zeros."""
    import torch

    from compiler import dialect

    program = capture(call, schemes, stateful=False)
    given = [torch.from_numpy(inputs[port.name]) for port in call.inputs]
    states = [torch.zeros(state.sized({})) for state in call.component.states]
    with dialect.weights(weights):
        values = program_values(program, (*given, *states))
    output = next(node for node in program.graph.nodes if node.op == "output")
    for port, node in zip(call.entry.outputs, output.args[0], strict=False):
        values[port.name] = values.pop(node.name)  # the converter gives outputs the names of features
    return values
