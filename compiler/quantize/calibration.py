"""Calibration text as token ids, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError
from compiler.models.decoder import DecoderSpec
from compiler.text import documents, encoder, text_file
from compiler.tokenizer import FILE as TOKENIZER
from recipes.schema import Calibration

_KEY = "quantize.calibration"
_LENGTH = 512


def calibration_tokens(
    calibration: Calibration, file: Path | None, checkpoint: Path, spec: DecoderSpec
) -> NDArray[np.int32]:
    """Token ids [sequences, length] of at most `calibration.tokens` in all, whole sequences only.

    file: the .txt or .jsonl file (None: the built-in text). Documents are shuffled by the seed. Raises EdgewrightError
    when the text is empty, not decodable or too short.
    """
    if not (checkpoint / TOKENIZER).is_file():
        raise EdgewrightError(
            f"{checkpoint}: no {TOKENIZER}, which calibrated methods (gptq, awq) need; rtn, mse and hqq do not"
        )
    rng = np.random.default_rng(calibration.seed)
    found = list(documents(_KEY, file, "train", checkpoint))
    encode = encoder(checkpoint, spec)
    ids: list[int] = []
    for at in rng.permutation(len(found)):
        ids += encode(found[at])
        if len(ids) >= calibration.tokens:
            break
    if len(ids) < calibration.tokens:
        raise EdgewrightError(
            f"{_KEY}: {file or calibration.text} has {len(ids)} tokens, {calibration.tokens} are asked for; "
            f"give more text or set tokens: {len(ids)}"
        )
    length = min(_LENGTH, spec.max_positions, calibration.tokens)
    count = calibration.tokens // length
    return np.asarray(ids[: count * length], np.int32).reshape(count, length)


def calibration_file(calibration: Calibration, resolved: Path) -> Path | None:
    """The file a recipe's calibration names (`resolved`), None for the built-in text. Raises EdgewrightError."""
    return text_file(_KEY, calibration.text, resolved)
