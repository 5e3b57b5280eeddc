"""The `runtime` section of a Core ML artifact's manifest, and the names that its programs hold for the session."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LAST_POSITION = "last_position"
"""The slice that keeps the last position only: passed over, a prompt's function gives the logits of every position."""
NEW_STATE = "new_"
"""Before the name of an explicit state: the output that is its next value."""


Channel = Annotated[float, Field(allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Image(BaseModel):
    """A feature that is an image, RGB with values of 0 to 255, and the port [1, 3, height, width] that it stands for:
    port = (feature - mean) / std, channel by channel, which the program computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature: str
    port: str
    mean: tuple[Channel, Channel, Channel]
    std: tuple[Spread, Spread, Spread]


class Function(BaseModel):
    """The function of a package that serves an entry.

    firsts: features that take the first value of a port, by name (a decoder's `position`); image: a feature that is
    one; other ports are features under their own names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: str
    entry: str
    package: str
    function: str
    firsts: dict[str, str] = {}
    image: Image | None = None


class CoreMLRuntime(BaseModel):
    """How the packages are loaded. cache: states of the model, or inputs and outputs that the app passes on.

    payload: what an app ships, by platform (`artifacts.payload`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    functions: tuple[Function, ...] = Field(min_length=1)
    cache: Literal["state", "explicit"]
    compute: Literal["fp16", "fp32"]
    compute_units: str
    minimum: str
    memory: Literal["modelled"] = "modelled"
    payload: dict[str, tuple[str, ...]]
