"""Where a conversion went wrong: the first operation of a package that differs from the graph it came from.

Asked only when parity failed, and run in a process of its own, `python -m edgewright.conversion order.json`: it holds
every intermediate value of one call. What must not live here: how a program is run or traced.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from artifacts import read_manifest, scratch_folder
from compiler.models.base import read_model
from compiler.quantize.packed import PackedWeights
from compiler.targets import load_target, target_options
from compiler.targets.base import BuildJob
from recipes.schema import Recipe, Vision

_TOLERANCE = 1e-3


def first_divergence(recipe: Recipe, target: str, quantized: Path, artifact: Path) -> str | None:
    """A sentence that names the operation; None when the target keeps no traces or every value agrees."""
    order = {
        "name": recipe.name,
        "target": target,
        "options": recipe.targets[target].model_dump(mode="json"),
        "max_tokens": recipe.context.max_tokens,
        "vision": recipe.vision.model_dump() if recipe.vision else None,
        "quantized": str(quantized),
        "artifact": str(artifact),
    }
    with scratch_folder() as folder:
        path = folder / "order.json"
        path.write_text(json.dumps(order), encoding="utf-8")
        from runtime_tests.process import child_environment

        command = [sys.executable, "-m", "edgewright.conversion", str(path)]
        child = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    if child.returncode:
        return f"the search for the operation ended with exit code {child.returncode}: {child.stderr[-1000:]}"
    found: str | None = json.loads(child.stdout.splitlines()[-1])
    return found


def _search(order: dict[str, Any]) -> str | None:
    from runtime_tests.sessions import make_session

    weights, vision = PackedWeights(Path(order["quantized"])), order["vision"]
    job = BuildJob(
        name=order["name"],
        model=read_model(weights.config, None, order["max_tokens"], Vision(**vision) if vision else None),
        schemes=weights.schemes,
        options=target_options()[order["target"]].model_validate(order["options"]),
        weights=weights,
        source=weights.path,
    )
    artifact = Path(order["artifact"])
    session: Any = make_session(artifact, read_manifest(artifact))
    for function, inputs, values in load_target(order["target"]).traces(job):
        if (found := session.divergence(function, inputs, values, _TOLERANCE)) is not None:
            return str(found)
    return None


if __name__ == "__main__":
    print(json.dumps(_search(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
