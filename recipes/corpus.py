"""The built-in text: the Python standard library's own source, split into train and held-out files.

It is what quantizers calibrate on by default (`calibration: {text: stdlib-python}`, train) and what quality is measured
on by default (held-out). It travels with the package, in `recipes/text/`: the library of the interpreter that happens
to run would change weights and figures with its patch releases. This module knows nothing of tokenizers or models.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "held-out"]

STDLIB_VERSION = "3.11.7"


def text_path(split: Split) -> Path:
    """The file that holds a split: gzip, one JSON object a line, {"path": …, "text": …}."""
    return Path(__file__).parent / "text" / f"stdlib-python-{split}.jsonl.gz"


def stdlib_texts(split: Split) -> Iterator[str]:
    """Yield the text of each file of a split, in a fixed order."""
    with gzip.open(text_path(split), "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)["text"]
