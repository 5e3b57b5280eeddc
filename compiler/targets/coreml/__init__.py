"""Core ML: an .mlpackage whose weights are streamed in, with prefill and decode over one set of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.targets.base import Target


def __getattr__(name: str) -> Any:
    if name != "TARGET":
        raise AttributeError(name)
    from compiler.targets.coreml.target import CoreMLTarget

    target: Target = CoreMLTarget()
    return target
