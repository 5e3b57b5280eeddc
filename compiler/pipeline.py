"""The compiler, as one page: checkpoint → quantized weights → one package for each target, with its golden vectors.

Takes recipes and folders, never phone profiles, and runs no artifact. Stages are resumable: quantized weights
whose key (`keys.py`) is unchanged are used again, wherever the store has them.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import (
    MANIFEST,
    EdgewrightError,
    Manifest,
    ManifestDraft,
    Progress,
    read_manifest,
    staged,
    write_manifest,
)
from artifacts.formats import interface
from artifacts.manifest import (
    CheckpointEntry,
    CheckpointFile,
    OutdatedManifest,
    QuantizationGroup,
    RecipeEntry,
    sha256_file,
)
from artifacts.stages import Store
from artifacts.store import relabel
from compiler import activations, keys, targets, task
from compiler.checkpoint import Checkpoint
from compiler.drivers import driver_of
from compiler.heap import return_large_blocks
from compiler.kept_weights import staged_weights, take_weights
from compiler.licence import licence_of
from compiler.models.base import Component, Model, read_model
from compiler.models.interface import described
from compiler.quantize import budget, evidence, runner
from compiler.quantize.packed import PackedWeights, write_config
from compiler.quantize.rules import Assignment, assign, rounded_slots
from compiler.quantized import Quantized
from compiler.slots import HALF, Scheme, Slot, Weights
from compiler.targets.base import TOKENIZER_FILES, BuildJob, Job, copy_tokenizer
from compiler.task import Asked
from compiler.text import calibration_file
from compiler.work import work_of
from recipes.schema import Calibration, Recipe

if TYPE_CHECKING:
    from compiler.quantize.calibrated.task import Samples

_TOOLS = ("edgewright", "torch", "transformers")


def quantize(
    recipe: Recipe,
    checkpoint: Checkpoint,
    source: str,
    revision: str | None,
    out: Path,
    progress: Progress,
    store: Store | None = None,
) -> Quantized:
    """Quantize a checkpoint into `out`, a folder in the compressed-tensors format that transformers loads.

    source, revision: where the checkpoint came from, for the manifest. An earlier result for the same checkpoint and
    rules is used as it is, from `store` (by default one beside `out`). Raises EdgewrightError before a weight is read
    when any target refuses the recipe.
    """
    return_large_blocks()
    store = store or Store(out.parent)
    model = read_model(checkpoint.config, checkpoint.names(), recipe.context.max_tokens, recipe.vision)
    driver, slots = driver_of(model), model.slots
    for slot in slots:
        checkpoint.check(slot.tensor, slot.shape)
    driver.check(recipe, model, checkpoint.path)
    calibration = recipe.quantize.calibration or Calibration()
    text = calibration_file(calibration, recipe.resolve)
    assignment = assign(recipe.quantize.rules, slots)
    rounded = rounded_slots(model, assignment)
    looks = recipe.quantize.budget is not None or runner.calibrates(assignment)
    held_out = driver.held_out(recipe, text if looks else None, model, checkpoint.path)
    asked = _asked(recipe, model, checkpoint)
    files = keys.CheckpointFiles(checkpoint, out.parent)
    chosen = None
    if recipe.quantize.budget is not None:
        chosen = _within_budget(recipe, checkpoint, model, text, files, out.parent, store.fresh, progress)
        assignment = assign(budget.rules_of(chosen, assignment), slots)
    jobs = {
        name: Job(recipe.name, model, assignment.schemes, options, rounded=rounded)
        for name, options in recipe.targets.items()
    }
    for name, job in jobs.items():
        if refusals := targets.load_target(name).refusals(job):
            raise EdgewrightError("; ".join(refusals))

    calibrated = runner.calibrates(assignment) or bool(rounded)
    looked_at = None
    given = recipe.quantize.calibration is not None
    if calibrated or (given and any(targets.calibrates(options) for options in recipe.targets.values())):
        looked_at = driver.looked_at(calibration, text, model, checkpoint.path)
    samples = None if looked_at is None else partial(driver.samples, model, looked_at=looked_at)
    seen = keys.array_digest(looked_at) if calibrated and looked_at is not None else None

    groups, config, licence = _groups(slots, assignment), model.config, licence_of(checkpoint.path)
    beside = keys.digest(config, keys.file_digests(checkpoint.path, TOKENIZER_FILES))

    def drafted(found: tuple[CheckpointFile, ...], made_by: dict[str, str], weights: str) -> ManifestDraft:
        key = keys.weights(found, checkpoint, model, assignment, seen)
        return ManifestDraft(
            created_by=made_by,
            recipe=RecipeEntry(name=recipe.name, digest=recipe.digest),
            target="checkpoint",
            family=model.family,
            checkpoint=CheckpointEntry(source=source, revision=revision, license=licence, files=found),
            quantization=groups,
            runtime={"key": key, "beside": beside},
            weights_digest=weights,
        )

    earlier = None if store.fresh else _earlier(out)
    known = None
    if earlier is not None or calibrated or store.has("weights"):  # needed before there is work beside which to hash
        known = files.remembered() or files.read()
    key = None if known is None else keys.weights(known, checkpoint, model, assignment, seen)
    words = {"recipe": recipe.name, "checkpoint": source}
    checked = {}
    reused = key is not None and take_weights(store, key, earlier, out, words)
    if known is not None and key is not None and reused:
        earlier = read_manifest(out)
        draft = drafted(known, earlier.created_by, earlier.weights_digest)
        if any(getattr(earlier, field) != value for field, value in draft):
            _renew(out, earlier, draft, config, assignment, checkpoint.path)
            store.put("weights", key, out, out, words)
    else:
        checked = {name: targets.load_target(name).check(job) for name, job in jobs.items()}
        work = out.parent / f".calibration-{keys.weights(known or (), checkpoint, model, assignment, seen)[:16]}"
        with (
            staged_weights(store, out, sum(g.bytes for g in groups), words) as folder,
            ThreadPoolExecutor(1) as pool,
        ):
            hashed = pool.submit(files.read)
            found = runner.run(checkpoint, model, assignment, calibration, samples, folder, work, progress)
            if rounded:
                table = runner.OriginalWeights(checkpoint, slots)
                found = _round(folder, assignment, rounded, samples, table, found, progress)
            evidence.write(folder, found)
            if chosen is not None:
                budget.write_rules(folder, budget.rules_of(chosen, assignment), chosen)
            copy_tokenizer(checkpoint.path, folder)
            draft = drafted(hashed.result(), tool_versions(), sha256_file(folder / "model.safetensors"))
            write_manifest(folder, draft)
        for work in out.parent.glob(".calibration-*"):  # of this one, and of others that never came to their end
            shutil.rmtree(work, ignore_errors=True)
    files.remember()
    manifest = read_manifest(out)
    weights = PackedWeights(out)
    entry, digest = manifest.checkpoint, manifest.weights_digest
    return Quantized(
        folder=out,
        model=model,
        assignment=assignment,
        weights=weights,
        checkpoint=entry,
        groups=groups,
        digest=digest,
        held_out=held_out,
        looked_at=looked_at,
        store=store,
        reused=reused,
        asked=asked,
        checked=checked,
        rounded=rounded,
        roundings=activations.read(out),
    )


def check(recipe: Recipe, quantized: Quantized, names: Iterable[str]) -> None:
    """Have these targets look at what they are going to build, all before the first is built. Raises EdgewrightError
    naming each operation that has no lowering."""
    schemes = quantized.assignment.schemes
    for name in names:
        if name not in quantized.checked:
            job = Job(recipe.name, quantized.model, schemes, recipe.targets[name], rounded=quantized.rounded)
            quantized.checked[name] = targets.load_target(name).check(job)


def _round(
    folder: Path,
    assignment: Assignment,
    rounded: Mapping[str, frozenset[str]],
    samples: Callable[[Weights], Iterator[Samples]] | None,
    table: Weights,
    found: evidence.QuantizationEvidence,
    progress: Progress,
) -> evidence.QuantizationEvidence:
    """Write what codes of activations stand for beside the quantized weights; what that costs joins the evidence."""
    from compiler.quantize.activations.run import run

    assert samples is not None
    least = {
        name: max(limits)
        for name, slots in rounded.items()
        if (limits := [limit for slot in slots if (limit := assignment.rules[slot].min_snr) is not None])
    }
    with runner.fixed_threads(1):  # of small tensors: on a busy machine two threads take many times as long as one
        roundings, costs = run(samples(table), rounded, least, assignment.schemes, PackedWeights(folder), progress)
    activations.write(folder, roundings)
    return found.model_copy(update={"activations": tuple(costs)})


def _renew(
    out: Path,
    earlier: Manifest,
    draft: ManifestDraft,
    config: Mapping[str, Any],
    assignment: Assignment,
    source: Path,
) -> None:
    """The same weights under another manifest, with the tokenizer and config that the checkpoint has now."""
    labels = {"recipe", "checkpoint"}
    if all(getattr(earlier, field) == value for field, value in draft if field not in labels):
        relabel(out, draft.recipe, draft.checkpoint)
        return
    with staged(out) as partial:
        for file in earlier.files:
            if file.path not in ("config.json", *TOKENIZER_FILES):
                _link(out / file.path, partial / file.path)
        write_config(partial, config, assignment.schemes)
        copy_tokenizer(source, partial)
        write_manifest(partial, draft)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def build(
    recipe: Recipe, target: str, quantized: Quantized, checkpoint: Checkpoint, folder: Path, progress: Progress
) -> ManifestDraft:
    """Write one target's package into an empty folder; vectors and the manifest are left to the caller."""
    model = quantized.model
    job = BuildJob(
        name=recipe.name,
        model=model,
        schemes=quantized.assignment.schemes,
        options=recipe.targets[target],
        weights=quantized.weights,
        source=checkpoint.path,
        calibration=quantized.looked_at,
        checked=quantized.checked.pop(target, None),
        rounded=quantized.rounded,
        roundings=quantized.roundings,
    )
    driver_of(model).write_companions(model, checkpoint.path, folder)
    built = targets.load_target(target).build(job, folder, progress)
    shutil.copyfile(quantized.folder / evidence.FILE, folder / evidence.FILE)
    return ManifestDraft(
        created_by=tool_versions([target]),
        recipe=RecipeEntry(name=recipe.name, digest=recipe.digest),
        target=target,
        family=model.family,
        checkpoint=quantized.checkpoint,
        quantization=quantized.groups,
        components=tuple(described(model, built.narrowed)),
        driver=interface.Driver(name=model.driver, constants=dict(model.constants)),
        runtime=dict(built.runtime),
        work=work_of(model, job.schemes),
        weights_digest=quantized.digest,
    )


