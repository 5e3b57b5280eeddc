"""The built-in text: the Python standard library's own source, split into train and held-out files.

It is what the small checkpoint is trained on, what quantizers calibrate on by default
(`calibration: {text: stdlib-python}`) and what quality is measured on, because it is on every machine
that runs Edgewright. The split is by file name, so it is the same under every Python installation.
This module knows nothing of tokenizers or models.
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "held-out"]

_HELD_OUT_EVERY = 16
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3", "_bundled"}
_TESTS = {"test", "tests", "idle_test"}


def stdlib_files(split: Split, *, tests: bool = False) -> Iterator[Path]:
    """Yield the source files of a split in a fixed order.

    Test packages never belong to the held-out split (distributions leave them out); `tests=True` adds
    them to the train split. Character tables and vendored code are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = set(path.relative_to(root).parts)
        if parts & _SKIPPED or path.name.startswith("_sysconfigdata"):
            continue
        if parts & _TESTS:
            if tests and split == "train":
                yield path
            continue
        name = path.relative_to(root).as_posix().encode()
        held_out = zlib.crc32(name) % _HELD_OUT_EVERY == 0
        if held_out == (split == "held-out"):
            yield path


def stdlib_texts(split: Split, *, tests: bool = False) -> Iterator[str]:
    """Yield the text of each file of a split; files that are not UTF-8 are left out."""
    for path in stdlib_files(split, tests=tests):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield text
