"""Write the built-in text: the Python standard library's own source, split into train and held-out files.

    python recipes/text/make_stdlib_python.py

It was run once; what it wrote travels with the package (README.md beside it says from which Python). The split is by
file name. The small checkpoint's training script reads the files of the running interpreter through `stdlib_files`.
"""

from __future__ import annotations

import gzip
import json
import platform
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

from recipes.corpus import Split, text_path

_HELD_OUT_EVERY = 16
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3", "_bundled"}
_TESTS = {"test", "tests", "idle_test"}
_ROOT = Path(sysconfig.get_path("stdlib"))


def stdlib_files(split: Split, *, tests: bool = False) -> Iterator[tuple[Path, str]]:
    """Yield path and text of the running interpreter's source files of a split, in a fixed order.

    Test packages never belong to the held-out split (distributions leave them out); `tests=True` adds them to the
    train split. Character tables, vendored code, empty files and files that are not UTF-8 are left out.
    """
    for path in sorted(_ROOT.rglob("*.py")):
        name = path.relative_to(_ROOT)
        parts = set(name.parts)
        if parts & _SKIPPED or path.name.startswith("_sysconfigdata"):
            continue
        if parts & _TESTS:
            if not tests or split != "train":
                continue
        elif (zlib.crc32(name.as_posix().encode()) % _HELD_OUT_EVERY == 0) != (split == "held-out"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield path, text


def write(split: Split) -> None:
    """One JSON object a line, {"path", "text"}; compressed with neither time nor name, so that bytes follow content."""
    entries = ({"path": path.relative_to(_ROOT).as_posix(), "text": text} for path, text in stdlib_files(split))
    content = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
    text_path(split).write_bytes(gzip.compress(content, 9, mtime=0))
    print(f"{text_path(split).name}: {len(content):,} bytes of Python {platform.python_version()}")


if __name__ == "__main__":
    write("train")
    write("held-out")
