"""What a Hub holds: files as git names them, and repositories of their commits and tags."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Blob:
    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What git calls it: of a large file, the pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        content = pointer.encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    private: bool
    head: str = ""
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: dict[str, Blob]) -> str:
        listing = [(path, blob.oid) for path, blob in sorted(tree.items())]
        self.head = hashlib.sha1(repr((self.head, listing)).encode()).hexdigest()
        self.commits[self.head] = tree
        return self.head

    def write(self, **files: bytes) -> str:
        """A commit by somebody else."""
        return self.commit({**self.commits[self.head], **{p: Blob(c, False) for p, c in files.items()}})

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.commits[self.find(revision) or ""].items()}

    def find(self, revision: str) -> str | None:
        if revision == "main":
            return self.head
        return self.tags.get(revision) or (revision if revision in self.commits else None)
