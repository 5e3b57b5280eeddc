"""The compiler, as one page: checkpoint → quantized weights → one package for each target, with its golden vectors.

Takes recipes and folders, never phone profiles, and runs no artifact. Stages are resumable: quantized weights and
golden vectors whose key (`keys.py`) is unchanged are used again.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
from artifacts.formats.vectors import GOLDEN
from artifacts.manifest import CheckpointEntry, CheckpointFile, QuantizationGroup, RecipeEntry, sha256_file
from compiler import golden, keys, targets
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.models.decoder import DecoderSpec
from compiler.quantize import budget, evidence, runner
from compiler.quantize.calibration import calibration_file, calibration_tokens
from compiler.quantize.packed import PackedWeights, write_config
from compiler.quantize.rules import Assignment, assign
from compiler.slots import HALF, Scheme, Slot, Weights
from compiler.targets.base import TOKENIZER_FILES, Job, copy_tokenizer
from compiler.text import text_file
from compiler.tokenizer import check_tokenizer
from recipes.schema import Calibration, Recipe

FAMILY = "decoder"
_TOOLS = ("edgewright", "torch", "transformers", "onnx", "onnxruntime", "coremltools", "mlx", "apache-tvm")


@dataclass(frozen=True)
class TargetPlan:
    """What a target would come to, from the geometry alone; sizes in bytes. `refused` says why it cannot be built.

    app_bytes: what an app ships of the files, on each platform that runs them.
    """

    target: str
    file_bytes: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    app_bytes: dict[str, int]
    copied_bytes: int
    refused: str | None = None


@dataclass(frozen=True)
class Quantized:
    """A quantized checkpoint on disk with all that the targets need of it."""

    folder: Path
    spec: DecoderSpec
    slots: list[Slot]
    assignment: Assignment
    weights: PackedWeights
    checkpoint: CheckpointEntry
    groups: tuple[QuantizationGroup, ...]
    digest: str
    held_out: golden.HeldOut

    @property
    def unfused(self) -> list[list[str]]:
        """Projections that one matmul could serve, had the rules not given its members different schemes."""
        schemes = self.assignment.schemes
        return [names for names in decoder.fused_projections(self.spec) if len({schemes[n] for n in names}) > 1]


def plan(recipe: Recipe, config: Mapping[str, Any]) -> list[TargetPlan]:
    """Sizes for every target of a recipe. Reads no weights and imports no framework.

    Raises EdgewrightError when the config is not of a known family or a rule does not fit it.
    """
    spec = decoder.read_spec(dict(config))
    _check_context(recipe, spec)
    slots = decoder.slots(spec)
    schemes = assign(recipe.quantize.rules, slots).schemes
    plans = []
    for name, options in recipe.targets.items():
        target = targets.load_target(name)
        refused = "; ".join(target.refusals(spec, slots, schemes, options)) or None
        estimate = target.estimate(spec, slots, schemes, recipe.context.max_tokens, options)
        plans.append(
            TargetPlan(
                name,
                estimate.file_bytes,
                estimate.weight_bytes,
                estimate.kv_bytes,
                estimate.activation_bytes,
                estimate.app_bytes,
                estimate.copied_bytes,
                refused,
            )
        )
    return plans


def known_positions(config: Mapping[str, Any]) -> int:
    """The longest context that a checkpoint knows. Raises EdgewrightError when its config is of no known family."""
    return decoder.read_spec(dict(config)).max_positions


def _check_context(recipe: Recipe, spec: DecoderSpec) -> None:
    if recipe.context.max_tokens > spec.max_positions:
        raise EdgewrightError(
            f"context.max_tokens is {recipe.context.max_tokens}, the checkpoint knows {spec.max_positions} positions"
        )


def quantize(
    recipe: Recipe, checkpoint: Checkpoint, source: str, revision: str | None, out: Path, progress: Progress
) -> Quantized:
    """Quantize a checkpoint into `out`, a folder in the compressed-tensors format that transformers loads.

    source, revision: where the checkpoint came from, for the manifest. An earlier result for the same checkpoint and
    rules is used as it is. Raises EdgewrightError before a weight is read when any target refuses the recipe.
    """
    spec = decoder.read_spec(checkpoint.config)
    _check_context(recipe, spec)
    slots = decoder.slots(spec, checkpoint.names())
    _check_shapes(checkpoint, slots)
    check_tokenizer(checkpoint.path, spec.vocab)
    calibration = recipe.quantize.calibration or Calibration()
    text = calibration_file(calibration, recipe.resolve(calibration.text))
    assignment = assign(recipe.quantize.rules, slots)
    looks = recipe.quantize.budget is not None or runner.calibrates(assignment)
    held_out = golden.held_out(_quality_text(recipe, text, looks), checkpoint.path, spec, recipe.context.max_tokens)
    files = keys.CheckpointFiles(checkpoint, out.parent)
    chosen = None
    if recipe.quantize.budget is not None:
        chosen = _within_budget(recipe, checkpoint, spec, slots, text, files, out.parent, progress)
        assignment = assign(budget.rules_of(chosen, assignment), slots)
    for name, options in recipe.targets.items():
        if refusals := targets.load_target(name).refusals(spec, slots, assignment.schemes, options):
            raise EdgewrightError("; ".join(refusals))

    calibrated = runner.calibrates(assignment)
    looked_at = _looked_at(calibration, text, checkpoint, spec) if calibrated else None

    groups, config = _groups(slots, assignment), text_config(checkpoint)
    beside = keys.digest(config, keys.file_digests(checkpoint.path, TOKENIZER_FILES))

    def drafted(found: tuple[CheckpointFile, ...], made_by: dict[str, str], weights: str) -> ManifestDraft:
        key = keys.weights(found, checkpoint, spec, assignment, looked_at)
        return ManifestDraft(
            created_by=made_by,
            recipe=RecipeEntry(name=recipe.name, digest=recipe.digest),
            target="checkpoint",
            family=FAMILY,
            checkpoint=CheckpointEntry(source=source, revision=revision, files=found),
            quantization=groups,
            runtime={"key": key, "beside": beside},
            weights_digest=weights,
        )

    earlier = _earlier(out)
    known = None
    if earlier is not None or calibrated:  # a key is needed before there is work beside which to hash
        known = files.remembered() or files.read()
    draft = known and earlier and drafted(known, earlier.created_by, earlier.weights_digest)
    if draft and earlier and earlier.runtime.get("key") == draft.runtime["key"]:
        if any(getattr(earlier, field) != value for field, value in draft):
            _renew(out, earlier, draft, config, assignment, checkpoint.path)
    else:
        work = out.parent / f".calibration-{keys.weights(known or (), checkpoint, spec, assignment, looked_at)[:16]}"
        with staged(out, needed_bytes=sum(g.bytes for g in groups)) as partial, ThreadPoolExecutor(1) as pool:
            hashed = pool.submit(files.read)
            found = runner.run(checkpoint, spec, slots, assignment, calibration, text, partial, work, config, progress)
            evidence.write(partial, found)
            if chosen is not None:
                budget.write_rules(partial, budget.rules_of(chosen, assignment), chosen)
            copy_tokenizer(checkpoint.path, partial)
            draft = drafted(hashed.result(), tool_versions(), sha256_file(partial / "model.safetensors"))
            write_manifest(partial, draft)
        shutil.rmtree(work, ignore_errors=True)
    files.remember()
    manifest = read_manifest(out)
    weights = PackedWeights(out)
    entry, digest = manifest.checkpoint, manifest.weights_digest
    return Quantized(out, spec, slots, assignment, weights, entry, groups, digest, held_out)


def _renew(
    out: Path,
    earlier: Manifest,
    draft: ManifestDraft,
    config: Mapping[str, Any],
    assignment: Assignment,
    source: Path,
) -> None:
    """The same weights under another manifest, with the tokenizer and config that the checkpoint has now."""
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


def _quality_text(recipe: Recipe, calibration: Path | None, looks: bool) -> Path | None:
    """The text that quality is measured on. Raises EdgewrightError when it is the one that calibration looks at."""
    if recipe.validation.quality is None:
        return None
    name = recipe.validation.quality.text
    file = text_file(golden.TEXT_KEY, name, recipe.resolve(name))
    if file and calibration and looks and sha256_file(file.resolve()) == sha256_file(calibration.resolve()):
        raise EdgewrightError(
            f"{golden.TEXT_KEY}: {name} is what quantize.calibration looks at, so it says nothing about other text; "
            "give another file"
        )
    return file


def _looked_at(calibration: Calibration, text: Path | None, checkpoint: Checkpoint, spec: DecoderSpec) -> str:
    """The token ids that calibration sees, and with them text, tokenizer and chat template, as a digest."""
    return keys.array_digest(calibration_tokens(calibration, text, checkpoint.path, spec))


def build(
    recipe: Recipe, target: str, quantized: Quantized, checkpoint: Checkpoint, folder: Path, progress: Progress
) -> ManifestDraft:
    """Write one target's package into an empty folder; golden vectors and the manifest are left to the caller."""
    job = Job(
        name=recipe.name,
        spec=quantized.spec,
        slots=quantized.slots,
        schemes=quantized.assignment.schemes,
        max_tokens=recipe.context.max_tokens,
        weights=quantized.weights,
        tokenizer=checkpoint.path,
        options=recipe.targets[target],
    )
    runtime = targets.load_target(target).build(job, folder, progress)
    shutil.copyfile(quantized.folder / evidence.FILE, folder / evidence.FILE)
    return ManifestDraft(
        created_by=tool_versions(),
        recipe=RecipeEntry(name=recipe.name, digest=recipe.digest),
        target=target,
        family=FAMILY,
        checkpoint=quantized.checkpoint,
        quantization=quantized.groups,
        runtime=runtime,
        weights_digest=quantized.digest,
    )


