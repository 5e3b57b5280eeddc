"""What a recipe may say of the ONNX target. Light: imported to compose the recipe schema."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OnnxOptions(BaseModel):
    """Options of `targets: {onnx: …}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy_level: Literal[0, 1, 4] = Field(
        4,
        description="4 quantizes activations to int8 (fast): in MatMulNBits by blocks, in DynamicQuantizeMatMul "
        "(8 bits with one scale per row, outside of decoders) with one scale per call; 0 and 1 keep them in float32",
    )
    logits: Literal["last", "all"] = Field(
        "last", description="logits of the last position only (prefill memory does not grow with the prompt), or all"
    )
    kv_bits: Literal[8, 32] = Field(32, description="8 keeps keys and values as INT8, with scales measured on text")
    kv_scales: Literal["channel", "tensor"] = Field(
        "channel", description="INT8 cache: a scale for each channel of each head, or one for each cache tensor"
    )
    ort: bool = Field(
        False,
        description="components of at most 32 MiB also in the ORT format of mobile builds, and the operators they need",
    )

    prepacked: Literal["host", "neon", "dotprod", "i8mm"] | None = Field(
        None,
        description="weights also as kernels pack them, by this machine's onnxruntime (host) or the one for ARM64 on "
        "an emulated processor with such instructions: about twice the file, and no copies of weights in memory where "
        "it runs on such a processor",
    )

    @property
    def calibrated(self) -> bool:
        """Whether scales are measured on calibration text."""
        return self.kv_bits == 8


OPTIONS = OnnxOptions
