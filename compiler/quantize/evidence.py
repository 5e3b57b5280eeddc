"""What quantization did to a model, tensor by tensor and layer by layer: the content of `quantization.json`.

The file lies in the quantized folder. What lives here: its shape, reading it, and ordering it worst first. What must
not: anything that runs a model (`metrics.py` has the formulas).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts import EdgewrightError
from compiler.slots import Scheme, Slot

FILE = "quantization.json"
_EXACT_DB = 200.0


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


def report(artifact: Path) -> QuantizationEvidence:
    """The evidence of an artifact, of its quantized weights, or of the folder that holds both.

    Figures on held-out text come from golden vectors where the folder has them. Raises EdgewrightError.
    """
    from compiler.quantize.metrics import held_out

    found = read(artifact)
    for golden in (artifact / "golden.safetensors", *sorted(artifact.glob("*/golden.safetensors"))):
        if golden.is_file():
            return found.model_copy(update={"held_out": held_out(golden)})
    return found


def read(folder: Path) -> QuantizationEvidence:
    """`quantization.json` of a folder, of its `quantized` folder, or of the one beside it. Raises EdgewrightError."""
    for place in (folder, folder / "quantized", folder.parent / "quantized"):
        if (place / FILE).is_file():
            try:
                return QuantizationEvidence.model_validate_json((place / FILE).read_bytes())
            except (ValidationError, OSError) as error:
                raise EdgewrightError(f"{place / FILE}: {error}") from error
    raise EdgewrightError(f"{folder}: no {FILE} here, in quantized/ or beside it: build it again")