def write_golden(
    recipe: Recipe, target: str, quantized: Quantized, checkpoint: Checkpoint, folder: Path, progress: Progress
) -> None:
    """Golden vectors of a package. They depend on no target but for the tolerances: computed once, then copied."""
    spec, schemes, held_out = quantized.spec, quantized.assignment.schemes, quantized.held_out
    tolerances = targets.load_target(target).tolerances
    key = keys.vectors(
        quantized.checkpoint.files, checkpoint, spec, schemes, quantized.digest, held_out.tokens, held_out.text
    )
    place = quantized.folder.parent
    cached = place / f".golden-{key[:16]}.safetensors"
    if not golden.copy_with_tolerances(cached, folder / GOLDEN, tolerances):
        sides: dict[str, Weights] = {
            "reference": quantized.weights,
            "original": OriginalWeights(checkpoint, quantized.slots),
        }
        made = folder / cached.name  # in the folder of an unfinished package: a killed run leaves nothing behind
        golden.write(made, spec, schemes, held_out, sides, progress)
        golden.copy_with_tolerances(made, folder / GOLDEN, tolerances)
        made.replace(cached)
    for old in place.glob(".golden-*"):
        if old != cached:
            old.unlink(missing_ok=True)


class OriginalWeights:
    """The unquantized checkpoint as a table of weights by slot name."""

    def __init__(self, checkpoint: Checkpoint, slots: list[Slot]) -> None:
        self._checkpoint = checkpoint
        self._tensors = {s.name: s.tensor for s in slots}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        return self._checkpoint.rows(self._tensors[name], start, stop)


