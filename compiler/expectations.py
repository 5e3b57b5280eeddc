"""What a package has to answer: the vectors of its driver, of the entries that these do not judge, and questions.

They depend on no target but for the tolerances. What is expensive is computed once, kept beside the quantized weights,
entered in the store under its key (`keys.py`), and copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from artifacts import ManifestDraft, Progress
from artifacts.formats import golden, tensor_file, vectors
from artifacts.formats.task import TASK
from artifacts.locks import locked
from artifacts.manifest import sha256_file
from artifacts.media import clips
from compiler import keys, targets, task
from compiler.checkpoint import Checkpoint
from compiler.drivers import Driver, driver_of
from compiler.processor import IMAGES, PROCESSOR, VIDEOS
from compiler.quantize import runner
from compiler.quantized import Quantized
from compiler.targets.base import TOKENIZER_FILES
from compiler.task import Asked
from compiler.text import Held
from compiler.vectors import entry_outputs, rounded

_UNSEEN = 1 << 31  # a seed beyond those of calibration


def write_vectors(
    draft: ManifestDraft, quantized: Quantized, checkpoint: Checkpoint, folder: Path, progress: Progress
) -> None:
    """Into a package's folder, all but the manifest."""
    model, target = quantized.model, targets.load_target(draft.target)
    driver = driver_of(model)
    if driver.FILE is not None and quantized.held_out is not None:
        _write_own(driver, quantized, quantized.held_out, checkpoint, folder / driver.FILE, target.tolerances, progress)
    if quantized.asked is not None:
        _write_task(quantized, quantized.asked, checkpoint, folder / TASK, progress)
    covered = driver.covered(model)
    parts = tuple(
        part.model_copy(update={"entries": tuple(e for e in part.entries if (part.name, e.name) not in covered)})
        for part in draft.components
    )
    if any(part.entries for part in parts):
        plan = vectors.planned(parts, 0, *target.entry_tolerances)
        given = model, quantized.assignment.schemes, quantized.weights
        steps: list[vectors.Steps] = []
        roundings = {name: found for name, found in quantized.roundings.items() if target.rounds and found.values}
        if roundings:
            plan = plan.model_copy(update={"seed": _UNSEEN})
            plan, steps = rounded(*given, plan, parts, roundings)
        arrays, metadata = vectors.content(plan, entry_outputs(*given, plan, parts), steps)
        tensor_file.write_tensors(folder / vectors.VECTORS, arrays, metadata, vectors.MAX_BYTES)


def _write_own(
    driver: Driver,
    quantized: Quantized,
    held: Held,
    checkpoint: Checkpoint,
    path: Path,
    tolerances: Mapping[str, float],
    progress: Progress,
) -> None:
    """They depend on no target but for the tolerances: computed once, then copied. What the unquantized model answers
    depends on no rule either: other recipes of the same checkpoint and text have it too."""
    model, schemes, files = quantized.model, quantized.assignment.schemes, quantized.checkpoint.files
    key = keys.vectors(files, checkpoint, model, schemes, quantized.digest, held.tokens, held.text)
    original = keys.vectors(files, checkpoint, model, {}, "", held.tokens, held.text)

    def unquantized(made: Path) -> None:
        sides = {"original": runner.OriginalWeights(checkpoint, model.slots)}
        driver.write_vectors(made, model, {}, held, sides, _part(progress, 0))

    def make(made: Path) -> None:
        side = _found(quantized, "original", original, "original", path.parent, unquantized)
        driver.write_vectors(made, model, schemes, held, {"reference": quantized.weights}, _part(progress, 1))
        _join(made, side)

    driver.copy_vectors(_kept(quantized, "vectors", key, "golden", path.parent, make), path, tolerances)


def _part(progress: Progress, at: int) -> Progress:
    """The progress of one side of two."""
    return lambda stage, done, total: progress(stage, at * total + done, 2 * total)


def _join(path: Path, other: Path) -> None:
    """Add the tensors of another file of the same metadata."""
    from safetensors import safe_open

    arrays: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for source in (other, path):
        with safe_open(source, "numpy") as file:
            arrays |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            metadata = file.metadata()
    tensor_file.write_tensors(path, arrays, metadata, max(golden.MAX_BYTES, clips.MAX_BYTES))


def _write_task(quantized: Quantized, asked: Asked, checkpoint: Checkpoint, path: Path, progress: Progress) -> None:
    """Questions depend on no target and on no quantization: answered once, then copied."""
    model = quantized.model
    beside = keys.file_digests(checkpoint.path, (*TOKENIZER_FILES, PROCESSOR, IMAGES, VIDEOS))
    key = keys.answers(quantized.checkpoint.files, checkpoint, model, [asked.digest, beside])

    def make(made: Path) -> None:
        original = runner.OriginalWeights(checkpoint, model.slots)
        task.write(made, asked, model, quantized.assignment.schemes, original, progress)

    shutil.copyfile(_kept(quantized, "answers", key, "task", path.parent, make), path)


def _kept(
    quantized: Quantized, stage: str, key: str, word: str, unfinished: Path, make: Callable[[Path], None]
) -> Path:
    """The file of a stage beside the quantized weights: as it is, copied from another recipe's, or made.

    unfinished: the folder of a package that is being built, where a killed run leaves nothing behind.
    """
    with locked(quantized.folder):  # packages that are built side by side wait for the first one's
        return _found(quantized, stage, key, word, unfinished, make)


def _found(
    quantized: Quantized, stage: str, key: str, word: str, unfinished: Path, make: Callable[[Path], None]
) -> Path:
    """What `_kept` gives; the caller holds its lock."""
    place, store = quantized.folder.parent, quantized.store
    cached = place / f".{word}-{key[:16]}.safetensors"
    found = store.find(stage, key, place)
    if found is None or found.folder != store.out / store.place(place):
        made = unfinished / cached.name
        if found is None or not _copied(found.folder / cached.name, found.entry.files[0].sha256, made):
            make(made)
        store.put(stage, key, unfinished, place, {"recipe": place.name}, [cached.name])
        made.replace(cached)
    for old in place.glob(f".{word}-*"):
        if old != cached:
            old.unlink(missing_ok=True)
    return cached


def _copied(source: Path, sha256: str, made: Path) -> bool:
    """Whether a file of another recipe could be copied: a run of that may replace it meanwhile."""
    try:
        shutil.copyfile(source, made)
    except FileNotFoundError:
        return False
    return sha256_file(made) == sha256
