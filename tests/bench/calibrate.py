"""One calibrated quantization in a process of its own, with progress and the time left on stderr; killed, it goes on.

    python -m tests.bench.calibrate CHECKPOINT OUT METHOD [LAYERS]

LAYERS: only the first so many, for a machine that has no hours: peak memory does not depend on it, time is linear.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from artifacts import Progress
from compiler.checkpoint import Checkpoint
from compiler.drivers import driver_of
from compiler.models.base import read_model
from compiler.quantize import runner
from compiler.quantize.rules import assign
from recipes.schema import Calibration
from tests.bench.measure import high_water

TOKENS = 16384
_EVERY_SECONDS = 30.0


def first_layers(source: Path, out: Path, layers: int) -> Path:
    """The same weight files under a config of fewer layers."""
    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.name != "config.json" and not (out / file.name).exists():
            (out / file.name).symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    return out


def reporter() -> Progress:
    started: dict[str, tuple[float, int]] = {}
    last = 0.0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        begun, before = started.setdefault(stage, (now, done))
        if now - last > _EVERY_SECONDS and done > before:
            last = now
            left = (now - begun) * (total - done) / (done - before)
            print(f"{stage} {done}/{total}, {left / 60:.0f} min left", file=sys.stderr, flush=True)

    return report


def main() -> None:
    from tests.bench.quantization import rules

    source, out, method = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if len(sys.argv) > 4:
        source = first_layers(source, out / "checkpoint", int(sys.argv[4]))
    checkpoint = Checkpoint(source)
    calibration = Calibration(tokens=TOKENS)
    model = read_model(checkpoint.config, checkpoint.names(), 64)
    assignment = assign(rules([{"match": "*", "bits": 4, "group": 128, "method": method}]), model.slots)
    folder = out / "quantized"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    samples = None
    if runner.calibrates(assignment):
        looked_at = driver_of(model).looked_at(calibration, None, model, source)
        samples = partial(driver_of(model).samples, model, looked_at=looked_at)
    evidence = runner.run(checkpoint, model, assignment, calibration, samples, folder, out / "work", reporter())
    shutil.rmtree(out / "work", ignore_errors=True)
    found = {"seconds": time.monotonic() - started, "peak_bytes": high_water(os.getpid())}
    print(json.dumps(found | {"tensors": len(evidence.tensors), "layers": [e.output_error for e in evidence.layers]}))


if __name__ == "__main__":
    main()
