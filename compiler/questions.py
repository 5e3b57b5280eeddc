"""Questions with their right answers, read from a file that a recipe names, and as the text that a model is given.

A line of the file is one of

    {"question": "What moved?", "answer": "a ring", "video": "clips/3.mp4"}
    {"question": "How many?", "answers": ["2", "two"], "images": ["a.png", "b.png"]}
    {"prompt": "2 + 2 =", "answer": "4"}

paths relative to the file. A question goes through the checkpoint's chat template, its images before it; a prompt is
the text itself, with the model's own markers for images and clips. What must not live here: how a text becomes tokens
and tiles (`compiler/drivers/`), and what questions are for (`task.py`, calibration).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError
from artifacts.documents import DocumentError, parse_json, read_bytes
from artifacts.formats.task import MAX_QUESTIONS
from compiler.answers import Enter, Prompt
from compiler.text import chat_template
from compiler.tokenizer import Encoder

_MAX_BYTES = 64 << 20
_MAX_MEDIUM = 256 << 20
_TEXTS = ("question", "prompt")
_KEYS = {*_TEXTS, "answer", "answers", "image", "images", "video", "videos"}
_KINDS = {"image": "image", "video": "clip"}
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_DESCRIBE = "Describe the image."


@dataclass(frozen=True)
class Medium:
    """kind: image or clip."""

    kind: str
    path: Path
    raw: bytes


@dataclass(frozen=True)
class Given:
    """A text with its images and clips, as a driver reads it. templated: a chat template has put its special tokens in.
    where: file and line, for messages."""

    text: str
    templated: bool
    media: tuple[Medium, ...]
    where: str


@dataclass(frozen=True)
class Entry:
    """A line of the file. key: question or prompt. names: of its images and videos, in the file's own words."""

    key: str
    text: str
    answers: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    where: str


@dataclass(frozen=True)
class Reader:
    """What a driver makes of questions. read: tokens and pictures of a text. enter: what enters the decoder. sees:
    images and clips."""

    read: Callable[[Given], Prompt]
    enter: Callable[[], Enter]
    tokenizer: Encoder
    sees: bool = False

    def decode(self, ids: list[int]) -> str:
        """An answer as it is compared."""
        return self.tokenizer.decode(ids).strip()


def entries(key: str, file: Path, sees: bool) -> Iterator[Entry]:
    """The questions of a .jsonl file; of a folder, each image, to be described. key: of the recipe, for messages.

    Raises EdgewrightError naming file and line.
    """
    if file.is_dir():
        names = sorted(name for name in os.listdir(file) if name.lower().endswith(_IMAGES))
        if not names:
            raise EdgewrightError(f"{key}: {file} holds no image ({', '.join(_IMAGES)})")
        for name in names:
            yield Entry("question", _DESCRIBE, (), (("image", name),), f"{key}: {file / name}")
        return
    try:
        lines = read_bytes(file, _MAX_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise EdgewrightError(f"{key}: {file}: not UTF-8 text at byte {error.start}") from None
    except DocumentError as error:
        raise EdgewrightError(f"{key}: {error}") from error
    count = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{key}: {file}:{number}"
        if (count := count + 1) > MAX_QUESTIONS:
            raise EdgewrightError(f"{where}: more than {MAX_QUESTIONS:,} questions; take a sample of them")
        yield _entry(parse_json(line.encode(), where), where, sees)
    if not count:
        raise EdgewrightError(f"{key}: {file} holds no question")


def _entry(found: Mapping[str, Any], where: str, sees: bool) -> Entry:
    if unknown := [key for key in found if key not in _KEYS]:
        raise EdgewrightError(f"{where}: {unknown[0]!r} is no key of a question; {', '.join(sorted(_KEYS))} are")
    keys = [key for key in _TEXTS if key in found]
    if len(keys) != 1 or not isinstance(found[keys[0]], str) or not found[keys[0]].strip():
        raise EdgewrightError(f"{where}: needs a text under one of {' and '.join(_TEXTS)}")
    answers = _strings(found, "answer", "answers", where)
    if not answers:
        raise EdgewrightError(f"{where}: needs an answer, or several under answers")
    names = [(kind, name) for kind in _KINDS for name in _strings(found, kind, f"{kind}s", where)]
    if names and not sees:
        raise EdgewrightError(f"{where}: speaks of {names[0][1]!r}, and the model sees neither images nor clips")
    text = found[keys[0]].encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a surrogate pair
    return Entry(keys[0], text, answers, tuple(names), where)


def _strings(found: Mapping[str, Any], one: str, many: str, where: str) -> tuple[str, ...]:
    given = found.get(many, []) if one not in found else [found[one]]
    if (one in found and many in found) or not isinstance(given, list) or not all(isinstance(s, str) for s in given):
        raise EdgewrightError(f"{where}: {one} must be a text, or {many} a list of them")
    return tuple(text.encode("utf-8", "replace").decode("utf-8") for text in given)


class Asking:
    """Entries as texts that a checkpoint is given. folder: what names are relative to."""

    def __init__(self, folder: Path, checkpoint: Path, sees: bool) -> None:
        self._folder, self._sees = folder, sees
        self._template = chat_template(checkpoint)
        self._files: dict[Path, bytes] = {}  # thousands of questions may speak of one image: it is held once

    def given(self, entry: Entry, answered: bool = False) -> Given:
        """What is asked, and where `answered` the first answer after it. Raises EdgewrightError."""
        text, templated = entry.text, False
        answer = entry.answers[0] if answered and entry.answers else None
        if entry.key == "question" and (self._template is not None or entry.names):
            text, templated = self._templated(entry, answer), True
        elif answer is not None:
            text = f"{text} {answer}"
        return Given(text, templated, tuple(self._medium(*name, entry.where) for name in entry.names), entry.where)

    def _templated(self, entry: Entry, answer: str | None) -> str:
        if self._template is None:
            raise EdgewrightError(
                f"{entry.where}: the checkpoint has no chat template that says where an image stands; give a prompt "
                "with the model's own markers instead of a question"
            )
        seen = [{"type": kind} for kind, _ in entry.names]
        messages = [{"role": "user", "content": self._content(seen, entry.text)}]
        if answer is not None:
            messages.append({"role": "assistant", "content": self._content([], answer)})
        try:
            return self._template(messages, add_generation_prompt=answer is None)
        except Exception as error:  # a template is a program of the checkpoint's: it may raise anything
            raise EdgewrightError(f"{entry.where}: the chat template refuses the question: {error}") from error

    def _content(self, seen: list[dict[str, str]], text: str) -> Any:
        return [*seen, {"type": "text", "text": text}] if self._sees else text

    def _medium(self, kind: str, name: str, where: str) -> Medium:
        path = self._folder / name
        try:
            if path not in self._files:
                self._files[path] = read_bytes(path, _MAX_MEDIUM)
            return Medium(_KINDS[kind], path, self._files[path])
        except (DocumentError, ValueError) as error:
            raise EdgewrightError(f"{where}: {error}") from error
