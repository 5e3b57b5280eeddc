"""ONNX Runtime Mobile: a folder that onnxruntime-genai loads as it is and plain onnxruntime runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.targets.base import Target


def __getattr__(name: str) -> Any:
    if name != "TARGET":
        raise AttributeError(name)
    from compiler.targets.onnx.target import OnnxTarget

    target: Target = OnnxTarget()
    return target
