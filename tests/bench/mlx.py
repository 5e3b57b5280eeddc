"""A bf16 checkpoint to an INT4 MLX package, beside `mlx_lm.convert` in the same run, each in a process of its own.

python -m tests.bench.mlx CHECKPOINT OUT [GROUP]

Stages: `quantize` (bf16 to packed weights), `lower` (packed weights to the package), `together` (both in one process),
`convert` (mlx_lm.convert). Page caches are as the stage before left them; `convert` runs first, so that it is not the
one that reads a cold checkpoint last. Seconds are this host's.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.measure import MB, python

STAGES = ("convert", "quantize", "lower", "together")


def _recipe(source: Path, group: int) -> Any:
    from edgewright.api import recipe_type

    return recipe_type().model_validate(
        {
            "name": "bench",
            "checkpoint": {"path": str(source)},
            "quantize": {"rules": [{"match": "*", "bits": 4, "group": group}]},
            "context": {"max_tokens": 4096},
            "targets": {"mlx": {}},
        }
    )


def quantize(source: Path, out: Path, group: int) -> None:
    """As `edgewright run` does it, hashing of the checkpoint included."""
    from artifacts import silent
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint

    shutil.rmtree(out / "quantized", ignore_errors=True)
    pipeline.quantize(_recipe(source, group), Checkpoint(source), "bench", None, out / "quantized", silent)


def lower(source: Path, out: Path, group: int) -> None:
    """The package, without golden vectors."""
    from artifacts import silent, write_manifest
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint

    recipe, checkpoint = _recipe(source, group), Checkpoint(source)
    quantized = pipeline.quantize(recipe, checkpoint, "bench", None, out / "quantized", silent)
    package = out / "mlx"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    write_manifest(package, pipeline.build(recipe, "mlx", quantized, checkpoint, package, silent))


def together(source: Path, out: Path, group: int) -> None:
    quantize(source, out, group)
    lower(source, out, group)


def convert(source: Path, out: Path, group: int) -> None:
    from mlx_lm import convert as mlx_lm_convert

    shutil.rmtree(out / "convert", ignore_errors=True)
    mlx_lm_convert(str(source), str(out / "convert"), quantize=True, q_bits=4, q_group_size=group)


def main(source: Path, out: Path, group: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    print(f"{source.name}, INT4 group {group}")
    print(f"{'':10}{'wall s':>10}{'CPU s':>10}{'peak MB':>10}")
    for stage in STAGES:
        run = python("tests.bench.mlx", "--stage", stage, source, out, group)
        print(f"{stage:10}{run.seconds:10.1f}{run.result['cpu_s']:10.1f}{run.peak_bytes / MB:10.0f}", flush=True)
    for name in ("mlx", "convert"):
        size = sum(f.stat().st_size for f in (out / name).glob("*.safetensors"))
        print(f"{name}: {size / 1e9:.3f} GB of weights")


if __name__ == "__main__":
    if sys.argv[1] == "--stage":
        globals()[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
        print(json.dumps({"cpu_s": time.process_time()}))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 64)
