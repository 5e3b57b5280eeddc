"""A function of a package as Core ML sees it, and its capture: inputs, states, and a module of edge ops.

    forward(*inputs, *states) -> (*outputs, *states)

States are buffers that forward changes (coremltools makes states of them) or inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifacts.formats.coreml import LAST_POSITION, Image
from compiler.models.base import Component, Entry, Port
from compiler.slots import Schemes

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

NARROW = {"int64": "int32", "uint8": "int32"}
"""Core ML has no wider whole numbers."""
FLOAT32 = "float32_"
"""Begins the names of operations that compute in float32, whatever the compute precision."""
Sizes = tuple[int, ...] | tuple[None, int, int]
"""Sizes that a named dimension may have: a list of them, or (None, smallest, largest) for all between."""


@dataclass(frozen=True)
class Call:
    """One function: which entry it serves, its own inputs, and what its named dimensions may be.

    module: as a component's. firsts, image: see `artifacts.formats.coreml.Function`; a module takes the image's values.
    """

    function: str
    component: Component
    entry: Entry
    inputs: tuple[Port, ...]
    module: Callable[[Schemes], torch.nn.Module]
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    firsts: Mapping[str, str] = field(default_factory=dict)
    image: Image | None = None

    @property
    def example(self) -> dict[str, int]:
        """A size for every dimension: its only one, or one that no other dimension is likely to have."""
        return {
            name: sizes[0] if len(sizes) == 1 and sizes[0] is not None else min(3 + 2 * at, self._largest(sizes))
            for at, (name, sizes) in enumerate(self.sizes.items())
        }

    @staticmethod
    def _largest(sizes: Sizes) -> int:
        return max(size for size in sizes if size is not None)


def capture(call: Call, schemes: Schemes, *, stateful: bool) -> ExportedProgram:
    """Export one function; dimensions that take one size only are fixed."""
    import torch
    from torch.export import Dim

    body = call.module(schemes)
    states = call.component.states
    example = call.example

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for state in states if stateful else ():
                # never touched, so never in memory: a long context's caches are gigabytes
                self.register_buffer(state.name, torch.empty(state.sized({}), dtype=torch.float16))

        def forward(self, *tensors: torch.Tensor) -> Any:
            if not stateful:
                return tuple(body(*tensors))
            kept = [getattr(self, state.name) for state in states]
            found = body(*tensors, *kept)
            outputs, written = found[: len(found) - len(kept)], found[len(found) - len(kept) :]
            for old, new in zip(kept, written, strict=True):
                old.copy_(new)
            return tuple(outputs)

    ports = [*call.inputs, *(() if stateful else states)]
    tensors = tuple(torch.empty(p.sized(example), dtype=getattr(torch, NARROW.get(p.dtype, p.dtype))) for p in ports)
    free = {
        name: Dim(name, min=1, max=max(n for n in sizes if n is not None))
        for name, sizes in call.sizes.items()
        if len(sizes) > 1
    }
    shapes = tuple({at: free[d] for at, d in enumerate(p.shape) if d in free} for p in ports)
    with torch.no_grad():
        program: ExportedProgram = torch.export.export(Model(), tensors, dynamic_shapes=(shapes,))
        program = program.run_decompositions({})  # functional: states are replaced, not changed
    if call.image is not None:
        at = [port.name for port in call.inputs].index(call.image.feature)
        node = next(n for n in program.graph.nodes if n.name == program.graph_signature.user_inputs[at])
        for _ in range(2):  # minus the mean, by the spread
            (node,) = node.users
            node._rename(FLOAT32 + node.name)
    for node in program.graph.nodes:
        if str(node.target) == "aten.slice.Tensor" and node.args[2] == -1:
            node._rename(LAST_POSITION)
        elif str(node.target) == "aten.embedding.default":  # of a table that the graph holds itself: angles
            node._rename(FLOAT32 + node.name)
        elif str(node.target) == "aten.grid_sampler.default" and node.args[0].meta["val"].ndim == 5:
            _precise(node.args[1])
    return program


def _precise(node: Any) -> None:
    """Have coordinates computed in float32, from the products on that they come of."""
    if node.op == "call_function" and "matmul" not in str(node.target) and not node.name.startswith(FLOAT32):
        node._rename(FLOAT32 + node.name)
        for before in node.all_input_nodes:
            _precise(before)
