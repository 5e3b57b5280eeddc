"""Calibration text as token ids, with the checkpoint's own tokenizer and chat template; the same for the same seed.

Prompts with images will join with the vision-language family: they are another source of input embeddings, not of
token ids, and start where `layerwise.py` looks up the embedding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from artifacts.documents import DocumentError, parse_json, read_bytes
from compiler.models.decoder import DecoderSpec
from compiler.tokenizer import Encoder
from recipes.corpus import stdlib_texts
from recipes.schema import BUILT_IN_TEXT, Calibration

_LENGTH = 512
_MAX_BYTES = 256 << 20


def calibration_tokens(
    calibration: Calibration, file: Path | None, checkpoint: Path, spec: DecoderSpec
) -> NDArray[np.int32]:
    """Token ids [sequences, length] of at most `calibration.tokens` in all, whole sequences only.

    file: the .txt or .jsonl file (None: the built-in text). A line of .jsonl is {"text": …} or {"messages": [...]},
    the latter put through the chat template. Documents are shuffled by the seed, each starts with the BOS token.
    Raises EdgewrightError when the text is empty, not decodable or too short.
    """
    source = calibration.text if file is None else str(file)
    rng = np.random.default_rng(calibration.seed)
    documents = _documents(file, checkpoint)
    if not any(text.strip() for text, _ in documents):
        raise EdgewrightError(f"quantize.calibration: {source} holds no text")
    encoder = _encoder(checkpoint)
    ids: list[int] = []
    for at in rng.permutation(len(documents)):
        text, templated = documents[at]
        found = encoder.encode(text).ids
        if spec.bos is not None and not templated:
            found = [spec.bos, *found]
        ids += found
        if len(ids) >= calibration.tokens:
            break
    if len(ids) < calibration.tokens:
        raise EdgewrightError(
            f"quantize.calibration: {source} has {len(ids)} tokens, {calibration.tokens} are asked for; "
            f"give more text or set tokens: {len(ids)}"
        )
    if max(ids) >= spec.vocab:
        raise EdgewrightError(
            f"{checkpoint / 'tokenizer.json'}: gives token {max(ids)}; the model knows {spec.vocab} tokens"
        )
    length = min(_LENGTH, spec.max_positions, calibration.tokens)
    count = calibration.tokens // length
    return np.asarray(ids[: count * length], np.int32).reshape(count, length)


def calibration_file(calibration: Calibration, resolved: Path) -> Path | None:
    """The file a recipe's calibration names (`resolved`), None for the built-in text. Raises EdgewrightError."""
    if calibration.text == BUILT_IN_TEXT:
        return None
    if not os.path.isfile(resolved):
        raise EdgewrightError(f"quantize.calibration: {resolved}: no such file")
    return resolved


def _encoder(checkpoint: Path) -> Encoder:
    file = checkpoint / "tokenizer.json"
    if not file.is_file():
        raise EdgewrightError(
            f"{checkpoint}: no tokenizer.json, which calibrated methods (gptq, awq) need; rtn, mse and hqq do not"
        )
    return Encoder(file)


def _documents(file: Path | None, checkpoint: Path) -> list[tuple[str, bool]]:
    """Texts, and whether a chat template has already put special tokens into each."""
    if file is None:
        return [(text, False) for text in stdlib_texts("train")]
    try:
        text = read_bytes(file, _MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgewrightError(f"quantize.calibration: {file}: not UTF-8 text at byte {error.start}") from None
    except DocumentError as error:
        raise EdgewrightError(f"quantize.calibration: {error}") from error
    return [(text, False)] if file.suffix == ".txt" else list(_lines(text, file, checkpoint))


def _lines(text: str, file: Path, checkpoint: Path) -> Iterator[tuple[str, bool]]:
    template: Any = None
    for number, line in enumerate(text.split("\n"), 1):  # JSON text may hold what splitlines takes for an end
        if not line.strip():
            continue
        where = f"quantize.calibration: {file}:{number}"
        entry = parse_json(line.encode(), where)
        if isinstance(entry.get("text"), str):
            yield entry["text"], False
        elif isinstance(entry.get("messages"), list):
            template = template or _chat_template(checkpoint)
            try:
                yield template(entry["messages"]), True
            except Exception as error:  # a template is a program of the checkpoint's: it may raise anything
                raise EdgewrightError(f"{where}: the chat template refuses its messages: {error}") from error
        else:
            raise EdgewrightError(f'{where}: expected {{"text": "…"}} or {{"messages": […]}}')


def _chat_template(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its classes raise anything over a tokenizer_config.json that is not theirs
        raise EdgewrightError(f"{checkpoint}: transformers cannot load its tokenizer: {error}") from error
    if not tokenizer.chat_template:
        raise EdgewrightError(f"{checkpoint}: no chat template, which calibration messages need; give texts instead")
    return lambda messages: tokenizer.apply_chat_template(messages, tokenize=False)
