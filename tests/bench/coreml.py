"""The Core ML figures: 3.43B parameters to INT4, prefill and decode in one package, every payload read back.

python -m tests.bench.coreml [--work FOLDER] [--quantized FOLDER] [full] [verify]

Limits: 750 MB at the peak, 90 s for both conversions and binding. The peak is that of the compiling process and its
conversion process together, sampled from /proc.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.measure import MB, python, size_of, table
from tests.bench.synthetic import make_checkpoint

if TYPE_CHECKING:
    from compiler.targets.base import BuildJob

MAX_TOKENS = 4096


def tree_bytes(pid: int) -> int:
    """Resident bytes of a process and everything it started."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total = int(line.split()[1]) * 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += tree_bytes(int(child))
    except OSError:
        return total
    return total


def lower(quantized: Path, out: Path) -> dict[str, float]:
    """One package from quantized weights, in this process and the one it starts."""
    import os
    import resource

    from compiler.targets import load_target

    job = _job(quantized)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, tree_bytes(os.getpid()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    marks: dict[str, float] = {}
    started = time.monotonic()

    def progress(stage: str, count: int, total: int) -> None:
        marks.setdefault(f"{stage} {count}" if stage == "converting" else stage, time.monotonic() - started)

    load_target("coreml").build(job, out, progress)
    seconds = time.monotonic() - started
    done.set()
    sampler.join()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, **marks}


def check(quantized: Path, out: Path) -> dict[str, int]:
    """Read every payload of the package back."""
    from tests.compiler.targets.coreml.payloads import open_package, verify

    return {"payloads": verify(open_package(out), _job(quantized))}


def _job(quantized: Path) -> BuildJob:
    from compiler.models.base import read_model
    from compiler.quantize.packed import PackedWeights
    from compiler.targets.base import BuildJob
    from compiler.targets.coreml.options import CoreMLOptions

    weights = PackedWeights(quantized)
    model = read_model(weights.config, None, MAX_TOKENS)
    return BuildJob("bench", model, weights.schemes, CoreMLOptions(), weights, quantized)


def quantize(source: Path, out: Path, group: int) -> Path:
    """The checkpoint rounded to INT4, once."""
    from artifacts import silent
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint
    from edgewright.api import recipe_type

    recipe = recipe_type().model_validate(
        {
            "name": "bench",
            "checkpoint": {"path": str(source)},
            "quantize": {"rules": [{"match": "*", "bits": 4, "group": group}]},
            "context": {"max_tokens": MAX_TOKENS},
            "targets": {"coreml": {}},
        }
    )
    return pipeline.quantize(recipe, Checkpoint(source), "bench", None, out, silent).folder


def full(work: Path, quantized: Path | None) -> int:
    """Compile and verify; 1 when a limit is passed."""
    if quantized is None:
        source = make_checkpoint(work / "ministral-3-3b", "ministral-3-3b")
        quantized = work / "coreml-quantized"
        python("tests.bench.coreml", "--step", "quantize", source, quantized)
    out = work / "coreml"
    run = python("tests.bench.coreml", "--step", "lower", quantized, out)
    found = python("tests.bench.coreml", "--step", "check", quantized, out)
    weights = (out / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    expected = packed_bytes(quantized)
    rows: list[list[object]] = [
        ["seconds", run.result["seconds"], "≤ 90"],
        ["of CPU time, s", run.result["cpu_seconds"], ""],
        ["peak RSS of both processes, MB", round(run.result["peak_bytes"] / MB), "≤ 750"],
        ["package, MB", round(size_of(out / "model.mlpackage") / MB), ""],
        ["weight file over packed bytes and scales, %", 100 * (weights / expected - 1), "≤ 2"],
        ["payloads read back and equal", found.result["payloads"], "all"],
    ]
    table("Ministral 3 3B geometry to INT4 for Core ML, prefill and decode", ["", "value", "limit"], rows)
    stages = {k: round(v, 1) for k, v in run.result.items() if k not in ("seconds", "cpu_seconds", "peak_bytes")}
    print(f"  stages begin at (s): {json.dumps(stages)}")
    return int(run.result["seconds"] > 90 or run.result["peak_bytes"] > 750 * MB or weights > 1.02 * expected)


def packed_bytes(quantized: Path) -> int:
    """Codes and 16-bit scales of all matrices."""
    from compiler.models import decoder
    from compiler.quantize.packed import PackedWeights

    weights = PackedWeights(quantized)
    matrices = [s for s in decoder.slots(decoder.read_spec(weights.config)) if not s.is_vector]
    return sum(weights.scheme(s.name).packed_bytes(s.rows, s.columns, scale_bytes=2) for s in matrices)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--quantized", type=Path, help="a quantized checkpoint to start from")
    parser.add_argument("--step", choices=["quantize", "lower", "check"])
    parser.add_argument("paths", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.step is None:
        return full(arguments.work, arguments.quantized)
    result: Any
    if arguments.step == "quantize":
        result = str(quantize(*arguments.paths, 64))
    else:
        result = (lower if arguments.step == "lower" else check)(*arguments.paths)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
