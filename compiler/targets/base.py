"""What targets share: the job they are given, the estimate they answer with, and the protocol they follow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from artifacts import Progress
from artifacts.formats import interface
from artifacts.formats.preprocessing import SPECIFICATION
from artifacts.formats.talking_head import PAGE
from compiler.activations import Roundings
from compiler.models.base import Model
from compiler.quantize.packed import PackedWeights
from compiler.slots import Schemes

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
    """What a target is asked about: a model, the schemes of its slots, and the target's own options.

    rounded: by component, the convolutions whose activations are to have 8 bits (`rules.rounded_slots`).
    """

    name: str
    model: Model
    schemes: Schemes
    options: Any
    rounded: Mapping[str, frozenset[str]] = field(default_factory=dict, kw_only=True)


def bare(job: Job) -> Job:
    """The job without its weights: neither they nor what reads them travel between processes."""
    return Job(job.name, job.model, job.schemes, job.options, rounded=job.rounded)


@dataclass(frozen=True)
class BuildJob(Job):
    """A job to carry out. source: the checkpoint folder whose tokenizer and generation files travel along.

    calibration: token ids int32 [sequences, length] of the recipe's `quantize.calibration`; None where it has none.
    checked: what the target's own `check` of the same job returned, which may be used up. roundings: what codes of
    activations stand for, by component, for a target that has kernels for them.
    """

    weights: PackedWeights
    source: Path
    calibration: NDArray[np.int32] | None = None
    checked: Any = None
    roundings: Roundings = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one component, from its geometry alone, at the largest sizes of its entries.

    app_bytes: what an app ships of the files, on each platform that runs them. state_bytes: what a session keeps
    between calls. copied_bytes: of the weights, what the runtime holds in anonymous memory; the others stay mapped from
    their file. packed_bytes: of those copies, what a package can hold instead, for files that are so much larger; where
    it does (`prepacked`), they are no more of `copied_bytes`. activation_bytes: values alive at once in the widest
    place of the largest call that this target makes (`Component.live`), in the width it computes in.
    """

    component: str
    file_bytes: int
    weight_bytes: int
    state_bytes: int
    activation_bytes: int
    app_bytes: Mapping[str, int]
    copied_bytes: int = 0
    packed_bytes: int = 0
    prepacked: bool = False


@dataclass(frozen=True)
class Built:
    """What a target says of the package it wrote.

    runtime: what its session needs, by the target's model in `artifacts/formats/`. narrowed: dimensions of which the
    package takes less than the model's entry does, by component, entry and dimension.
    """

    runtime: Mapping[str, JsonValue]
    narrowed: Mapping[tuple[str, str, str], interface.Dimension] = field(default_factory=dict)


class Target(Protocol):
    """One runtime. Knows entries, ports and slots, never a family.

    tools: packages that lower for it and run what it makes, for the record of versions. tolerances: limits of the
    artifact's own runtime test, which travel with its golden vectors. entry_tolerances: `exact` and `shipped` of
    `artifacts.formats.vectors.Calls`. rounds: whether it has kernels for activations of 8 bits; without, the weights of
    such a rule alone have 8 bits.
    """

    rounds: bool
    tools: tuple[str, ...]
    tolerances: Mapping[str, float]
    entry_tolerances: tuple[float, float]

    def refusals(self, job: Job) -> list[str]:
        """Why the target cannot build the job, a sentence for each reason that names the tensor or key. Imports no
        framework."""

    def estimate(self, job: Job) -> list[Estimate]:
        """For each component. Imports no framework."""

    def check(self, job: Job) -> object:
        """Capture every entry. Raises EdgewrightError naming each op that has no lowering; no weight is read.

        What it returns is of use to `build` alone, so that nothing is lowered twice.
        """

    def build(self, job: BuildJob, folder: Path, progress: Progress) -> Built:
        """Write the payload into an empty folder."""

    def traces(self, job: BuildJob) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(function, inputs, every value by name) of short calls, where a converter's programs are compared op by op
        after a failed parity; nothing where there is no such program."""


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer and generation files that a checkpoint folder has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def shipped_files(folder: Path, *left_out: str) -> list[str]:
    """What an app ships of a built package, for `runtime.payload`: all but its pages and what is named, sorted."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.as_posix() for path in found if path.parts[0] not in ("README.md", SPECIFICATION, PAGE, *left_out)]
