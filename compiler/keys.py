"""What a finished stage depends on, as digests: whether what an earlier run left may be used again.

A key holds content, never a path or a time: the bytes of the checkpoint, the token ids that a stage looks at (and with
them tokenizer, text and chat template), every tensor's scheme and method, and the stage's own code. It leaves out what
changes rounding alone: the version of torch that made hours' worth of weights is in their manifest. A package is quick
to build, and its key holds those versions too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from artifacts import EdgewrightError, read_manifest
from artifacts.entries import GRANULARITY_NS, Identity, identity
from artifacts.manifest import CheckpointFile, Sha256, sha256_file
from artifacts.sources import sources_digest
from compiler.checkpoint import Checkpoint
from compiler.models.base import Model
from compiler.quantize.rules import Assignment, options_of
from compiler.slots import Schemes
from compiler.targets import calibrates
from recipes.schema import Recipe

if TYPE_CHECKING:
    from compiler.quantized import Quantized

_HERE = Path(__file__).parent
_NO_STAGE = ("pipeline.py", "plan.py", "keys.py", "kept_weights.py", "quantized.py", "expectations.py", "targets")
_JUDGES = ("golden.py", "task.py")
_BESIDE = (".json", ".jinja", ".model", ".md", ".txt")  # what lies beside weights and is read for a package
_GRANULARITY_NS = GRANULARITY_NS


def weights(
    files: Sequence[CheckpointFile], checkpoint: Checkpoint, model: Model, assignment: Assignment, looked_at: Any
) -> str:
    """Of quantized weights. looked_at: what calibration saw, None where no method looks."""
    rules = {
        n: (r.bits, r.group, r.symmetric, r.method, options_of(r), r.activations, r.min_snr)
        for n, r in assignment.rules.items()
    }
    stored = checkpoint.config.get("quantization_config")
    return digest("weights", _code(*_JUDGES), _tensors(files), stored, _model(model), rules, looked_at)


def vectors(
    files: Sequence[CheckpointFile],
    checkpoint: Checkpoint,
    model: Model,
    schemes: Schemes,
    quantized: str,
    tokens: NDArray[np.int32],
    text: str,
) -> str:
    """Of golden vectors. quantized: the digest of the quantized weights."""
    stored = checkpoint.config.get("quantization_config")
    packed = {name: asdict(scheme) for name, scheme in schemes.items()}
    seen = [array_digest(tokens), text]
    return digest("vectors", _code(), _tensors(files), stored, _model(model), packed, quantized, seen)


def answers(files: Sequence[CheckpointFile], checkpoint: Checkpoint, model: Model, asked: Any) -> str:
    """Of the unquantized checkpoint's answers. asked: digests of the questions, and of what reads them."""
    stored = checkpoint.config.get("quantization_config")
    return digest("answers", _code(), _tensors(files), stored, _model(model), asked)


def package(recipe: Recipe, target: str, quantized: Quantized, source: Path, tools: Mapping[str, str]) -> str:
    """Of one target's package with its vectors. source: the checkpoint's folder; tools: versions of what takes part.

    The recipe's limits have no part in it.
    """
    entry, options = quantized.checkpoint, recipe.targets[target]
    others = [path for path in (_HERE / "targets").glob("*/") if path.name != target]
    recipes = _HERE.parent / "recipes"  # its code and texts: the recipes themselves are given
    held, asked, seen = quantized.held_out, quantized.asked, quantized.looked_at
    return digest(
        "package",
        [target, options.model_dump(mode="json"), recipe.name, recipe.context.model_dump()],
        recipe.vision and recipe.vision.model_dump(),
        sources_digest([_HERE], others),
        sources_digest([_HERE.parent / "artifacts", *sorted(recipes.glob("*.py")), recipes / "text"]),
        [platform.system(), platform.machine(), dict(tools)],  # of these TVM's library for this machine is made
        {file.path: file.sha256 for file in read_manifest(quantized.folder).files},
        [(file.path, file.sha256) for file in entry.files],
        entry.revision and [entry.source, entry.revision],
        _model(quantized.model),
        {name: asdict(scheme) for name, scheme in quantized.assignment.schemes.items()},
        file_digests(source, sorted(path.name for path in source.iterdir() if path.suffix in _BESIDE)),
        held and [array_digest(held.tokens), held.text],
        asked and asked.digest,
        array_digest(seen) if seen is not None and calibrates(options) else None,
    )


