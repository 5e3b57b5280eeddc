"""An entry of the store: one finished stage in one place, sealed by a digest, and whether its files are what they were.

What must not live here: where entries lie and how long (``stages.py``).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from .documents import DocumentError, parse_json, read_bytes
from .errors import EdgewrightError
from .manifest import MANIFEST, Manifest, RelativePath, Sha256, Size, read_manifest, sha256_file
from .store import IGNORED

GRANULARITY_NS = 2 * 10**9  # the coarsest clock of a file system in use
_MAX_ENTRY_BYTES = 64 << 20

Identity = tuple[int, int, int, int, int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(_Strict):
    """identity: of the file when it had this digest, see `identity`."""

    path: RelativePath
    size: Size
    sha256: Sha256
    identity: Identity


class Entry(_Strict):
    """One finished stage in one place. words: what it was made from, for people. place: relative to the output, None
    for a result that is no file (`content`). manifest: `core` of the manifest in a folder that is an artifact."""

    stage: str
    key: Sha256
    made: str
    words: dict[str, str]
    place: str | None = None
    manifest: Sha256 | None = None
    files: tuple[StoredFile, ...] = ()
    content: dict[str, JsonValue] = {}

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def identity(file: Path) -> Identity:
    """Device, inode, size, time of modification and time of change: no program can set the last of these back."""
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def core(manifest: Manifest) -> str:
    """sha256 in hex of what was built: a manifest without what was found out later and without its labels, which are
    the recipe with its limits and where the checkpoint came from."""
    content = manifest.model_dump(mode="json", exclude={"validations", "recipe"})
    content["checkpoint"] = content["checkpoint"]["files"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def compared(entry: Entry, folder: Path, hashing: Literal["changed", "all"]) -> Entry | str:
    """The entry with what its files are now, or what is wrong with them; hashing: files of another identity, or all."""
    if not folder.is_dir():
        return "is gone"
    current = entry
    if entry.manifest is not None:
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - IGNORED
        if found != {file.path for file in entry.files}:
            return f"holds other files ({', '.join(sorted(found ^ {file.path for file in entry.files})[:3])})"
        try:
            if core(read_manifest(folder)) != entry.manifest:
                return f"its {MANIFEST} is of another build"
        except EdgewrightError as error:
            return str(error)
    for at, file in enumerate(entry.files):
        path = folder / file.path
        try:
            now = identity(path)
            known = now == file.identity and hashing != "all"
            if not known and (now[2] != file.size or sha256_file(path) != file.sha256):
                return f"{file.path} is not what it was"
        except OSError as error:
            return f"{file.path} cannot be read ({error.strerror})"
        if now != file.identity:
            files = (*current.files[:at], file.model_copy(update={"identity": now}), *current.files[at + 1 :])
            current = current.model_copy(update={"files": files})
    return current


def sealed(entry: Entry) -> str:
    """The content of an entry's file."""
    content = entry.model_dump_json()
    return json.dumps({"sha256": _digest(content), "entry": content})


def read_entry(file: Path) -> Entry | None:
    """None for what is no entry, or not what was written."""
    try:
        found = parse_json(read_bytes(file, _MAX_ENTRY_BYTES), str(file))
        content = found.get("entry")
        if isinstance(content, str) and _digest(content) == found.get("sha256"):
            return Entry.model_validate_json(content)
    except (DocumentError, ValidationError):
        pass
    return None


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
