"""`recipe.lock.json`: which commit a checkpoint was fetched at, and every file of it with size and digest.

What lives here: its schema, reading and writing it. What must not: asking the Hub, and the cache.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from artifacts import EdgewrightError
from artifacts.documents import DocumentError, read_bytes
from artifacts.manifest import RelativePath

if TYPE_CHECKING:
    from hashlib import _Hash

LOCK = "recipe.lock.json"
MAX_FILES = 1000
_MAX_BYTES = 4 << 20


def _printable(path: str) -> str:
    if not path.isprintable():
        raise ValueError(f"{path!r} holds characters that cannot be shown")
    return path


class LockedFile(BaseModel):
    """A file at the locked commit: sha256 where the Hub stores it as a large file, else git's sha1 of the blob."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: Annotated[RelativePath, AfterValidator(_printable)]
    size: int = Field(ge=0, lt=1 << 63)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    git_sha1: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")

    @model_validator(mode="after")
    def _one_digest(self) -> Self:
        if (self.sha256 is None) == (self.git_sha1 is None):
            raise ValueError("needs one digest, sha256 or git_sha1")
        return self

    @property
    def digest(self) -> str:
        """In lower-case hex; also the name of the file's blob in the cache."""
        return self.sha256 or self.git_sha1 or ""

    def hasher(self) -> _Hash:
        """To be fed with the file's bytes: its hexdigest is `digest` if they are the right ones."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class Lock(BaseModel):
    """The commit that `revision: null` was resolved to, and every file that was fetched there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    hub: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    files: tuple[LockedFile, ...] = Field(max_length=MAX_FILES)

    @model_validator(mode="after")
    def _paths_are_distinct(self) -> Self:
        seen: set[str] = set()
        for file in self.files:
            if (key := file.path.casefold()) in seen:
                raise ValueError(f"{file.path!r} is listed twice")
            seen.add(key)
        return self


def read_lock(path: Path) -> Lock | None:
    """The lock, None if there is none. Raises EdgewrightError."""
    if not os.path.lexists(path):
        return None
    try:
        return Lock.model_validate_json(read_bytes(path, _MAX_BYTES))
    except (ValidationError, DocumentError) as error:
        raise EdgewrightError(
            f"{path}: not a readable lock file; delete it to resolve the checkpoint's newest commit again"
        ) from error


def write_lock(lock: Lock, path: Path) -> None:
    """Write it aside and put it in place. Raises EdgewrightError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(lock.model_dump_json(indent=2) + "\n")
        aside.replace(path)
    except OSError as error:
        raise EdgewrightError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