def _asked(recipe: Recipe, model: Model, checkpoint: Checkpoint) -> Asked | None:
    wanted = recipe.validation.task
    if wanted is None:
        return None
    reader = driver_of(model).reader(model, checkpoint.path)
    return task.read(wanted, recipe.resolve(wanted.file), reader, model, checkpoint.path)


def tool_versions(names: Iterable[str] = ()) -> dict[str, str]:
    """Versions of what takes part in building and running packages of these targets, Python included."""
    found = {"python": platform.python_version()}
    for name in (*_TOOLS, *(tool for target in names for tool in targets.load_target(target).tools)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _within_budget(
    recipe: Recipe,
    checkpoint: Checkpoint,
    model: Model,
    text: Path | None,
    files: keys.CheckpointFiles,
    folder: Path,
    fresh: bool,
    progress: Progress,
) -> budget.Chosen:
    """What a budget leads to, measured once: it is kept in `folder` for the next run."""
    quantize, assignment = recipe.quantize, assign(recipe.quantize.rules, model.slots)
    assert quantize.budget is not None
    calibration = quantize.calibration or Calibration()
    calibration = calibration.model_copy(
        update={"tokens": min(budget.TOKENS, calibration.tokens), "seed": calibration.seed + 1}
    )
    targeted = [(targets.load_target(name), options) for name, options in recipe.targets.items()]

    def allowed(members: Sequence[Slot], scheme: Scheme) -> bool:
        schemes = dict.fromkeys((s.name for s in members), scheme)
        part = replace(model, components=tuple(_part(component, members) for component in model.components))
        return not any(target.refusals(Job(recipe.name, part, schemes, options)) for target, options in targeted)

    tokens = driver_of(model).looked_at(calibration, text, model, checkpoint.path)
    looked_at = [keys.array_digest(tokens), quantize.budget.model_dump(), sorted(recipe.targets)]
    key = keys.weights(files.remembered() or files.read(), checkpoint, model, assignment, looked_at)
    file = folder / f".budget-{key[:16]}.json"
    found = None if fresh else budget.load(file)
    if found is None:
        table = runner.OriginalWeights(checkpoint, model.slots)
        found = budget.choose(quantize.budget, assignment, model, table, tokens, allowed, progress)
        folder.mkdir(parents=True, exist_ok=True)
        budget.save(file, found)
    return found


def _part(component: Component, members: Sequence[Slot]) -> Component:
    """A component as if it had no other slots."""
    return replace(component, slots=tuple(slot for slot in component.slots if slot in members))


def _earlier(out: Path) -> Manifest | None:
    """The manifest of quantized weights that an earlier run left whole."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(out)
    except OutdatedManifest:
        return None
    whole = all((out / f.path).is_file() and (out / f.path).stat().st_size == f.size for f in manifest.files)
    return manifest if whole and manifest.target == "checkpoint" else None


def _groups(slots: list[Slot], assignment: Assignment) -> tuple[QuantizationGroup, ...]:
    found: dict[tuple[Any, ...], list[Slot]] = {}
    for slot in slots:
        scheme = assignment.schemes.get(slot.name, HALF)
        method = assignment.method(slot.name) if scheme.bits != 16 else "none"
        found.setdefault((scheme, method), []).append(slot)
    return tuple(
        QuantizationGroup(
            bits=scheme.bits,
            group=None if scheme.bits == 16 else scheme.group or "channel",
            symmetric=scheme.symmetric,
            method=method,
            tensors=len(members),
            parameters=sum(s.rows * s.columns for s in members),
            bytes=sum(scheme.packed_bytes(s.rows, s.columns) for s in members),
        )
        for (scheme, method), members in found.items()
    )
