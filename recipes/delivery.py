"""What a recipe says of the time after a build: how much worse than its baseline it may get, and where it goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from recipes.fields import check_hub_id
from recipes.quantities import Fraction

Kind = Literal["size", "memory", "parity", "quality", "latency", "instructions"]
_Tolerance = Annotated[Fraction, Field(ge=0)]


class Tolerances(BaseModel):
    """Relative, but for figures that are shares or changes, of which it is a difference in points.

    The defaults leave room for what differs between machines and runs alone: measured memory by a page here and there,
    exact parity by the rounding of another instruction set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: _Tolerance = 0.01
    memory: _Tolerance = 0.05
    parity: _Tolerance = 0.5
    quality: _Tolerance = 0.01
    latency: _Tolerance = 0.05
    instructions: _Tolerance = 0.01

    def of(self, kind: Kind) -> float:
        """The tolerance of one kind."""
        found: float = getattr(self, kind)
        return found


class Publish(BaseModel):
    """The repository of `edgewright publish`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: Annotated[str, AfterValidator(check_hub_id)]
    private: bool = True
    accept_licence: str | None = Field(None, description="the checkpoint's, where it forbids commercial use")
