"""One compilation in a process of its own, so that its peak memory is its own.

python -m tests.bench.build edgewright|golden|genai|mlx CHECKPOINT OUT GROUP
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.schema import Recipe


def edgewright(source: Path, out: Path, group: int) -> dict[str, float]:
    """bf16 safetensors to the ONNX package, as `edgewright run` does it, without golden vectors."""
    import time

    from artifacts import silent, write_manifest
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint

    recipe = _recipe(source, group)
    checkpoint = Checkpoint(source)
    shutil.rmtree(out / "quantized", ignore_errors=True)  # what an earlier run left would be taken as it is
    started = time.monotonic()
    quantized = pipeline.quantize(recipe, checkpoint, "bench", None, out / "quantized", silent)
    between = time.monotonic()
    package = out / "onnx"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    write_manifest(package, pipeline.build(recipe, "onnx", quantized, checkpoint, package, silent))
    return {"quantize_s": between - started, "lower_s": time.monotonic() - between}


def golden(source: Path, out: Path, group: int) -> dict[str, float]:
    """Golden vectors of what `edgewright` built before."""
    from artifacts import ManifestDraft, read_manifest, silent
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint
    from compiler.expectations import write_vectors

    recipe, checkpoint = _recipe(source, group), Checkpoint(source)
    quantized = pipeline.quantize(recipe, checkpoint, "bench", None, out / "quantized", silent)
    manifest = read_manifest(out / "onnx")
    draft = ManifestDraft(**{name: getattr(manifest, name) for name in ManifestDraft.model_fields})
    write_vectors(draft, quantized, checkpoint, out / "onnx", silent)
    return {"bytes": (out / "onnx" / "golden.safetensors").stat().st_size}


def _recipe(source: Path, group: int) -> Recipe:
    from edgewright.api import recipe_type

    return recipe_type().model_validate(
        {
            "name": "bench",
            "checkpoint": {"path": str(source)},
            "quantize": {"rules": [{"match": "*", "bits": 4, "group": group}]},
            "context": {"max_tokens": 4096},
            "targets": {"onnx": {}},
        }
    )


def genai(source: Path, out: Path, group: int) -> dict[str, float]:
    """The onnxruntime-genai builder. It knows no Ministral 3: the copy of the checkpoint says Mistral."""
    import runpy

    staged = out / "source"
    shutil.rmtree(out, ignore_errors=True)
    staged.mkdir(parents=True)
    for file in source.iterdir():
        (staged / file.name).symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"]}
    (staged / "config.json").unlink()
    (staged / "config.json").write_text(json.dumps(config))
    sys.argv = [
        "builder",
        "-i",
        str(staged),
        "-o",
        str(out / "onnx"),
        "-p",
        "int4",
        "-e",
        "cpu",
        "-c",
        str(out / "cache"),
    ]
    sys.argv += ["--extra_options", f"int4_block_size={group}", "int4_accuracy_level=4"]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    return {}


def mlx(source: Path, out: Path, group: int) -> dict[str, float]:
    """mlx_lm.convert on the same checkpoint."""
    from mlx_lm import convert

    shutil.rmtree(out, ignore_errors=True)
    convert(str(source), str(out), quantize=True, q_bits=4, q_group_size=group)
    return {}


if __name__ == "__main__":
    which = {"edgewright": edgewright, "golden": golden, "genai": genai, "mlx": mlx}[sys.argv[1]]
    print(json.dumps(which(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
