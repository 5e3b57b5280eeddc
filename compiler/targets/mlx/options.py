"""What a recipe may say of the MLX target. Light: imported to compose the recipe schema."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class MlxOptions(BaseModel):
    """Options of `targets: {mlx: …}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kv_bits: Literal[4, 8, 16] = Field(
        16, description="how the package is meant to be run and is tested: 4 and 8 quantize the KV cache, 16 does not"
    )
    mlxfn_prefill: int | None = Field(
        None,
        gt=1,
        description="also write decoder.mlxfn, for C++ and Swift without a model class: prefill of so many tokens, "
        "and decode, over a cache of context.max_tokens",
    )


OPTIONS = MlxOptions
