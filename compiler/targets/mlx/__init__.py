"""MLX: a folder in the layout of mlx-community, which mlx-lm and mlx-swift load as their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.targets.base import Target


def __getattr__(name: str) -> Any:
    if name != "TARGET":
        raise AttributeError(name)
    from compiler.targets.mlx.target import MlxTarget

    target: Target = MlxTarget()
    return target
