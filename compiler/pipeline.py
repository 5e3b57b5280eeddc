"""The compiler, as one page: checkpoint → quantized weights → one package for each target, with its golden vectors.

Takes recipes and folders, never phone profiles, and runs no artifact. Stages are resumable: quantized weights whose
key (checkpoint files, rules) is unchanged are used again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from artifacts import MANIFEST, EdgewrightError, ManifestDraft, Progress, read_manifest, staged, write_manifest
from artifacts.manifest import CheckpointEntry, CheckpointFile, QuantizationGroup, RecipeEntry, sha256_file
from compiler import golden, targets
from compiler.checkpoint import Checkpoint
from compiler.models import decoder
from compiler.models.decoder import DecoderSpec
from compiler.quantize import budget, evidence, methods
from compiler.quantize.calibration import calibration_file, calibration_tokens
from compiler.quantize.packed import PackedWeights
from compiler.quantize.rules import Assignment, assign, options_of
from compiler.slots import HALF, Scheme, Slot, Weights
from compiler.targets.base import Job, copy_tokenizer
from recipes.schema import Calibration, Recipe

FAMILY = "decoder"
_TOOLS = ("edgewright", "torch", "transformers", "onnx", "onnxruntime", "coremltools", "mlx", "apache-tvm")


@dataclass(frozen=True)
class TargetPlan:
    """What a target would come to, from the geometry alone; sizes in bytes. `refused` says why it cannot be built."""

    target: str
    file_bytes: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
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
                refused,
            )
        )
    return plans


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
    calibration = recipe.quantize.calibration or Calibration()
    text = calibration_file(calibration, recipe.resolve(calibration.text))
    assignment = assign(recipe.quantize.rules, slots)
    chosen = None
    if recipe.quantize.budget is not None:
        chosen = _within_budget(recipe, checkpoint, spec, slots, text, out.parent, progress)
        assignment = assign(budget.rules_of(chosen, assignment), slots)
    for name, options in recipe.targets.items():
        if refusals := targets.load_target(name).refusals(spec, slots, assignment.schemes, options):
            raise EdgewrightError("; ".join(refusals))

    key = _key(calibration, text, checkpoint, assignment)
    groups = _groups(slots, assignment)
    if not _finished(out, key):
        needed = sum(g.bytes for g in groups)
        work = out.parent / f".calibration-{key[:16]}"
        config = text_config(checkpoint)
        with staged(out, needed_bytes=needed) as partial, ThreadPoolExecutor(1) as pool:
            files = pool.submit(_hash_files, checkpoint)
            found = methods.run(checkpoint, spec, slots, assignment, calibration, text, partial, work, config, progress)
            evidence.write(partial, found)
            if chosen is not None:
                budget.write_rules(partial, budget.rules_of(chosen, assignment), chosen)
            copy_tokenizer(checkpoint.path, partial)
            draft = ManifestDraft(
                created_by=tool_versions(),
                recipe=RecipeEntry(name=recipe.name, digest=recipe.digest),
                target="checkpoint",
                family=FAMILY,
                checkpoint=CheckpointEntry(source=source, revision=revision, files=files.result()),
                quantization=groups,
                runtime={"key": key},
                weights_digest=sha256_file(partial / "model.safetensors"),
            )
            write_manifest(partial, draft)
        shutil.rmtree(work, ignore_errors=True)
    manifest = read_manifest(out)
    weights = PackedWeights(out)
    return Quantized(out, spec, slots, assignment, weights, manifest.checkpoint, groups, manifest.weights_digest)


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
    max_tokens = recipe.context.max_tokens
    cached = quantized.folder.parent / f".golden-{quantized.digest[:16]}-{max_tokens}.safetensors"
    if not cached.exists():
        tokenizer = checkpoint.path / "tokenizer.json"
        tokens, text = golden.held_out_tokens(tokenizer if tokenizer.exists() else None, quantized.spec, max_tokens)
        sides: dict[str, Weights] = {
            "reference": quantized.weights,
            "original": OriginalWeights(checkpoint, quantized.slots),
        }
        partial = cached.with_suffix(f".partial-{os.getpid()}")
        golden.write(partial, quantized.spec, quantized.assignment.schemes, tokens, text, sides, progress)
        partial.rename(cached)
    golden.copy_with_tolerances(cached, folder / "golden.safetensors", targets.load_target(target).tolerances)


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
        expected = (slot.columns,) if slot.is_vector else (slot.rows, slot.columns)
        found = checkpoint.shape(slot.tensor)
        if found != expected:
            raise EdgewrightError(
                f"{checkpoint.path}: tensor {slot.tensor!r} has shape {list(found)}; config.json says {list(expected)}"
            )


def _hash_files(checkpoint: Checkpoint) -> tuple[CheckpointFile, ...]:
    files = [checkpoint.path / "config.json", *checkpoint.tensors.files]
    return tuple(CheckpointFile(path=f.name, size=f.stat().st_size, sha256=sha256_file(f.resolve())) for f in files)


def _within_budget(
    recipe: Recipe,
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    slots: list[Slot],
    text: Path | None,
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

    key = _key(calibration, text, checkpoint, assignment, [quantize.budget.model_dump(), sorted(recipe.targets)])
    file = folder / f".budget-{key[:16]}.json"
    found = budget.load(file)
    if found is None:
        tokens = calibration_tokens(calibration, text, checkpoint.path, spec)
        table = OriginalWeights(checkpoint, slots)
        found = budget.choose(quantize.budget, assignment, spec, slots, table, tokens, allowed, progress)
        folder.mkdir(parents=True, exist_ok=True)
        budget.save(file, found)
    return found


def _key(
    calibration: Calibration, text: Path | None, checkpoint: Checkpoint, assignment: Assignment, more: Any = None
) -> str:
    """What quantized weights depend on: the checkpoint's files, every tensor's scheme and method, the calibration."""
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in checkpoint.tensors.files]
    rules = {n: (r.bits, r.group, r.symmetric, r.method, options_of(r)) for n, r in assignment.rules.items()}
    looks = more is not None or methods.calibrates(assignment)
    looked_at = [calibration.model_dump(), text and sha256_file(text)] if looks else None
    content = [str(checkpoint.path.resolve()), stats, checkpoint.config, rules, looked_at, more]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _finished(out: Path, key: str) -> bool:
    if not (out / MANIFEST).is_file():
        return False
    manifest = read_manifest(out)
    sizes = all((out / f.path).is_file() and (out / f.path).stat().st_size == f.size for f in manifest.files)
    return manifest.target == "checkpoint" and manifest.runtime.get("key") == key and sizes


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
