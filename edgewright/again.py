"""A run that would find nothing changed: decided from file identities before a framework is imported.

What a run read, and what it left, is noted when it ends. The same run again, over the same files by their identity
(device, inode, size, times) or, where they are small, their content, is that run: its report is the answer. Anything
else goes the long way, on which each stage looks for itself.

What must not live here: what a single stage depends on (`compiler/keys.py`, `judging.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from artifacts.documents import DocumentError, read_bytes
from artifacts.entries import GRANULARITY_NS, identity
from artifacts.manifest import sha256_file
from artifacts.sources import sources_digest
from artifacts.stages import Store
from device_farm import Profile, arm64_tier
from edgewright import rooms
from edgewright.markdown import markdown
from edgewright.report import REPORT_JSON, REPORT_MD, Report, host, now, write
from recipes.fields import BUILT_IN_TEXT
from recipes.schema import Recipe
from runtime_tests.phones import Limits

STAGE = "run"
_SMALL_BYTES = 1 << 20
_MEDIA = ("image", "images", "video", "videos")
NUMERICS = re.compile(r"(?:OMP|GOMP|KMP|MKL|OPENBLAS|ONEDNN|DNNL|ATEN|TORCH|PYTORCH|ORT|TVM|MLX|QEMU)_\w+")

State = dict[str, Any]


class Asked:
    """What a run was asked for; `started` when it was, in nanoseconds since the epoch."""

    def __init__(
        self,
        store: Store,
        whole: Recipe,
        recipe: Recipe,
        phones: Sequence[tuple[Profile, Limits]],
        folder: Path,
        checkpoint: Path | None,
        validate: bool,
    ) -> None:
        """whole: the recipe as it was read; recipe: with the targets that were asked for; checkpoint: the folder where
        one on this machine is named."""
        self._store, self._recipe, self._folder = store, recipe, folder
        self._started = time.time_ns()
        self._before: State = {}
        content = [
            [whole.digest, recipe.digest, recipe.origin and recipe.origin.name, str(folder), validate],
            checkpoint and [str(checkpoint), os.path.abspath(checkpoint)],
            limits_of(phones),
            sources_digest(rooms.ROOT / name for name in (*rooms.ROOMS, "edgewright")),
            [sys.version, _installed(), surroundings(recipe)],
        ]
        self._key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def unchanged(self) -> Report | None:
        """The report of the run that this one would repeat, written anew; None when anything may have changed."""
        known = self._store.content(STAGE, self._key)
        if known is None or known["files"] != _state(self._inputs(Path(str(known["checkpoint"])))):
            return None
        if known["outputs"] != _state(self._outputs(), whole=False):
            return None
        try:
            report = Report.model_validate_json(read_bytes(self._folder / REPORT_JSON))
        except (DocumentError, ValidationError):
            return None
        targets = tuple(
            item if item.kept else item.model_copy(update={"reused": ("package", *_judged(item.verdict))})
            for item in report.targets
        )
        seconds = round((time.time_ns() - self._started) / 1e9, 1)
        update = {"created": now(), "targets": targets, "reused": ("quantized weights",), "seconds": seconds}
        report = report.model_copy(update=update)
        write(self._folder, REPORT_JSON, report.model_dump_json(indent=2) + "\n")
        write(self._folder, REPORT_MD, markdown(report))
        self._note(Path(str(known["checkpoint"])), known["files"])
        return report

    def begin(self, checkpoint: Path) -> None:
        """Before the first file is read."""
        self._before = _state(self._inputs(checkpoint))

    def end(self, checkpoint: Path, report: Report) -> None:
        """Note a finished run, unless it may end otherwise another time: a step that was killed, a file that changed
        while it was read or is so new that a later change may leave its times alone."""
        settled = all(
            isinstance(state, str) or max(state[3:]) < self._started - GRANULARITY_NS for state in self._before.values()
        )
        broken = any(item.failed_steps for item in report.targets)
        if not broken and settled and self._before == _state(self._inputs(checkpoint)):
            self._note(checkpoint, self._before)

    def _note(self, checkpoint: Path, files: Any) -> None:
        words = {"recipe": self._recipe.name}
        content = {"checkpoint": str(checkpoint), "files": files, "outputs": _state(self._outputs(), whole=False)}
        self._store.note(STAGE, self._key, words, content)

    def _inputs(self, checkpoint: Path) -> Iterator[Path]:
        """Every file that a run reads: those of the checkpoint, and those that the recipe names."""
        yield from _below(checkpoint)
        recipe = self._recipe
        calibration, quality, task = recipe.quantize.calibration, recipe.validation.quality, recipe.validation.task
        named = [
            calibration and calibration.text,
            calibration and calibration.images,
            quality and quality.text,
            quality and quality.clips,
            task and task.file,
        ]
        for name in named:
            if name and name != BUILT_IN_TEXT:
                file = recipe.resolve(name)
                yield from _below(file)
                if file.suffix == ".jsonl":
                    yield from _media(file)

    def _outputs(self) -> Iterator[Path]:
        for path in self._folder.iterdir():
            if not path.name.startswith("."):
                yield from _below(path)


def limits_of(phones: Sequence[tuple[Profile, Limits]]) -> list[Any]:
    """Profiles by their content, and the limits on each."""
    return [[profile.model_dump(mode="json"), asdict(limits)] for profile, limits in phones]


def surroundings(recipe: Recipe) -> dict[str, Any]:
    """What of this machine has a part in a verdict: the host, variables that change how runtimes compute, and the ARM64
    tier where the recipe asks for it."""
    variables = {name: value for name, value in os.environ.items() if NUMERICS.fullmatch(name)}
    tier = arm64_tier.identity() if recipe.validation.arm64 else None
    return {"host": host().model_dump(mode="json"), "variables": variables, "arm64": tier}


def _judged(verdict: str) -> tuple[str, ...]:
    return () if verdict == "not validated" else ("validation",)


def _media(file: Path) -> Iterator[Path]:
    """The images and clips that the lines of a file name, relative to it."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        for key in _MEDIA if isinstance(entry, dict) else ():
            names = entry.get(key)
            for name in names if isinstance(names, list) else [names]:
                if isinstance(name, str):
                    yield from _below(file.parent / name)


def _below(path: Path) -> Iterator[Path]:
    if not os.path.isdir(path):  # unlike a Path it answers for names that no disk takes
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in names)


def _state(files: Iterator[Path], whole: bool = True) -> State:
    """By path: the identity of a file, or the digest of one that is small if `whole`, in which case a new time is no
    change; an empty word where there is none."""
    found: State = {}
    for file in files:
        try:
            now = identity(file)
            found[str(file)] = sha256_file(file.resolve()) if whole and now[2] <= _SMALL_BYTES else list(now)
        except OSError:
            found[str(file)] = ""
    return found


def _installed() -> list[str]:
    """Every other distribution that Python finds, with its version, by the names of their folders."""
    found: set[str] = set()
    for place in sys.path:
        if os.path.isdir(place):
            found |= {name for name in os.listdir(place) if name.endswith((".dist-info", ".egg-info"))}
    return sorted(name for name in found if not name.startswith("edgewright"))  # whose code is in the key already
