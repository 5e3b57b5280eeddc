"""Text as token ids: the documents of a built-in split or of a user's file, through a checkpoint's own tokenizer.

What calibration looks at and what golden vectors are made of is read here, by one reader. What must not live here:
how many tokens anything needs. Prompts with images will join with the vision-language family: they are another source
of input embeddings, not of token ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.documents import DocumentError, parse_json, read_bytes
from compiler.models.base import Model
from compiler.tokenizer import FILE, Encoder
from recipes.corpus import Split, stdlib_texts
from recipes.schema import Calibration
from recipes.words import BUILT_IN_TEXT

CALIBRATION = "quantize.calibration"
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Document:
    """One text. templated: a chat template has already put its special tokens in."""

    text: str
    templated: bool = False


@dataclass(frozen=True)
class Held:
    """What quality and parity are measured on: arrays that keys hold, and what they are in a few printable words."""

    tokens: NDArray[Any]
    text: str


Encode = Callable[[Document], list[int]]


def text_file(key: str, text: str, resolved: Path) -> Path | None:
    """The file that a recipe names as `text` under `key`, None for the built-in text. Raises EdgewrightError."""
    if text == BUILT_IN_TEXT:
        return None
    if not os.path.isfile(resolved):
        raise EdgewrightError(f"{key}: {resolved}: no such file")
    return resolved


def calibration_file(calibration: Calibration, resolve: Callable[[str], Path]) -> Path | None:
    """The file or folder that a recipe's calibration names, None for the built-in text. Raises EdgewrightError."""
    if calibration.images is None:
        return text_file(CALIBRATION, calibration.text, resolve(calibration.text))
    found = resolve(calibration.images)
    if not os.path.exists(found):
        raise EdgewrightError(f"{CALIBRATION}.images: {found}: no such file or folder")
    return found


def documents(key: str, file: Path | None, split: Split, checkpoint: Path) -> Iterator[Document]:
    """The documents of a .txt file (one) or a .jsonl file (one a line), of a built-in split where there is no file.

    A line of .jsonl is {"text": …} or {"messages": […]}, the latter put through the checkpoint's chat template.
    key: of the recipe, for messages. Raises EdgewrightError when the file cannot be read or holds no text.
    """
    if file is None:
        yield from (Document(text) for text in stdlib_texts(split))
        return
    try:
        text = read_bytes(file, _MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgewrightError(f"{key}: {file}: not UTF-8 text at byte {error.start}") from None
    except DocumentError as error:
        raise EdgewrightError(f"{key}: {error}") from error
    found = iter([Document(text)]) if file.suffix == ".txt" else _lines(key, text, file, checkpoint)
    empty = True
    for document in found:
        if document.text.strip():
            empty = False
            yield document
    if empty:
        raise EdgewrightError(f"{key}: {file} holds no text")


def encoder(checkpoint: Path, model: Model, tokenizer: Encoder | None = None) -> Encode:
    """From a document to token ids of the model, after those that the tokenizer begins with. Raises EdgewrightError,
    also when called."""
    path = checkpoint / FILE
    tokenizer = tokenizer or Encoder(path)
    constants: Any = model.constants
    leading, vocabulary = tokenizer.leading(), constants["vocab_size"]

    def encode(document: Document) -> list[int]:
        text = document.text.encode("utf-8", "replace").decode("utf-8")  # a .jsonl file may hold half a surrogate pair
        found: list[int] = tokenizer.encode(text).ids
        if not document.templated:
            found = [*leading, *found]
        if found and max(found) >= vocabulary:
            raise EdgewrightError(
                f"{path}: gives token {max(found)}; the model knows {vocabulary} tokens: is it this model's tokenizer?"
            )
        return found

    return encode


def _lines(key: str, text: str, file: Path, checkpoint: Path) -> Iterator[Document]:
    template: Any = None
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold other line ends
        if not line.strip():
            continue
        where = f"{key}: {file}:{number}"
        entry = parse_json(line.encode(), where)
        if isinstance(entry.get("text"), str):
            yield Document(entry["text"])
        elif isinstance(entry.get("messages"), list):
            template = template or chat_template(checkpoint)
            if template is None:
                raise EdgewrightError(
                    f"{key}: {checkpoint} has no chat template, which messages need; give texts instead"
                )
            try:
                yield Document(template(entry["messages"]), templated=True)
            except Exception as error:  # a template is a program of the checkpoint's: it may raise anything
                raise EdgewrightError(f"{where}: the chat template refuses its messages: {error}") from error
        else:
            raise EdgewrightError(f'{where}: expected {{"text": "…"}} or {{"messages": […]}}')


def chat_template(checkpoint: Path) -> Callable[..., str] | None:
    """A checkpoint's chat template, from messages and options of transformers' `apply_chat_template` to text; None
    where it has none. Raises EdgewrightError where transformers cannot load its tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its classes raise anything over a tokenizer_config.json that is not theirs
        raise EdgewrightError(f"{checkpoint}: transformers cannot load its tokenizer: {error}") from error
    template: Any = partial(tokenizer.apply_chat_template, tokenize=False)
    return template if tokenizer.chat_template else None