def text_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json of the text decoder alone, as transformers loads it."""
    config = dict(checkpoint.config)
    if config.get("model_type") in decoder.WRAPPERS:
        tied = config.get("tie_word_embeddings")
        config = dict(config["text_config"])
        if tied is not None:
            config.setdefault("tie_word_embeddings", tied)
        config["architectures"] = [f"{config['model_type'].capitalize()}ForCausalLM"]
    config.pop("quantization_config", None)
    return config


def tool_versions() -> dict[str, str]:
    """Versions of what took part, Python included."""
    found = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _check_shapes(checkpoint: Checkpoint, slots: list[Slot]) -> None:
    for slot in slots:
        checkpoint.check(slot.tensor, slot.shape)


def _within_budget(
    recipe: Recipe,
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    slots: list[Slot],
    text: Path | None,
    files: keys.CheckpointFiles,
    folder: Path,
    progress: Progress,
) -> budget.Chosen:
    """What a budget leads to, measured once: it is kept in `folder` for the next run."""
    quantize, assignment = recipe.quantize, assign(recipe.quantize.rules, slots)
    assert quantize.budget is not None
    calibration = quantize.calibration or Calibration()
    calibration = calibration.model_copy(
        update={"tokens": min(budget.TOKENS, calibration.tokens), "seed": calibration.seed + 1}
    )
    targeted = [(targets.load_target(name), options) for name, options in recipe.targets.items()]

    def allowed(members: Sequence[Slot], scheme: Scheme) -> bool:
        schemes = dict.fromkeys((s.name for s in members), scheme)
        return not any(target.refusals(spec, list(members), schemes, options) for target, options in targeted)

    tokens = calibration_tokens(calibration, text, checkpoint.path, spec)
    looked_at = [keys.array_digest(tokens), quantize.budget.model_dump(), sorted(recipe.targets)]
    key = keys.weights(files.remembered() or files.read(), checkpoint, spec, assignment, looked_at)
    file = folder / f".budget-{key[:16]}.json"
    found = budget.load(file)
    if found is None:
        table = OriginalWeights(checkpoint, slots)
        found = budget.choose(quantize.budget, assignment, spec, slots, table, tokens, allowed, progress)
        folder.mkdir(parents=True, exist_ok=True)
        budget.save(file, found)
    return found


def _earlier(out: Path) -> Manifest | None:
    """The manifest of quantized weights that an earlier run left whole."""
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_manifest(out)
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
