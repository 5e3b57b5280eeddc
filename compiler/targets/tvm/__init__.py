"""TVM: one small native library per CPU variant and one mapped parameter file, for apps that want no framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.targets.base import Target


def __getattr__(name: str) -> Any:
    if name != "TARGET":
        raise AttributeError(name)
    from compiler.targets.tvm.target import TvmTarget

    target: Target = TvmTarget()
    return target
