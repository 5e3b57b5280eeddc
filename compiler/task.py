"""A task: questions that an artifact will be asked, answered by the unquantized checkpoint first.

What lives here: what `artifacts/formats/task.py` describes, made from a recipe's `validate.task`. What must not:
reading questions (`questions.py`), and asking an artifact (`runtime_tests/task.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import EdgewrightError, Progress
from artifacts.formats import task as formats
from artifacts.formats.task import Question, Questions
from artifacts.formats.tensor_file import write_tensors
from artifacts.manifest import sha256_file
from compiler.answers import Prompt, greedy
from compiler.models.base import Model
from compiler.questions import Asking, Given, Medium, Reader, entries
from compiler.slots import Schemes, Weights
from recipes.schema import Task

_FILE = "validate.task.file"
_MAX_MEDIA = formats.MAX_BYTES - (64 << 20)  # the rest is for the questions


@dataclass(frozen=True)
class Asked:
    """A task that was read. media: each distinct file's bytes; prompts: of each question; reader: what read them."""

    reader: Reader
    questions: Questions
    media: tuple[bytes, ...]
    prompts: tuple[Prompt, ...]

    @property
    def digest(self) -> str:
        """sha256 in hex over the questions, their tokens and all that travels along."""
        found = hashlib.sha256(self.questions.model_dump_json().encode())
        for part in (*self.media, *(prompt.ids.tobytes() for prompt in self.prompts)):
            found.update(hashlib.sha256(part).digest())
        return found.hexdigest()


def read(task: Task, file: Path, reader: Reader, model: Model, checkpoint: Path) -> Asked:
    """The questions of a recipe's file. Raises EdgewrightError naming file and line."""
    if not file.is_file():
        raise EdgewrightError(f"{_FILE}: {file}: no such file")
    asking, pool = Asking(file.parent, checkpoint, reader.sees), _Pool()
    questions: list[Question] = []
    prompts: list[Prompt] = []
    for entry in entries(_FILE, file, reader.sees):
        given = asking.given(entry)
        media = tuple(pool.take(medium, entry.where) for medium in given.media)
        questions.append(
            Question(prompt=given.text, templated=given.templated, media=media, answers=entry.answers, original="")
        )
        prompts.append(_read(reader, given, model))
    name = "".join(c if c.isprintable() else "?" for c in file.name)[:80]
    found = Questions(
        source=f"{name} (sha256 {sha256_file(file.resolve())[:12]}…)",
        leading=tuple(reader.tokenizer.leading()),
        max_answer_tokens=task.max_answer_tokens,
        questions=tuple(questions),
    )
    return Asked(reader, found, tuple(pool.files), tuple(prompts))


def _read(reader: Reader, given: Given, model: Model) -> Prompt:
    context: Any = model.constants["max_tokens"]
    try:
        prompt = reader.read(given)
    except EdgewrightError as error:
        raise EdgewrightError(f"{given.where}: {error}") from error
    if not 0 < len(prompt.ids) < context:
        raise EdgewrightError(
            f"{given.where}: its prompt has {len(prompt.ids):,} tokens; context.max_tokens is {context:,}, and an "
            "answer needs at least one"
        )
    return prompt


class _Pool:
    """The files that questions speak of, each once."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self._numbers: dict[str, int] = {}
        self._bytes = 0

    def take(self, medium: Medium, where: str) -> formats.Medium:
        key = hashlib.sha256(medium.raw).hexdigest()
        if key not in self._numbers:
            self._numbers[key] = len(self.files)
            self.files.append(medium.raw)
            self._bytes += len(medium.raw)
        if self._bytes > _MAX_MEDIA:
            raise EdgewrightError(
                f"{where}: the images and clips up to here are {self._bytes >> 20} MiB; they travel with every "
                f"artifact, {_MAX_MEDIA >> 20} at most: take fewer or smaller ones"
            )
        return formats.Medium.model_validate({"kind": medium.kind, "file": self._numbers[key]})


def write(path: Path, asked: Asked, model: Model, schemes: Schemes, original: Weights, progress: Progress) -> None:
    """Answer the questions by the unquantized weights and write everything that an artifact is asked."""
    questions, reader = asked.questions.questions, asked.reader
    guesses = [reader.tokenizer.encode(question.answers[0]).ids for question in questions]

    def report(done: int, total: int) -> None:
        progress("answers of the unquantized model", done, total)

    most = asked.questions.max_answer_tokens
    said = greedy(model, schemes, original, reader.enter, asked.prompts, guesses, most, report)
    answered = tuple(
        question.model_copy(update={"original": reader.decode(ids)})
        for question, ids in zip(questions, said, strict=True)
    )
    content = asked.questions.model_copy(update={"questions": answered})
    arrays = {formats.tensor(n): np.frombuffer(raw, np.uint8) for n, raw in enumerate(asked.media)}
    write_tensors(path, arrays, {"questions": content.model_dump_json()}, formats.MAX_BYTES)
