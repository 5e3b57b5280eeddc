"""What this machine can do: which runtimes are installed, and what is missing with the command that brings it."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

from edgewright import streams
from edgewright.arguments import command, output

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


def declare(commands: Any) -> None:
    """Add it to the command line."""
    output(command(commands, "doctor", run, "show what this machine can run, and how to get what is missing"))


def run(args: argparse.Namespace) -> int:
    """Run `edgewright doctor`."""
    found = findings()
    if args.json:
        streams.write_json({"findings": [asdict(finding) for finding in found]})
        return 0
    for finding in found:
        advice = f"  → {finding.advice}" if finding.advice else ""
        streams.write_lines(f"{'✗' if finding.advice else '✓'} {finding.subject:22} {finding.state}{advice}")
    return 0


def findings() -> list[Finding]:
    """Every runtime and tool that a recipe may need, without importing any of them."""
    from device_farm import arm64, arm64_tier, available_mechanisms

    found = []
    for target, modules in _RUNTIMES.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        advice = f"pip install 'edgewright[{target}]'" if absent else None
        found.append(Finding(f"target {target}", f"no module {', '.join(absent)}" if absent else "ready", advice))
    problem = arm64.missing()
    state, _, advice = problem.partition(": ") if problem else ("ready", "", None)
    found.append(Finding("ARM64 emulation", state, advice))
    problem = arm64_tier.missing()
    state, _, advice = problem.partition(": ") if problem else (f"ready in {arm64_tier.place()}", "", None)
    found.append(Finding("ARM64 tier", state, advice))
    problem = arm64_tier.uncounted()
    state, _, advice = problem.partition(": ") if problem else ("ready, by a plugin of qemu", "", None)
    found.append(Finding("instruction counts", state, advice))
    mechanisms = available_mechanisms()
    advice = (
        None if len(mechanisms) > 1 else "run as root, or delegate a memory cgroup, for limits that the kernel keeps"
    )
    found.append(Finding("memory sandbox", ", ".join(mechanisms), advice))
    return found
