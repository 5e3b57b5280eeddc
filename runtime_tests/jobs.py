"""What a child process is told to do: written by the parent, read by `child.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime_tests.quality import QualityLimits


class Job(BaseModel):
    """What to do with an artifact whose digests the parent has checked.

    steps: how often the driver goes on after its first call: tokens to decode, rounds. prompt_tokens: of text in a
    "memory" job; None: as many as leave room for the steps in the context. tiles: of an image there; None: the most.
    limits: of a "quality" job. prompt (tokens) and text, which they were encoded from if there is a tokenizer, and
    image, a file in base64: of a "genai" job. film: where a "quality" job may leave something to look at.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["quality", "task", "memory", "genai", "model_memory"]
    artifact: Path
    threads: int = Field(2, gt=0)
    prompt_tokens: int | None = Field(512, gt=0)
    steps: int = Field(32, gt=0)
    tiles: int | None = Field(None, gt=0)
    limits: QualityLimits = QualityLimits()
    prompt: tuple[int, ...] = ()
    text: str | None = None
    image: str | None = None
    film: Path | None = None
