"""Text as token ids: the documents of a built-in split or of a user's file, through a checkpoint's own tokenizer.

What calibration looks at and what golden vectors are made of is read here, by one reader. What must not live here:
how many tokens anything needs. Prompts with images will join with the vision-language family: they are another source
of input embeddings, not of token ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError
from compiler.models.decoder import DecoderSpec
from recipes.corpus import Split, stdlib_texts
from recipes.schema import BUILT_IN_TEXT

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Document:
    """One text. templated: a chat template has already put its special tokens in."""

    text: str
    templated: bool = False


Encoder = Callable[[Document], list[int]]


def text_file(key: str, text: str, resolved: Path) -> Path | None:
    """The file that a recipe names as `text` under `key`, None for the built-in text. Raises EdgewrightError."""
    if text == BUILT_IN_TEXT:
        return None
    if not resolved.is_file():
        raise EdgewrightError(f"{key}: {resolved}: no such file")
    return resolved


def documents(key: str, file: Path | None, split: Split, checkpoint: Path) -> Iterator[Document]:
    """The documents of a .txt file (one) or a .jsonl file (one a line), of a built-in split where there is no file.

    A line of .jsonl is {"text": …} or {"messages": […]}, the latter put through the checkpoint's chat template.
    key: of the recipe, for messages. Raises EdgewrightError when the file cannot be read or holds no text.
    """
    if file is None:
        yield from (Document(text) for text in stdlib_texts(split))
        return
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgewrightError(f"{key}: {file}: not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise EdgewrightError(f"{key}: {file}: {error.strerror}") from error
    found = iter([Document(text)]) if file.suffix == ".txt" else _lines(key, text, file, checkpoint)
    empty = True
    for document in found:
        if document.text.strip():
            empty = False
            yield document
    if empty:
        raise EdgewrightError(f"{key}: {file} holds no text")


def encoder(checkpoint: Path, spec: DecoderSpec) -> Encoder:
    """From a document to token ids of the model, the BOS token first. Raises EdgewrightError, also when called."""
    from tokenizers import Tokenizer

    path = checkpoint / TOKENIZER
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise EdgewrightError(f"{path}: cannot be read as a tokenizer ({error}): download it again") from error

    def encode(document: Document) -> list[int]:
        text = document.text.encode("utf-8", "replace").decode("utf-8")  # a .jsonl file may hold half a surrogate pair
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if spec.bos is not None and not document.templated:
            found = [spec.bos, *found]
        if found and max(found) >= spec.vocab:
            raise EdgewrightError(
                f"{path}: gives token {max(found)}; the model knows {spec.vocab} tokens: is it this model's tokenizer?"
            )
        return found

    return encode


def _lines(key: str, text: str, file: Path, checkpoint: Path) -> Iterator[Document]:
    template: Any = None
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold other line ends
        if not line.strip():
            continue
        where = f"{key}: {file}:{number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EdgewrightError(f"{where}: not JSON: {error}") from None
        if isinstance(entry, dict) and isinstance(entry.get("text"), str):
            yield Document(entry["text"])
        elif isinstance(entry, dict) and isinstance(entry.get("messages"), list):
            template = template or _chat_template(key, checkpoint)
            try:
                yield Document(template(entry["messages"]), templated=True)
            except Exception as error:  # a template is a program of the checkpoint's: it may raise anything
                raise EdgewrightError(f"{where}: the chat template refuses its messages: {error}") from error
        else:
            raise EdgewrightError(f'{where}: expected {{"text": "…"}} or {{"messages": […]}}')


def _chat_template(key: str, checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    if not tokenizer.chat_template:
        raise EdgewrightError(f"{key}: {checkpoint} has no chat template, which messages need; give texts instead")
    return lambda messages: tokenizer.apply_chat_template(messages, tokenize=False)
