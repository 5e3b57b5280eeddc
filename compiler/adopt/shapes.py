"""The shapes of a state dict by name, as the files in `published/` look at them. Loads no framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from compiler.tensors import CheckpointError


class Shapes(Mapping[str, tuple[int, ...]]):
    """A mapping that knows its file, so that what is missing from it is named."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path, self._shapes = path, shapes

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def size(self, name: str, axis: int = 0) -> int:
        """A tensor's size along an axis, from 1 up. Raises CheckpointError naming a tensor that has none."""
        if name not in self._shapes:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing")
        found = self._shapes[name]
        if len(found) <= axis or not found[axis]:
            raise CheckpointError(f"{self.path}: tensor {name!r} has shape {list(found)}")
        return found[axis]

    def count(self, module: str) -> int:
        """How many modules are numbered below `module`, from 0 on."""
        numbers = {name.removeprefix(f"{module}.").split(".")[0] for name in self if name.startswith(f"{module}.")}
        return next(at for at in range(len(numbers) + 1) if str(at) not in numbers)
