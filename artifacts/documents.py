"""Reading documents that others wrote: the configs, indexes, headers and texts of checkpoints, profiles and artifacts.

What lives here: one bounded read of a regular file, and JSON decoded once, strictly. What must not: what a document
means. (`recipes/` imports nothing of ours and opens its one file itself.)

Such a path may lead to a pipe or a device, go round in links, or be a name that no file system takes; such a JSON may
nest without end or hold numbers that are none. Each ends in one error that names the file, before anything hangs,
fills memory or recurses.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from .errors import EdgewrightError

MAX_BYTES = 16 << 20
MAX_DEPTH = 64
_CHUNK = 1 << 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}


class DocumentError(EdgewrightError):
    """A document that cannot be read: which file, and why."""


def first_error(error: ValidationError, *within: str) -> str:
    """The first thing that is wrong with a document, in a line: where (below `within`) and what."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, (*within, *first["loc"])))
    return f"{where + ': ' if where else ''}{first['msg']}"


@contextmanager
def open_regular(path: Path, *, links: bool = True) -> Iterator[BinaryIO]:
    """A regular file, open for reading without a buffer; `links` are followed. Raises DocumentError for anything else.

    In an artifact no link is followed: it may have come from anybody, and lead to a file of the user's.
    """
    try:
        _refuse_special(path, os.stat(path, follow_symlinks=links).st_mode)  # before: opening a device can do something
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
    except (OSError, ValueError) as error:  # ValueError: a NUL, or a character that no file name has
        raise DocumentError(f"{path}: cannot be read: {_reason(error)}") from error
    with open(descriptor, "rb", buffering=0) as file:
        _refuse_special(path, os.fstat(descriptor).st_mode)  # exchanged since
        yield file


def read_bytes(path: Path, limit: int = MAX_BYTES, *, links: bool = True) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises DocumentError."""
    with open_regular(path, links=links) as file:
        parts, left = [], limit + 1
        try:
            while left > 0 and (part := file.read(min(left, _CHUNK))):
                parts.append(part)
                left -= len(part)
        except OSError as error:
            raise DocumentError(f"{path}: cannot be read: {_reason(error)}") from error
    if left <= 0:
        raise DocumentError(f"{path}: is larger than {limit:,} bytes, which no such file is")
    return b"".join(parts)


def read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object that a file holds, as `parse_json` reads it. Raises DocumentError."""
    return parse_json(read_bytes(path, limit), str(path))


def parse_json(raw: bytes, source: str) -> dict[str, Any]:
    """A JSON object from UTF-8 text.

    Stricter than Python: NaN, Infinity, numbers beyond a float's range, keys given twice and nesting below MAX_DEPTH
    levels are refused, since other readers of the same file refuse them or read something else. Raises DocumentError,
    naming `source`.
    """
    try:
        found = json.loads(
            raw.decode("utf-8"), parse_constant=_not_a_number, parse_float=_finite, object_pairs_hook=_distinct
        )
    except RecursionError:
        raise DocumentError(f"{source}: not valid JSON: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise DocumentError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise DocumentError(f"{source}: not a JSON object, which is expected here")
    if _too_deep(found):
        raise DocumentError(f"{source}: not valid JSON: nested deeper than {MAX_DEPTH} levels")
    if _SURROGATE.search(raw) and not _encodable(found):
        raise DocumentError(f"{source}: not valid JSON: it holds half of a surrogate pair")
    return found


def _refuse_special(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something special")
        raise DocumentError(f"{path}: cannot be read: it is {kind}, not a regular file")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _not_a_number(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} is given twice")
    return found


def _encodable(tree: dict[str, Any]) -> bool:
    try:
        json.dumps(tree, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _too_deep(tree: Any) -> bool:
    level = [tree]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for node in level
            for inner in (node.values() if isinstance(node, dict) else node)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
