"""What targets share: the job they are given, the estimate they answer with, and the protocol they follow."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from artifacts import Progress
from compiler.models.decoder import DecoderSpec
from compiler.quantize.packed import PackedWeights
from compiler.slots import Schemes, Slot

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "tekken.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Job:
    """What a target is asked to lower: a decoder's geometry, its quantized weights, and where they came from.

    tokenizer: the folder whose tokenizer and generation files travel with the artifact.
    """

    name: str
    spec: DecoderSpec
    slots: list[Slot]
    schemes: Schemes
    max_tokens: int
    weights: PackedWeights
    tokenizer: Path
    options: Any


def bare(job: Job) -> Job:
    """The job without its weights: neither they nor what reads them travel between processes."""
    nothing: Any = None
    return replace(job, weights=nothing)


@dataclass(frozen=True)
class Estimate:
    """Bytes, from the geometry alone, for a prompt that fills the context.

    app_bytes: what an app ships of the files, on each platform that runs them. copied_bytes: of the weights, what the
    runtime holds in anonymous memory; the others stay mapped from their file.
    """

    file_bytes: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    app_bytes: dict[str, int]
    copied_bytes: int = 0


class Target(Protocol):
    """One runtime. `build` writes the payload into an empty folder and returns what the runtime's runner needs.

    A target whose programs a converter makes may also have `traces(job)`, an iterator over (function, inputs, values by
    name), so that a failed parity can be traced to an operation.

    tolerances: limits of the artifact's own runtime test, which travel with its golden vectors.
    """

    tolerances: Mapping[str, float]

    def refusals(self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, options: Any) -> list[str]: ...

    def estimate(
        self, spec: DecoderSpec, slots: list[Slot], schemes: Schemes, max_tokens: int, options: Any
    ) -> Estimate: ...

    def build(self, job: Job, folder: Path, progress: Progress) -> dict[str, Any]: ...


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer and generation files that a checkpoint folder has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def shipped_files(folder: Path, *left_out: str) -> list[str]:
    """What an app ships of a built package, for `runtime.payload`: all but the README and what is named, sorted."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.as_posix() for path in found if path.parts[0] not in ("README.md", *left_out)]
