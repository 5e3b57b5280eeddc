"""What quantization did to a model, tensor by tensor and layer by layer: the content of `quantization.json`.

The file lies in the quantized folder and in every package. What lives here: its shape, reading it, and ordering it
worst first. What must not: anything that runs a model (`metrics.py` has the formulas).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts import (
    MANIFEST,
    EdgewrightError,
    Manifest,
    Progress,
    read_manifest,
    require_intact,
    silent,
)
from artifacts.documents import first_error, read_bytes
from artifacts.manifest import payload_file, sha256_file
from compiler.slots import Scheme, Slot

FILE = "quantization.json"
_WEIGHTS = "quantized"
_GOLDEN = "golden.safetensors"
_MAX_BYTES = 64 << 20
_EXACT_DB = 200.0


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorEvidence(_Frozen):
    """One matrix. snr_db: of its weights, 10 log10(|W|² / |W - Ŵ|²). output_error: |(W - Ŵ)x| / |Wx|, root mean
    square over calibration inputs; None where the method looked at none."""

    slot: str
    bits: int
    group: int | Literal["channel"]
    symmetric: bool
    method: str
    parameters: int
    bytes: int
    snr_db: float
    output_error: float | None = None

    @classmethod
    def of(
        cls, slot: Slot, scheme: Scheme, method: str, signal: float, noise: float, output_error: float | None = None
    ) -> TensorEvidence:
        """From the sums of squares of a matrix and of its error."""
        snr = 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else _EXACT_DB
        return cls(
            slot=slot.name,
            bits=scheme.bits,
            group=scheme.group or "channel",
            symmetric=scheme.symmetric,
            method=method,
            parameters=slot.rows * slot.columns,
            bytes=scheme.packed_bytes(slot.rows, slot.columns),
            snr_db=round(min(snr, _EXACT_DB), 3),
            output_error=output_error,
        )


class LayerEvidence(_Frozen):
    """The relative error |x̂ - x| / |x| of the hidden states after a layer; what came before it is quantized too."""

    layer: int
    output_error: float


class ActivationEvidence(_Frozen):
    """What activations of 8 bits cost a component's outputs, on samples that no range was found on.

    values: how many are rounded. convolutions: how many multiply codes, `of` those that the rules name, and products:
    their share of the component's multiplications. snr_db: of the outputs against the same weights with activations in
    float, 10 log10(|y|² / |y - ŷ|²); all_snr_db: had nothing been kept in float; min_snr_db: what the rule asks for.
    alone: of each convolution, the SNR with the worst of its values alone rounded, worst first, where that was asked.
    kept: those that keep floats.
    """

    component: str
    values: int
    convolutions: int
    of: int
    products: float
    snr_db: float
    all_snr_db: float
    min_snr_db: float | None
    alone: dict[str, float]
    kept: tuple[str, ...]


class TextEvidence(_Frozen):
    """Against the unquantized checkpoint on held-out text; mean_kl in nats (a lower bound from the 64 top ids)."""

    text: str
    tokens: int
    perplexity: float
    perplexity_original: float
    mean_kl: float
    top1_agreement: float


class QuantizationEvidence(_Frozen):
    """All of it, tensors worst first. `quantization.json` holds it without `held_out`, which golden vectors give."""

    schema_version: Literal[1] = 1
    calibration: str | None
    tensors: tuple[TensorEvidence, ...]
    layers: tuple[LayerEvidence, ...]
    activations: tuple[ActivationEvidence, ...] = ()
    held_out: TextEvidence | None = None

    @classmethod
    def of(
        cls, tensors: list[TensorEvidence], layers: list[LayerEvidence], calibration: str | None = None
    ) -> QuantizationEvidence:
        """Tensors by their signal-to-noise ratio, worst first."""
        ordered = tuple(sorted(tensors, key=lambda t: t.snr_db))
        return cls(calibration=calibration, tensors=ordered, layers=tuple(layers))


def write(folder: Path, evidence: QuantizationEvidence) -> None:
    (folder / FILE).write_text(evidence.model_dump_json(indent=1) + "\n", encoding="utf-8")


def report(artifact: Path, progress: Progress = silent) -> QuantizationEvidence:
    """The evidence of an artifact, of its quantized weights, or of the folder that holds both.

    Figures on held-out text come from golden vectors where there are any. Digests are recomputed first, as figures
    about files that were changed would be about nothing. Raises EdgewrightError.
    """
    from compiler.quantize.metrics import held_out

    is_recipe = not (artifact / MANIFEST).exists() and (artifact / _WEIGHTS / MANIFEST).exists()
    folder = artifact / _WEIGHTS if is_recipe else artifact
    manifest = require_intact(folder, progress)
    found = read(folder, manifest)
    golden = _golden(folder, manifest)
    if is_recipe:
        golden = next(_goldens(artifact, manifest), None)
    return found if golden is None else found.model_copy(update={"held_out": held_out(golden)})


def read(folder: Path, manifest: Manifest) -> QuantizationEvidence:
    """What an artifact's folder holds, its digests unchecked and without `held_out`. Raises EdgewrightError."""
    path = folder / FILE
    if all(file.path != FILE for file in manifest.files):
        raise EdgewrightError(f"{folder}: holds no {FILE}: build it again")
    try:
        return QuantizationEvidence.model_validate_json(read_bytes(path, _MAX_BYTES, links=False))
    except ValidationError as error:
        raise EdgewrightError(f"{path}: {first_error(error)}; build the artifact again or fetch it anew") from error


def _goldens(recipe: Path, weights: Manifest) -> Iterator[Path]:
    """Golden vectors of the packages in a recipe's folder that were built from these very weights, digests checked."""
    for path in sorted(recipe.glob(f"*/{MANIFEST}")):
        manifest = read_manifest(path.parent)
        if manifest.target != weights.target and manifest.weights_digest == weights.weights_digest:
            golden = _golden(path.parent, manifest)
            if golden is None:
                continue
            listed = next(file for file in manifest.files if file.path == _GOLDEN)
            if sha256_file(golden) != listed.sha256:
                raise EdgewrightError(f"{golden}: sha256 differs: the content was changed; build the artifact again")
            yield golden


def _golden(folder: Path, manifest: Manifest) -> Path | None:
    """An artifact's golden vectors; None where its manifest lists none."""
    listed = next((file for file in manifest.files if file.path == _GOLDEN), None)
    if listed is None:
        return None
    if listed.size > _MAX_BYTES:
        raise EdgewrightError(
            f"{folder / _GOLDEN}: {listed.size:,} bytes, which no golden vectors have; build it again"
        )
    return payload_file(folder, _GOLDEN)
