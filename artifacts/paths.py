"""Paths that users give and documents that nobody vouches for: what is checked before anything is opened.

What lives here: the door for path arguments, and reading a file of bounded size. What must not: what a document
means.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import EdgewrightError

_PATH_BYTES = 4095
_NAME_BYTES = 255


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


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes, links refused; EdgewrightError says what is wrong."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise EdgewrightError(f"{path}: not a regular file; put the file itself there")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        if os.path.islink(path):
            what = "a symbolic link, which is not followed; put the file itself there"
        else:
            what = f"cannot be read ({error.strerror}); check that it is there, and its rights"
        raise EdgewrightError(f"{path}: {what}") from error
    if len(content) > limit:
        raise EdgewrightError(f"{path}: larger than {limit:,} bytes, which nothing of this kind is")
    return content


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:60]}… ({len(text)} characters)"
