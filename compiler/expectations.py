"""What a package has to answer: the vectors of its driver, of the entries that these do not judge, and questions.

They depend on no target but for the tolerances. What is expensive is computed once, kept beside the quantized weights,
entered in the store under its key (`keys.py`), and copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from artifacts import ManifestDraft, Progress
from artifacts.formats import tensor_file, vectors
from artifacts.formats.task import TASK
from artifacts.manifest import sha256_file
from compiler import keys, targets, task
from compiler.checkpoint import Checkpoint
from compiler.drivers import Driver, driver_of
from compiler.processor import IMAGES, PROCESSOR, VIDEOS
from compiler.quantize import runner
from compiler.quantized import Quantized
from compiler.slots import Weights
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
    """They depend on no target but for the tolerances: computed once, then copied."""
    model, schemes = quantized.model, quantized.assignment.schemes
    key = keys.vectors(quantized.checkpoint.files, checkpoint, model, schemes, quantized.digest, held.tokens, held.text)

    def make(made: Path) -> None:
        sides: dict[str, Weights] = {
            "reference": quantized.weights,
            "original": runner.OriginalWeights(checkpoint, model.slots),
        }
        driver.write_vectors(made, model, schemes, held, sides, progress)

    driver.copy_vectors(_kept(quantized, "vectors", key, "golden", path.parent, make), path, tolerances)


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
