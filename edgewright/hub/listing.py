"""What a repository holds: its newest commit, and those of its files that a checkpoint needs.

What lives here: reading the Hub's two answers about that, strictly. What must not: how they are fetched, and downloads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from artifacts import EdgewrightError
from artifacts.documents import first_error
from edgewright.hub.lock import MAX_FILES, Lock, LockedFile
from edgewright.hub.wire import Hub, Nonsense

# Weights are read from safetensors only, so nothing else that could hold them is fetched.
PATTERNS = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "tekken.json",
    "merges.txt",
    "vocab.json",
    "processor_config.json",
    "preprocessor_config.json",
    "LICENSE*",
    "README.md",  # whose front matter states the licence
]
_MAX_PAGES = 10  # of a thousand entries


def resolve(hub: Hub, repo: str, revision: str | None) -> Lock:
    """The files of a checkpoint at a commit, the newest one if `revision` is None.

    The answers together may take as long as the Hub's patience lasts.

    Raises:
        EdgewrightError: there are no safetensors.
        Refusal, Unreachable, Nonsense: the Hub's answers, or that there are none.
    """
    until = time.monotonic() + hub.patience
    commit = revision or commit_of(hub, repo, None, until)
    wanted, instead = [], ""
    for entry in entries(hub, repo, commit, until):
        if any(fnmatchcase(entry["path"], pattern) for pattern in PATTERNS):
            wanted.append(entry)
        elif not instead and re.fullmatch(r"[\w.-]{1,99}\.(bin|pt|pth|ckpt)", entry["path"]):
            instead = f" ({entry['path']} is a pickle, which can run code)"
        if len(wanted) > MAX_FILES:
            raise Nonsense(f"the listing has more than {MAX_FILES} files of a checkpoint")
    if not any(entry["path"].endswith(".safetensors") for entry in wanted):
        raise EdgewrightError(f"{repo}: holds no model.safetensors{instead}; name a repository with safetensors")
    try:
        files = tuple(locked(entry) for entry in sorted(wanted, key=lambda e: e["path"]))
        return Lock(hub=repo, revision=commit, files=files)
    except ValidationError as error:
        raise Nonsense(f"the listing, {first_error(error)}") from None


def commit_of(hub: Hub, repo: str, revision: str | None, until: float) -> str:
    """The commit that a branch, tag or commit is, or the newest one. Raises Refusal, Unreachable, Nonsense."""
    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    # Of the many keys only the commit: a mirror that ignores this sends them all.
    answer, _ = hub.ask(f"/api/models/{quote(repo)}{at}?expand=sha", until)
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not (isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit)):
        raise Nonsense("the newest commit is not 40 hexadecimal digits; pin one with checkpoint.revision")
    return commit


def entries(hub: Hub, repo: str, commit: str, until: float) -> Iterator[dict[str, Any]]:
    """Every file of the listing, with a path that is a string and nothing else checked.

    Raises Refusal, Unreachable, Nonsense.
    """
    tree = f"/api/models/{quote(repo)}/tree/{commit}"
    query: str | None = "recursive=True&expand=False"
    for _ in range(_MAX_PAGES):
        page, query = hub.ask(f"{tree}?{query}", until)
        if not isinstance(page, list):
            raise Nonsense("the listing is no list")
        for entry in page:
            if not (isinstance(entry, dict) and isinstance(entry.get("path"), str)):
                raise Nonsense("the listing has an entry without a path")
            if entry.get("type") == "file":
                yield entry
        if query is None:
            return
    raise Nonsense(f"the listing has more than {_MAX_PAGES} pages")


def locked(entry: dict[str, Any]) -> LockedFile:
    """A file of the listing with its digest. Raises ValidationError and Nonsense."""
    path, size, lfs = entry["path"], entry.get("size"), entry.get("lfs")
    if lfs is None:
        return LockedFile.model_validate({"path": path, "size": size, "git_sha1": entry.get("oid")})
    if not isinstance(lfs, dict) or lfs.get("size") != size:
        raise Nonsense(f"the listing, {path}: its lfs is no large file of the same size")
    return LockedFile.model_validate({"path": path, "size": size, "sha256": lfs.get("oid")})
