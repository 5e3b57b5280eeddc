"""What a package computes, counted when it is built: what a latency model needs of it, and no time.

What lives here: the shape of the count, in a manifest as `work`. What must not: counting (`compiler/work.py`), and
rates of any device (`device_farm`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
Scheme = Annotated[str, Field(pattern=r"^(16|[48]g\d{1,6})$")]
"""How weights are stored: bits and group, as in "4g64" ("4g0": one scale for a row); "16": half precision."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenWork(_Strict):
    """One token through a text decoder of full attention and gated MLPs, its embedding look-up left out.

    weights: multiply-adds of the layers by scheme. head, head_weights: of the matrix that makes logits. width: heads
    times head_dim over all layers; cached: values of keys and values that a position adds. context: the most tokens.
    """

    weights: dict[Scheme, Count]
    head: Scheme
    head_weights: Count
    layers: Annotated[int, Field(gt=0, le=1 << 16)]
    width: Count
    cached: Count
    context: Annotated[int, Field(gt=0, le=1 << 31)]


class StreamWork(_Strict):
    """Frames of an avatar: multiply-adds, elements and operators by class (`device_farm/latency_model.py` has the
    names).

    window: of the calls that turn a window of sound into what its frames are made of, or nothing; frame: of the calls
    for each frame, or nothing. frames: that a window gives. lookahead_ms: of sound that a frame waits for.
    """

    window: dict[str, Count] = {}
    frame: dict[str, Count] = {}
    frames: Annotated[int, Field(gt=0, le=1 << 20)] = 1
    lookahead_ms: Annotated[int, Field(ge=0, le=1 << 20)] = 0


class Work(_Strict):
    """Of a model, what was counted of it; nothing of what a latency model knows nothing about, as image encoders."""

    token: TokenWork | None = None
    stream: StreamWork | None = None
    images: bool = False
