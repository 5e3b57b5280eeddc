"""The `runtime` section of an MLX package's manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0)]


class Function(BaseModel):
    """A `.mlxfn` file: traces of one entry, in float16 and float32, for each of `sizes` of its named dimensions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: str
    entry: str
    file: str


class Exported(BaseModel):
    """A `.mlxfn` file beside what the loader takes: a decoder's traces for so many tokens and for one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    prefill_tokens: Count


class MlxRuntime(BaseModel):
    """How the package is loaded.

    loader: "mlx-lm" for a text decoder, whose cache has these sizes and `kv_bits`; "functions" for traced entries over
    the tensors of `model*.safetensors`. exported: for apps that take neither. payload: what an app ships, by platform
    (`artifacts.payload`), {} until the package is whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    loader: Literal["mlx-lm", "functions"]
    requires: dict[str, str] = {"mlx": ">=0.32"}
    payload: dict[str, tuple[str, ...]] = {}
    functions: tuple[Function, ...] = ()
    exported: Exported | None = None
    layers: Count = 1
    kv_heads: Count = 1
    head_dim: Count = 1
    max_tokens: Count = 1
    kv_bits: Literal[4, 8, 16] = 16
    kv_group: Literal[32, 64] | None = None
