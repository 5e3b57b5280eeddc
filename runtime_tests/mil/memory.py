"""Memory of a package from its program alone: what is clean and mapped, what is dirty. Modelled, never measured.

iOS charges an app's dirty memory (phys_footprint): states, inputs and outputs, and the intermediate values alive at
the worst moment. Weights stay in their mapped file. The program is run on shapes only, so this costs no arithmetic
and no weight is read; every result counts in its declared type until its last use, except where it is the same memory
under another shape, or an update of a state in place.

The band is what the runtime may make of it: at best it fuses everything and only states, inputs and outputs remain; at
worst it also keeps the largest weight decompressed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime_tests.mil.package import Package
from runtime_tests.mil.program import Function
from runtime_tests.mil.values import DTYPES, LazyTensor

_SAME_MEMORY = frozenset({"reshape", "expand_dims", "squeeze", "identity", "read_state"})


@dataclass(frozen=True)
class Memory:
    """Bytes of one function at one length. weights: its files; largest_weight: the largest one, decompressed."""

    weights: int
    states: int
    interface: int
    activations: int
    largest_weight: int

    @property
    def dirty(self) -> int:
        """What phys_footprint would charge."""
        return self.states + self.interface + self.activations

    @property
    def band(self) -> tuple[int, int]:
        """Lowest and highest that the runtime may come to."""
        return self.states + self.interface, self.dirty + self.largest_weight


def account(package: Package, name: str, inputs: dict[str, Tensor]) -> Memory:
    """Count one call of a function with inputs of these shapes; those that are not given have fixed ones."""
    function = Function(package, name, shapes_only=True)
    inputs = {
        key: torch.as_tensor(inputs[key]).to(DTYPES[dtype])
        if key in inputs
        else torch.zeros([size or 0 for size in shape], dtype=DTYPES[dtype], device="meta")
        for key, (dtype, shape) in function.inputs.items()
    }
    sizes: dict[str, int] = {}
    kinds: dict[str, str] = {}

    def watch(kind: str, value_name: str, value: Tensor) -> None:
        sizes[value_name] = value.numel() * value.element_size()
        kinds[value_name] = kind

    outputs = function(inputs, watch=watch)
    states = sum(_bytes(value) for value in function.make_state().values())
    given = sum(_bytes(torch.as_tensor(value)) for value in inputs.values())
    interface = given + sum(_bytes(value) for value in outputs.values())
    weights = [v for v in function.constants.values() if isinstance(v, (LazyTensor, Tensor))]
    largest = max((_count(v) for v in weights), default=0) * 2
    files = package.path / "Data/com.apple.CoreML/weights"
    mapped = sum(file.stat().st_size for file in files.iterdir()) if files.is_dir() else 0
    return Memory(mapped, states, interface, _peak(function.block, sizes, kinds), largest)


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _count(value: Any) -> int:
    return int(value.numel) if isinstance(value, LazyTensor) else int(value.numel())


def _peak(block: Any, sizes: dict[str, int], kinds: dict[str, str]) -> int:
    """The largest sum of values alive after any operation, in the program's order."""
    owner: dict[str, str] = {}
    last: dict[str, int] = {}
    in_place: set[str] = set()
    for at, operation in enumerate(block.operations):
        for key, argument in operation.inputs.items():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    root = owner.get(binding.name, binding.name)
                    last[root] = at
                    if operation.type == "write_state" and key == "data":
                        in_place.add(root)
        if operation.type in _SAME_MEMORY and operation.outputs:
            source = next(iter(operation.inputs.values())).arguments[0].name
            owner[operation.outputs[0].name] = owner.get(source, source)
    alive = peak = 0
    ends: dict[int, int] = {}
    for at, operation in enumerate(block.operations):
        for declared in operation.outputs:
            name = declared.name
            if name in owner or name in in_place or name not in kinds:
                continue
            alive += sizes[name]
            end = last.get(name, at)
            ends[end] = ends.get(end, 0) + sizes[name]
        peak = max(peak, alive)
        alive -= ends.pop(at, 0)
    return peak
