"""What this machine can do: which runtimes are installed, and what is missing with the command that brings it."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass

_RUNTIMES = {
    "onnx": ("onnxruntime", "onnxruntime_genai"),
    "coreml": ("coremltools",),
    "mlx": ("mlx", "mlx_lm"),
    "tvm": ("tvm", "ziglang"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that Edgewright can use. `advice` says how to get it; None when it is there."""

    subject: str
    state: str
    advice: str | None = None


def findings() -> list[Finding]:
    """Every runtime and tool that a recipe may need, without importing any of them."""
    from device_farm import arm64, available_mechanisms

    found = []
    for target, modules in _RUNTIMES.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        advice = f"pip install 'edgewright[{target}]'" if absent else None
        found.append(Finding(f"target {target}", f"no module {', '.join(absent)}" if absent else "ready", advice))
    compiler = shutil.which("g++") or shutil.which("clang++")
    advice = None if compiler else "install g++ or clang++; without one MLX runs its kernels uncompiled"
    found.append(Finding("MLX compiled kernels", compiler or "no C++ compiler", advice))
    problem = arm64.missing()
    state, _, advice = problem.partition(": ") if problem else ("ready", "", None)
    found.append(Finding("ARM64 emulation", state, advice))
    mechanisms = available_mechanisms()
    advice = (
        None if len(mechanisms) > 1 else "run as root, or delegate a memory cgroup, for limits that the kernel keeps"
    )
    found.append(Finding("memory sandbox", ", ".join(mechanisms), advice))
    return found
