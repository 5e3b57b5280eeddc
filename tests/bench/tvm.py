"""The TVM figures: decoding beside onnxruntime on the same packed bytes, memory at load, and compiling the full size.

python -m tests.bench.tvm [--work FOLDER] [--rounds N] [decode] [full]

Rates are medians over rounds in which both runtimes take turns, two threads each, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from tests.bench.measure import MB, python, table
from tests.bench.synthetic import ROOT, make_checkpoint

PROMPT, STEPS = 32, 64
GROUPS = (32, 128)


def build(source: Path, out: Path, group: int, target: str) -> None:
    """Child: quantize a checkpoint (unless that is done) and write one target's package, without golden vectors."""
    from artifacts import ManifestDraft, silent, staged, write_manifest
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint
    from compiler.targets import load_target
    from compiler.targets.base import Job
    from edgewright.api import recipe_type

    content = {
        "name": "bench",
        "checkpoint": {"path": str(source)},
        "quantize": {"rules": [{"match": "*", "bits": 4, "group": group}]},
        "context": {"max_tokens": 256},
        "targets": {target: {}},
    }
    recipe, checkpoint = recipe_type().model_validate(content), Checkpoint(source)
    done = pipeline.quantize(recipe, checkpoint, "bench", None, out / "quantized", silent)
    started = time.monotonic()
    with staged(out / target) as folder:
        schemes, options = done.assignment.schemes, recipe.targets[target]
        job = Job("bench", done.spec, done.slots, schemes, 256, done.weights, source, options)
        runtime = load_target(target).build(job, folder, silent)
        write_manifest(
            folder,
            ManifestDraft(
                created_by={},
                recipe={"name": "bench", "digest": recipe.digest},
                target=target,
                family="decoder",
                checkpoint=done.checkpoint,
                runtime=runtime,
                weights_digest=done.digest,
            ),
        )
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"build_s": time.monotonic() - started, "children_peak_bytes": children}))


def decode(folder: Path) -> None:
    """Child: the rate of greedy steps after a prompt, and what loading adds to anonymous memory."""
    from artifacts import read_manifest
    from device_farm import read_split
    from runtime_tests.runners import make_runner

    runner = make_runner(folder, read_manifest(folder))
    before = read_split().anonymous
    runner.load(threads=2)
    loaded = read_split().anonymous - before
    token = int(runner.prefill(np.random.default_rng(0).integers(16, 4000, PROMPT)).argmax())
    times = []
    for _ in range(STEPS):
        started = time.monotonic()
        token = int(runner.decode(token).argmax())
        times.append(time.monotonic() - started)
    after = read_split().anonymous - before
    print(json.dumps({"tokens_per_s": 1 / float(np.median(times)), "loaded_bytes": loaded, "steady_bytes": after}))


def compare(work: Path, rounds: int) -> None:
    """Decode rates of the 600M geometry."""
    source = make_checkpoint(work / "600m", "600m")
    rows: list[list[object]] = []
    for group in GROUPS:
        out = work / f"tvm-600m-g{group}"
        rates: dict[str, list[float]] = {"onnx": [], "tvm": []}
        memory: dict[str, list[float]] = {"onnx": [], "tvm": []}
        for target in rates:
            if not (out / target / "manifest.json").exists():
                python("tests.bench.tvm", "--child", "build", source, out, group, target)
        for _ in range(rounds):
            for target in rates:
                found = python("tests.bench.tvm", "--child", "decode", out / target).result
                rates[target].append(found["tokens_per_s"])
                memory[target] = [found["loaded_bytes"] / MB, found["steady_bytes"] / MB]
        base = statistics.median(rates["onnx"])
        for target, found in rates.items():
            rate = statistics.median(found)
            name = {"onnx": "onnxruntime", "tvm": "TVM"}[target]
            rows.append([f"{name}, group {group}", rate, f"{rate / base:.2f}", *map(round, memory[target])])
    header = ["600M, INT4, two threads", "tok/s", "x onnxruntime", "anonymous MB after load", "and after decoding"]
    table("Decoding beside onnxruntime", header, rows)


def full(work: Path) -> None:
    """3.43B parameters, INT4 group 64: limits 600 MB in any process, 1.95 GB of parameters."""
    source = make_checkpoint(work / "ministral-3-3b", "ministral-3-3b")
    out = work / "tvm-full"
    run = python("tests.bench.tvm", "--child", "build", source, out, 64, "tvm")
    peak = max(run.peak_bytes, run.result["children_peak_bytes"])
    size = (out / "tvm" / "params.bin").stat().st_size
    header = ["Ministral 3 3B geometry, INT4 group 64", "seconds", "of them building", "peak RSS MB", "parameters GB"]
    row: list[object] = ["edgewright", run.seconds, run.result["build_s"], round(peak / MB), size / 1e9]
    table("Compiling for TVM, every triple and variant", header, [row])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        if sys.argv[2] == "decode":
            decode(Path(sys.argv[3]))
        else:
            build(Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("parts", nargs="*", choices=["decode", "full", []])
    arguments = parser.parse_args()
    parts = arguments.parts or ["decode", "full"]
    if "decode" in parts:
        compare(arguments.work, arguments.rounds)
    if "full" in parts:
        full(arguments.work)


if __name__ == "__main__":
    main()
