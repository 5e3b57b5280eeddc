"""The licence that a checkpoint's own card states, for the cards of what is made from it."""

from __future__ import annotations

import re
from pathlib import Path

from artifacts.documents import DocumentError, read_bytes

_FRONT = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_LICENCE = re.compile(r"""^license:[ \t]*(["']?)([A-Za-z0-9][\w.+-]{0,95})\1[ \t]*(?:#.*)?\r?$""", re.MULTILINE)


def licence_of(checkpoint: Path) -> str | None:
    """The `license` of the front matter of a checkpoint's README.md; None where it states none that can be read.

    One word on one line is looked for, so that no reader of YAML has to be trusted with a stranger's text.
    """
    try:
        text = read_bytes(checkpoint / "README.md").decode("utf-8", errors="replace")
    except DocumentError:
        return None
    front = _FRONT.match(text)
    found = _LICENCE.search(front[1]) if front else None
    return found[2] if found else None
