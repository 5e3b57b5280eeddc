"""What a recipe may say of the Core ML target. Light: imported to compose the recipe schema."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class CoreMLOptions(BaseModel):
    """Options of `targets: {coreml: …}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minimum: Literal["iOS17", "iOS18"] = Field("iOS18", description="oldest system that must load the package")
    cache: Literal["state", "explicit"] = Field(
        "state", description="KV cache as Core ML states (iOS 18), or as inputs and outputs that the app passes on"
    )
    prompt: Literal["range", "enumerated"] = Field(
        "enumerated", description="prompt lengths: any up to the context, or the listed ones (the Neural Engine's way)"
    )
    prompt_lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 64, 256), max_length=128, description="lengths of a prefill call when prompt is enumerated, ascending"
    )
    compute: Literal["fp16", "fp32"] = "fp16"
    compute_units: Literal["all", "cpu_and_gpu", "cpu_and_neural_engine", "cpu_only"] = Field(
        "cpu_and_gpu", description="hint written into the package's metadata and its Swift snippet"
    )

    @model_validator(mode="after")
    def _lengths_ascend(self) -> Self:
        if list(self.prompt_lengths) != sorted(set(self.prompt_lengths)):
            raise ValueError(f"prompt_lengths must ascend without repeats, not {list(self.prompt_lengths)}")
        if self.prompt == "enumerated" and not self.prompt_lengths:
            raise ValueError("prompt is enumerated, so prompt_lengths must name at least one length")
        return self

    @property
    def stateful(self) -> bool:
        return self.cache == "state"

    @property
    def multifunction(self) -> bool:
        """Whether prefill and decode are two functions; below iOS 18 a package has one."""
        return self.minimum == "iOS18"


OPTIONS = CoreMLOptions