def digest(*content: Any) -> str:
    """sha256 in hex over JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """sha256 in hex of those of the files that are there, by name."""
    return {name: sha256_file((folder / name).resolve()) for name in names if (folder / name).is_file()}


def array_digest(array: NDArray[Any]) -> str:
    """sha256 in hex over dtype, shape and values."""
    head = f"{array.dtype.str} {array.shape} "
    return hashlib.sha256(head.encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _model(model: Model) -> list[Any]:
    return [model.family, dict(model.geometry), [asdict(slot) for slot in model.slots]]


def _tensors(files: Sequence[CheckpointFile]) -> list[str]:
    return [file.sha256 for file in files if file.path.endswith(".safetensors")]


def _code(*others: str) -> str:
    """The sources of every module that may have a part in a stage: no version has to be remembered and raised."""
    found = hashlib.sha256()
    for path in sorted(_HERE.rglob("*.py")):
        name = path.relative_to(_HERE)
        if name.parts[0] not in (*_NO_STAGE, *others):
            found.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


class _Known(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: Identity
    sha256: Sha256


_MEMORY = TypeAdapter(dict[str, _Known])


class CheckpointFiles:
    """The digests of a checkpoint's files, and a memory of them beside the output.

    `remembered` answers from the memory when device, inode, size, time of modification and time of change are those of
    the moment at which a file was hashed; the last of these no program can set back. It only decides whether earlier
    work is looked at, so that a run that changes nothing does not read gigabytes. What a manifest says comes from
    `read`, which always hashes: beside the quantizing, which reads the same bytes.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self._config = checkpoint.path / "config.json"
        self._files = [*checkpoint.tensors.files]
        self._memory = folder / ".digests.json"
        self._read: dict[Path, _Known] = {}
        self._settled: set[Path] = set()

    def remembered(self) -> tuple[CheckpointFile, ...] | None:
        """All of them without reading the weights, None when any is unknown."""
        memory = self._load()
        found = {}
        for file in self._files:
            known = memory.get(str(file.resolve()))
            if known is None or known.identity != identity(file):
                return None
            found[file] = known
        return self._entries(found)

    def read(self) -> tuple[CheckpointFile, ...]:
        """All of them, hashed (once for this object). Raises EdgewrightError when one changes meanwhile."""
        if not self._read:
            now = time.time_ns()
            with ThreadPoolExecutor(2) as pool:
                self._read = dict(zip(self._files, pool.map(_hashed, self._files), strict=True))
            self._settled = {f for f, known in self._read.items() if max(known.identity[3:]) < now - _GRANULARITY_NS}
        return self._entries(self._read)

    def remember(self) -> None:
        """Keep what was read for the next run, but for files so new that a later change may leave their times alone."""
        keep = {str(file.resolve()): self._read[file] for file in self._settled}
        if not keep:
            return
        aside = self._memory.with_name(f"{self._memory.name}.{os.getpid()}")
        with suppress(OSError):
            aside.write_bytes(_MEMORY.dump_json(keep))
            aside.replace(self._memory)
        aside.unlink(missing_ok=True)

    def _load(self) -> dict[str, _Known]:
        try:
            return _MEMORY.validate_json(self._memory.read_bytes())
        except (OSError, ValidationError):
            return {}

    def _entries(self, found: dict[Path, _Known]) -> tuple[CheckpointFile, ...]:
        config = CheckpointFile(
            path=self._config.name, size=self._config.stat().st_size, sha256=sha256_file(self._config.resolve())
        )
        weights = (CheckpointFile(path=f.name, size=k.identity[2], sha256=k.sha256) for f, k in found.items())
        return config, *weights


def _hashed(file: Path) -> _Known:
    before = identity(file)
    sha256 = sha256_file(file.resolve())
    if identity(file) != before:
        raise EdgewrightError(f"{file}: changed while it was read; start again when it is complete")
    return _Known(identity=before, sha256=sha256)
