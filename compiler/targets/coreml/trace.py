"""The reference for a package's intermediate values: every value of the captured graph, from PyTorch.

For comparing a converted program operation by operation (`runtime_tests.mil.bisect`): the names are those that the
conversion started from, the weights the same dequantized ones. Streams weights like every reference here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.models.decoder import DecoderSpec
from compiler.slots import Schemes, Weights

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


def decoder_values(
    spec: DecoderSpec,
    schemes: Schemes,
    weights: Weights,
    max_tokens: int,
    ids: list[int],
    *,
    position: int = 0,
    length: int | None = None,
) -> dict[str, Tensor]:
    """Every value of one call on `ids` that enter caches of zeros at `position`.

    length: as the function was captured, None for a flexible one.
    """
    import torch

    from compiler import dialect
    from compiler.targets.coreml.capture import cache_names, capture

    program = capture(spec, schemes, max_tokens, length=length, stateful=False)
    shape = (1, spec.kv_heads, max_tokens, spec.head_dim)
    caches = [torch.zeros(shape) for _ in cache_names(spec.layers)]
    tokens = torch.tensor([ids], dtype=torch.int32)
    with dialect.weights(weights):
        values = program_values(program, (tokens, torch.tensor([position], dtype=torch.int32), *caches))
    output = next(node for node in program.graph.nodes if node.op == "output")
    values["logits"] = values.pop(output.args[0][0].name)  # the converter gives outputs the names of features
    return values
