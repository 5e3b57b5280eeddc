"""A task: does the artifact, as it ships, answer an app's questions as well as the unquantized checkpoint does?

What lives here: the artifact's questions, asking them of a driver, and the figures and checks of its answers. What must
not: how an answer comes to be (`drivers/`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from artifacts import Check, EdgewrightError, Figure, Manifest, Progress, checked, ran_here, scratch_folder
from artifacts.formats import preprocessing
from artifacts.formats.preprocessing import Preprocessing
from artifacts.formats.task import MAX_BYTES, STAND_IN_QUESTIONS, TASK, Medium, Questions, tensor
from artifacts.manifest import payload_file
from artifacts.media.images import decode_image
from artifacts.media.video import read_clip
from runtime_tests.metrics import wilson

if TYPE_CHECKING:
    from runtime_tests.drivers import Asker

NAME = "task"
_Z = 1.959964


@dataclass(frozen=True)
class TaskLimits:
    """A recipe's limits, fractions; None: reported only."""

    max_accuracy_drop: float | None = None
    min_agreement: float | None = None


def read_questions(artifact: Path) -> Questions:
    """The questions of an artifact. Raises EdgewrightError naming the file."""
    with _opened(payload_file(artifact, TASK)) as (_, found):
        return found


def ask(asker: Asker, artifact: Path, slow: bool, progress: Progress) -> list[str]:
    """The answers, in the order of the questions; the first ones alone where something slow stands in for the runtime.

    Raises EdgewrightError where a question cannot be read or does not fit.
    """
    path = payload_file(artifact, TASK)
    answers: list[str] = []
    with _opened(path) as (file, found), scratch_folder() as folder:
        asked = found.questions[: STAND_IN_QUESTIONS if slow else None]
        description: Preprocessing | None = None
        for number, question in enumerate(asked):
            progress("asking questions", number, len(asked))
            images, clips = [], []
            for medium in question.media:
                raw = _medium(file, medium, path)
                if medium.kind == "image":
                    images.append(decode_image(raw, f"{path}: {tensor(medium.file)}"))
                    continue
                if description is None:
                    description = preprocessing.read(payload_file(artifact, preprocessing.PREPROCESSING), links=False)
                place = folder / tensor(medium.file)
                place.write_bytes(raw)
                clips.append(read_clip(place, description))
                place.unlink()
            leading = () if question.templated else found.leading
            answers.append(asker.answer(question.prompt, images, clips, leading=leading, most=found.max_answer_tokens))
        progress("asking questions", len(asked), len(asked))
    return answers


def judge(
    found: Questions, answers: Sequence[str], limits: TaskLimits, stand_in: str | None
) -> tuple[list[Figure], list[Check]]:
    """Accuracy of artifact and original over the same questions, and how often they give the same answer.

    The interval of what is lost is that of paired questions, for both sides were asked the same ones: Agresti's and
    Min's of 2005, half a question added to what was lost and to what was won, so that few questions do not look sure.
    """
    asked = found.questions[: len(answers)]
    right = np.array([question.right(answer) for question, answer in zip(asked, answers, strict=True)], np.float64)
    before = np.array([question.right(question.original) for question in asked], np.float64)
    same = np.array([q.original == answer for q, answer in zip(asked, answers, strict=True)], np.float64)
    count = len(asked)
    at = f"{count:,} questions" + (f" of {len(found.questions):,}" if count < len(found.questions) else "")
    lost = before - right
    away, won = float((lost > 0).sum()) + 0.5, float((lost < 0).sum()) + 0.5
    middle = (away - won) / (count + 2)
    half = _Z * (away + won - (away - won) ** 2 / (count + 2)) ** 0.5 / (count + 2)
    drop = ran_here(
        "task_accuracy_drop",
        float(lost.mean()),
        "change",
        stand_in,
        at=at,
        interval=(middle - half, middle + half),
    )
    accuracy = ran_here(
        "task_accuracy", float(right.mean()), "fraction", stand_in, at=at, interval=wilson(float(right.sum()), count)
    )
    agreement = ran_here(
        "task_agreement", float(same.mean()), "fraction", stand_in, at=at, interval=wilson(float(same.sum()), count)
    )
    original = Figure(
        name="task_accuracy_original", value=float(before.mean()), unit="fraction", obtained="declared", at=at
    )
    return [accuracy, original, drop, agreement], [
        checked(accuracy, NAME, "right answers", None, "at least"),
        checked(drop, NAME, "right answers lost", limits.max_accuracy_drop, "at most"),
        checked(agreement, NAME, "same answer as unquantized", limits.min_agreement, "at least"),
    ]


def carries_task(manifest: Manifest) -> bool:
    """Whether an artifact has questions."""
    return any(entry.path == TASK for entry in manifest.files)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Questions]]:
    """The open file and its questions."""
    from safetensors import SafetensorError, safe_open

    try:
        if (size := os.stat(path).st_size) > MAX_BYTES:
            raise EdgewrightError(f"{path}: {size} bytes; {MAX_BYTES} at most. Build the artifact again")
        opened: Any = safe_open(path, framework="numpy")
        found = Questions.model_validate_json((opened.metadata() or {}).get("questions", ""))
    except ValidationError as error:
        raise EdgewrightError(
            f"{path}: {error.errors(include_url=False)[0]['msg']}; build the artifact again"
        ) from error
    except (OSError, SafetensorError) as error:
        raise EdgewrightError(f"{path}: cannot be read as safetensors ({error}); build the artifact again") from error
    with opened as file:
        yield file, found


def _medium(file: Any, medium: Medium, path: Path) -> bytes:
    name = tensor(medium.file)
    if name not in file.keys():  # noqa: SIM118  # not a mapping
        raise EdgewrightError(f"{path}: has no {name}, which a question speaks of; build the artifact again")
    raw: bytes = file.get_tensor(name).tobytes()
    return raw
