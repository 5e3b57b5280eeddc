"""What a child process is told to do: written by the parent, read by `child.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime_tests.quality import QualityLimits


class Talk(BaseModel):
    """How a "try" job is talked to.

    requests: a pipe in the file system from which it reads one JSON object per line (`talk.py`); who closes it ends
    the job. temperature (0: the likeliest token), top_p and seed: how tokens are chosen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: Path
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0)


class Job(BaseModel):
    """What to do with an artifact whose digests the parent has checked.

    steps: how often the driver goes on after its first call: tokens to decode, rounds. prompt_tokens: of text in a
    "memory" or "count" job; None: as many as leave room for the steps in the context. tiles: of an image there; None:
    the most. plain: whether a "load" job leaves packed weights. limits: of a "quality" job. golden_tokens: of the
    golden text, all that is then judged. prompt (tokens) and text, which they were encoded from if there is a
    tokenizer, and image, a file in base64: of a "genai" job. film: where a "quality" job may leave something to look
    at. talk: of a "try" job. golden: the artifact whose golden text a "score" job runs over. foreign: the artifact is a
    folder of another tool, of this kind (`foreign.py`), run in a context of so many tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["quality", "task", "memory", "load", "genai", "model_memory", "try", "score", "count"]
    artifact: Path
    threads: int = Field(2, gt=0)
    prompt_tokens: int | None = Field(512, gt=0)
    steps: int = Field(32, gt=0)
    tiles: int | None = Field(None, gt=0)
    plain: bool = False
    limits: QualityLimits = QualityLimits()
    golden_tokens: int | None = Field(None, gt=1)
    prompt: tuple[int, ...] = ()
    text: str | None = None
    image: str | None = None
    film: Path | None = None
    talk: Talk | None = None
    golden: Path | None = None
    foreign: tuple[str, int] | None = None
