"""What a string of a recipe may be: names, paths, globs, commits. Each check gives the value, or raises ValueError.

What must not live here: the keys that they stand under (`schema.py`).
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

BUILT_IN_TEXT: Final = "stdlib-python"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
_HUB_ID = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", re.ASCII)
_MAX_PATH = 4096
_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"must be lower-case letters, digits, '.', '_' and '-' (it names a folder), not {name!r}")
    return name


def check_hub_id(repo: str) -> str:
    """A repository on the Hub, `owner/name`; ValueError for anything else."""
    if not _HUB_ID.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ValueError(f"must be owner/name as on the Hub, not {repo!r}")
    return repo


def check_commit(revision: Any) -> Any:
    if revision is not None and not (isinstance(revision, str) and _COMMIT.fullmatch(revision)):
        quote = "; put it in quotes" if isinstance(revision, int) else ""
        raise ValueError(f"must be a full commit (40 hexadecimal digits) or null, not {revision!r}{quote}")
    return revision


def check_path(path: str) -> str:
    """A path as a recipe may name one; whether anything is there is seen when it is read. Raises ValueError."""
    if any(ord(character) < 32 or ord(character) == 127 or "\ud800" <= character <= "\udfff" for character in path):
        raise ValueError("must be a path without control characters and halves of surrogate pairs")
    if len(path.encode()) > _MAX_PATH:
        raise ValueError(f"must be a path of at most {_MAX_PATH} bytes, not of {len(path.encode())}")
    if path.startswith("~") and os.path.expanduser(path) == path:
        raise ValueError(f"begins with the home of a user whom this machine does not know: {path.split('/')[0]!r}")
    return path


def check_glob(glob: str) -> str:
    if not glob or any(c.isspace() for c in glob):
        raise ValueError(f"must be a glob over slot names, such as model.layers.*.mlp.*, not {glob!r}")
    rest = re.sub(r"\[!?\]?[^\]]*\]", "", glob)
    if "[" in rest:
        raise ValueError(f"the glob {glob!r} has an opening bracket without its closing one")
    if glob.endswith(".weight"):
        raise ValueError(f"slot names carry no '.weight'; write {glob.removesuffix('.weight')!r}")
    return glob


def check_text(text: str) -> str:
    if text != BUILT_IN_TEXT and not text.endswith((".txt", ".jsonl")):
        raise ValueError(f"must be {BUILT_IN_TEXT} or a .txt or .jsonl file, not {text!r}")
    return text


def check_questions(file: str) -> str:
    if not file.endswith(".jsonl"):
        raise ValueError(f"must be a .jsonl file, one question a line, not {file!r}")
    return file


def check_group(group: Any) -> Any:
    if group == "channel":
        return group
    if isinstance(group, int) and not isinstance(group, bool) and group >= 16 and group & (group - 1) == 0:
        return group
    raise ValueError(f'must be "channel" or a power of two from 16 up (32, 64, 128…), not {group!r}')
