"""What a recipe may say of the TVM target. Light: imported to compose the recipe schema."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TvmOptions(BaseModel):
    """Options of `targets: {tvm: …}`. A library for this machine is always built: it is what gets tested."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    triples: tuple[str, ...] = Field(
        ("aarch64-linux-android24", "arm64-apple-ios16.0"),
        description="what to build for, besides this machine: aarch64-linux-android<API>, arm64-apple-ios<version>, "
        "aarch64-linux-gnu",
    )
    features: tuple[str, ...] = Field(
        ("neon", "dotprod", "i8mm"),
        description="ARM variants, one library each, of which the phone loads the best it has: neon (any ARMv8 core, "
        "float32 activations), dotprod, i8mm (int8 activations)",
    )
    scales: Literal["float16", "float32"] = Field(
        "float16", description="how group scales are stored; both are exact, float16 reads fewer bytes"
    )
    chunk: int = Field(128, ge=1, le=4096, description="tokens of a prompt that run at once; memory is planned for it")


OPTIONS = TvmOptions
