"""The MLX target: what it refuses, how large it gets, and the package it writes. Imports no MLX to write weights.

The packaging of a model's driver gives the layout that loaders know; without one, `generic.py` traces every entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts import Progress
from compiler.slots import HALF
from compiler.targets.base import BuildJob, Built, Estimate, Job, copy_tokenizer, shipped_files
from compiler.targets.card import write_card
from compiler.targets.mlx import generic
from compiler.targets.mlx.geometry import refusal
from compiler.targets.mlx.packaging import Packaging
from compiler.targets.mlx.shards import package_tensors, stored_bytes, write_shards
from compiler.targets.packaging import packaging_of

_NAMED = 3
_PACKAGE = "compiler.targets.mlx"


class MlxTarget:
    """Lowers a model to the layout of mlx-community, or to traced functions, from the packed bytes."""

    rounds = False
    tools: tuple[str, ...] = ("mlx", "mlx-lm")
    tolerances: Mapping[str, float] = {
        "exact_max_abs_logit": 2e-3,
        "shipped_mean_kl": 2e-3,
        "shipped_min_top1": 0.97,
    }
    entry_tolerances = (2e-5, 3e-2)

    def refusals(self, job: Job) -> list[str]:
        """What of a recipe MLX cannot hold, one sentence for each reason, with the tensors and the nearest choice."""
        reasons: dict[str, list[str]] = {}
        for slot in job.model.slots:
            if (reason := refusal(slot, job.schemes.get(slot.name, HALF))) is not None:
                reasons.setdefault(reason, []).append(slot.name)
        found = [f"mlx: {_listed(names)}: {reason}" for reason, names in reasons.items()]
        return found + _packaging(job).refusals(job)

    def estimate(self, job: Job) -> list[Estimate]:
        """Sizes in bytes; activations are those of the largest call that is made of an entry, in float16.

        MLX reads weights into buffers of its own: nothing of them stays mapped.
        """
        packaging = _packaging(job)
        found = []
        for component in job.model.components:
            weights = sum(stored_bytes(slot, job.schemes.get(slot.name, HALF)) for slot in component.slots)
            states = packaging.state_bytes(job, component)
            live = max(component.live(entry, packaging.called(entry)) for entry in component.shipped)
            found.append(Estimate(component.name, weights, weights, states, 2 * live, {"ios": weights}, weights))
        return found

    def check(self, job: Job) -> None:
        """Raises EdgewrightError naming the ops without a lowering."""
        _packaging(job).check(job)

    def build(self, job: BuildJob, folder: Path, progress: Progress) -> Built:
        """Write weights, tokenizer and generation files where there are any, what the packaging adds, and README.md."""
        packaging = _packaging(job)
        tensors = package_tensors(job.model.slots, job.weights, packaging.named(job))
        total, done = sum(t.size for t in tensors), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("writing weights", done, total)

        write_shards(tensors, folder, sum(s.rows * s.columns for s in job.model.slots), advance)
        copy_tokenizer(job.source, folder)
        runtime, narrowed = packaging.write(job, folder, progress)
        write_card(
            job,
            folder,
            runtime="MLX",
            library="mlx",
            tags=["mlx"],
            sections=packaging.sections(job, runtime),
            about=packaging.about(job),
        )
        runtime = runtime.model_copy(update={"payload": {"ios": tuple(shipped_files(folder))}})
        return Built(runtime.model_dump(mode="json"), narrowed)

    def traces(self, job: BuildJob) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """None: the graph is called as it is."""
        return iter(())


def _packaging(job: Job) -> Packaging:
    found: Packaging = packaging_of(_PACKAGE, job.model) or generic
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
