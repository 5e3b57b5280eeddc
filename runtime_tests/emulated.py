"""An artifact in the ARM64 build of its runtime, on an emulated CPU: are its answers right with those instructions?

What lives here: starting a quality job there, and what of its result counts. What must not: time and memory, which an
emulator has nothing to say about, and the tier itself (``device_farm/arm64_tier.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from artifacts import Check, EdgewrightError, Figure, Manifest, Progress, checked, ran_here, scratch_folder
from device_farm import arm64, arm64_counts, arm64_tier
from runtime_tests.counting import counted, counts
from runtime_tests.jobs import Job
from runtime_tests.process import Failure, child_command, child_environment, failure_of, forward, run_child
from runtime_tests.vectors import PARITY

TARGETS = ("onnx", "tvm")
# a prompt and decoding after it; a whole golden text takes an hour on an emulated Cortex-A53
_TOKENS = 96


@dataclass
class Emulated:
    """What was found on one CPU."""

    figures: list[Figure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def require(manifest: Manifest, artifact: Path, *, emulated: bool = True) -> None:
    """Raises EdgewrightError for an artifact without a runtime for ARM64 Linux, MissingTool without the tier.

    emulated: whether it takes an emulator.
    """
    if manifest.target not in TARGETS:
        raise EdgewrightError(
            f"{artifact}: the runtime of the target {manifest.target} has no build for ARM64 Linux; validate it "
            f"without --arm64 and --device, which are for {' and '.join(TARGETS)}"
        )
    arm64_tier.installed(emulated=emulated)


def on_cpu(job: Job, manifest: Manifest, cpu: str, progress: Progress) -> Emulated:
    """Parity by the rules of this machine's, over less of the golden text, and the integer instructions reached.

    cpu: a key of `arm64.CPUS`.
    """
    found = Emulated()
    stand_in = f"qemu-aarch64 -cpu {arm64.CPUS[cpu]}"
    asked = job.model_copy(update={"kind": "quality", "threads": 1, "steps": 1, "golden_tokens": _TOKENS, "film": None})
    with scratch_folder() as scratch:
        log = scratch / "reached"

        def said(stage: str, done: int, total: int) -> None:
            progress(f"ARM64 {cpu}: {stage}", done, total)

        ended = run_child(asked, forward(said), partial(_start, cpu, {"log": log}))
        if (failure := failure_of(f"ARM64 {cpu} ({stand_in})", ended)) is not None:
            found.failures.append(failure)
            return found
        reached = ", ".join(arm64.integer_instructions(log)) or "none"
    stand_in = f"{stand_in}, which reached of the integer instructions: {reached}"
    about = {"obtained": "emulated", "stand_in": stand_in}
    for item in map(Check.model_validate, ended.result["checks"]):
        if item.group == PARITY:
            named = {"group": f"ARM64 {cpu}", "name": f"arm64_{cpu}_{item.name}"}
            found.checks.append(Check.model_validate({**item.model_dump(), **named, **about}))
    if not found.checks:
        found.failures.append(Failure(f"ARM64 {cpu} ({stand_in})", "nothing of the package could be compared", ""))
    name = f"arm64_{cpu}_integer_instructions"
    found.figures.append(Figure.model_validate({"name": name, "value": reached, "unit": "reached", **about}))
    count_on(job, cpu, found, progress)
    return found


def count_on(job: Job, cpu: str, found: Emulated, progress: Progress) -> None:
    """Add the instructions that a call of each entry executes, or why they cannot be counted. A baseline may hold them,
    nothing else limits them."""
    if (problem := arm64_tier.uncounted()) is not None:
        found.warnings.append(f"ARM64: instruction counts: not available: {problem}")
        return
    stage = f"ARM64 {cpu}: counting instructions"
    stand_in = f"qemu-aarch64 -cpu {arm64.CPUS[cpu]}, whose plugin counts instructions, which say nothing of time"
    progress(stage, 0, 1)
    with scratch_folder() as scratch:
        log = scratch / "marks"
        ended = run_child(counted(job), forward(progress), partial(_start, cpu, {"counts": log}))
        if (failure := failure_of(f"ARM64 {cpu} ({stand_in})", ended)) is not None:
            found.failures.append(failure)
            return
        entries = counts(ended.result, arm64_counts.marks(log))
    progress(stage, 1, 1)
    for item in entries:
        sizes = {name: size for name, size in item.sizes.items() if size > 1}
        words = [f"arm64_{cpu}", item.component, item.entry, *(f"{size}_{name}" for name, size in sizes.items())]
        label = f"{item.component}.{item.entry}{''.join(f', {size:,} {name}' for name, size in sizes.items())}"
        figure = ran_here("_".join([*words, "instructions"]), round(item.instructions), "instructions", stand_in)
        label += ": instructions" if item.calls == 1 else f": instructions, mean of {item.calls:,} calls"
        found.checks.append(checked(figure, f"ARM64 {cpu}", label, None, "at most"))


def _start(cpu: str, logs: dict[str, Path], job: Job, folder: Path) -> tuple[list[str], dict[str, str]]:
    """See `Start`: in the tier's Python, alike every time, with one of its logs."""
    _, *arguments = child_command(job, folder)
    alike = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TVM_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return arm64_tier.python(arguments, cpu=cpu, **logs), arm64_tier.environment({**child_environment(), **alike})
