"""Paths that users give: what is checked before anything is opened, and where their caches are. Documents have a file
of their own (``documents.py``)."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import EdgewrightError

_PATH_BYTES = 4095
_NAME_BYTES = 255


def user_cache() -> Path:
    """Our folder among the user's caches, which need not be there."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "edgewright"


def user_path(given: str | Path, what: str, *, room: int = 0) -> Path:
    """``given`` as a path that the system can take and a report can hold; EdgewrightError starts with ``what``.

    A leading ``~`` stands for a home folder, also where no shell saw it (``--out=~/x``). ``room``: how many bytes of
    path must fit below.
    """
    text = str(given)
    if not text:
        raise EdgewrightError(f"{what}: is empty; a path is expected")
    if "\0" in text:
        raise EdgewrightError(f"{what}: {_short(text)} holds a NUL character; no file can have this name")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise EdgewrightError(f"{what}: {_short(text)} is not UTF-8 text; rename the file or folder") from None
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise EdgewrightError(f"{what}: {_short(text)}: this user has no home folder; write ./~ for a name")
    try:
        absolute = os.path.abspath(expanded).encode("utf-8")
    except FileNotFoundError:
        raise EdgewrightError(f"{what}: {_short(text)}: the working directory is gone; change to another") from None
    if len(absolute) > _PATH_BYTES - room or any(len(part) > _NAME_BYTES for part in absolute.split(b"/")):
        raise EdgewrightError(
            f"{what}: {_short(text)} is too long: absolute, it may have {_PATH_BYTES - room} bytes, each name "
            f"{_NAME_BYTES}"
        )
    return Path(expanded)


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:60]}… ({len(text)} characters)"
