"""The licence that a checkpoint states, for the cards of what is made from it, and what has to be said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.documents import DocumentError, read_bytes, read_json

_FRONT = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_WORD = r"[A-Za-z0-9][\w.+-]{0,95}"
_LICENCE = re.compile(rf"""^license:[ \t]*(["']?)({_WORD})\1[ \t]*(?:#.*)?\r?$""", re.MULTILINE)
# identifiers of the Hub: cc-by-nc-4.0, fair-noncommercial-research-license, intel-research, apple-amlr, …
_NON_COMMERCIAL = re.compile(r"(?:^|[-_.])nc(?:[-_.]|$)|non-?commercial|research|amlr", re.IGNORECASE)


def front_matter(card: str) -> str | None:
    """The metadata between the first two lines of dashes of a card; None where it has none."""
    found = _FRONT.match(card)
    return found and found[1]


def licence_of(checkpoint: Path) -> str | None:
    """The `license` of the front matter of a checkpoint's README.md, or of its config.json, where `adopt` writes it;
    None where neither states one that can be read.

    One word on one line is looked for, so that no reader of YAML has to be trusted with a stranger's text.
    """
    try:
        text = read_bytes(checkpoint / "README.md").decode("utf-8", errors="replace")
    except DocumentError:
        text = ""
    if found := _LICENCE.search(front_matter(text) or ""):
        return found[2]
    try:
        return licence_in(read_json(checkpoint / "config.json"))
    except DocumentError:
        return None


def licence_in(config: Mapping[str, Any]) -> str | None:
    """The licence that a config.json states."""
    stated = config.get("license")
    return stated if isinstance(stated, str) and re.fullmatch(_WORD, stated) else None


def licence_warning(licence: str | None) -> str | None:
    """What somebody who ships a package has to know of its weights' licence; None where it is nothing."""
    if licence is None or licence == "unknown":
        return (
            "LICENCE: the checkpoint states none, and without one nobody may ship what is made of it. Find out which "
            "it is, and write it to the front matter of its README.md (license: apache-2.0), or give it to adopt "
            "(--license)"
        )
    if non_commercial(licence):
        return f"LICENCE: {licence} forbids commercial use of the checkpoint, and of every package that is made of it"
    return None


def non_commercial(licence: str) -> bool:
    """Whether a licence is known to forbid commercial use."""
    return _NON_COMMERCIAL.search(licence) is not None
