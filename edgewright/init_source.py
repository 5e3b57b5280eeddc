"""The config of a checkpoint that is named on the command line: a folder, or a repository of the Hub.

What must not live here: what a config means (`compiler/models`), and downloads of anything else (`hub/`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError, user_path
from artifacts.documents import parse_json, read_json
from compiler.config import read_config
from recipes.fields import check_hub_id

_CONFIG = "config.json"
_MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Source:
    """name: of the checkpoint, without its place. folder: where it lies; None for one of the Hub, at `revision`."""

    name: str
    config: Mapping[str, Any]
    folder: Path | None = None
    hub: str | None = None
    revision: str | None = None


def find(checkpoint: str) -> Source:
    """The config of a folder, or of a repository of the Hub; that of a recipe that ships needs no network.

    Raises EdgewrightError, with near names where there is no such checkpoint.
    """
    path = user_path(checkpoint, "CHECKPOINT")
    if os.path.isdir(path):
        return Source(path.resolve().name, read_config(path), folder=path.resolve())
    known = _shipped()
    if checkpoint in known:
        return Source(checkpoint.split("/")[1], read_json(known[checkpoint]), hub=checkpoint)
    try:
        check_hub_id(checkpoint)
    except ValueError:
        raise EdgewrightError(
            f"{checkpoint}: no such checkpoint folder, nor owner/name on the Hub{_near(checkpoint, known)}"
        ) from None
    try:
        config, revision = _download(checkpoint)
    except EdgewrightError as error:
        raise EdgewrightError(f"no such folder here; and {error}{_near(checkpoint, known)}") from error
    return Source(checkpoint.split("/")[1], config, hub=checkpoint, revision=revision)


def _shipped() -> dict[str, Path]:
    """Repositories of the Hub that recipes which ship name, and the configs that stand for them."""
    from edgewright import api
    from recipes.load import shipped

    recipes = [api.load_recipe(path) for path in shipped().values()]
    return {
        r.checkpoint.hub: r.resolve(r.checkpoint.config) for r in recipes if r.checkpoint.hub and r.checkpoint.config
    }


def _near(checkpoint: str, known: Mapping[str, Path]) -> str:
    place = Path(checkpoint).parent
    try:
        beside = [str(place / entry.name) for entry in os.scandir(place) if os.path.isfile(Path(entry.path, _CONFIG))]
    except OSError:
        beside = []
    lowered = {name.lower(): name for name in [*known, *beside]}
    near = [lowered[name] for name in get_close_matches(checkpoint.lower(), lowered, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else f"; known here: {', '.join([*beside, *known])}"


def _download(repo: str) -> tuple[dict[str, Any], str]:
    """config.json of the newest commit, held against its digest, and that commit."""
    from edgewright.hub.listing import commit_of, entries, locked
    from edgewright.hub.receive import Words, content, explained
    from edgewright.hub.wire import Hub

    with explained(repo, None, Words(repo="check CHECKPOINT", instead=", or give a local folder")):
        hub = Hub()
        until = time.monotonic() + hub.patience
        commit = commit_of(hub, repo, None, until)
        for entry in entries(hub, repo, commit, until):
            if entry["path"] == _CONFIG:
                file = locked(entry)
                if file.size > _MAX_BYTES:
                    raise EdgewrightError(f"{repo}: its config.json has {file.size} bytes, more than any config")
                return parse_json(content(hub, repo, commit, file), f"{repo}: {_CONFIG}"), commit
    raise EdgewrightError(f"{repo}: holds no config.json; is it a checkpoint in the Hugging Face layout?")
