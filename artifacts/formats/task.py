"""task.safetensors: questions that an artifact is asked, with what is right and what the unquantized model answers.

What lives here: what the compiler, which writes the file, and the runtime tests, which distrust it, have to agree on.
Each distinct image or video file that questions speak of is one tensor `media.<n>`, uint8 [bytes], as it was given: the
runner does an app's whole job, from the file to the answer. Everything else is JSON in the metadata.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

TASK = "task.safetensors"
MAX_BYTES = 512 << 20
MAX_QUESTIONS = 10_000
MAX_ANSWER_TOKENS = 4096
STAND_IN_QUESTIONS = 300
"""How many are asked where something slow stands in for the runtime: the first ones."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Medium(_Frozen):
    """An image or a clip; `file` is n of the tensor `media.<n>`."""

    kind: Literal["image", "clip"]
    file: Annotated[int, Field(ge=0)]


class Question(_Frozen):
    """prompt: as the model is given it, with a marker for each of `media` in their order. templated: a chat template
    has put its special tokens in. answers: each of them is right. original: what the unquantized model answers."""

    prompt: Annotated[str, Field(min_length=1)]
    templated: bool
    media: tuple[Medium, ...] = ()
    answers: Annotated[tuple[str, ...], Field(min_length=1)]
    original: str

    def right(self, answer: str) -> bool:
        """Exact match with any of the answers, but for spaces around them."""
        return answer.strip() in {known.strip() for known in self.answers}


class Questions(_Frozen):
    """source: what the file is, in a few printable words. leading: the tokens that the tokenizer puts before a prompt
    which is not templated."""

    version: Literal["1"] = "1"
    source: Annotated[str, Field(min_length=1, max_length=200)]
    leading: tuple[int, ...] = ()
    max_answer_tokens: Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)]
    questions: Annotated[tuple[Question, ...], Field(min_length=1, max_length=MAX_QUESTIONS)]

    @model_validator(mode="after")
    def _printable(self) -> Self:
        if not self.source.isprintable():
            raise ValueError("source is not printable")
        return self


def tensor(file: int) -> str:
    """The name of a medium's tensor."""
    return f"media.{file}"
