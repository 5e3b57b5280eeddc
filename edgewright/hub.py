"""Checkpoints from the Hub: resolve a commit once, download what a checkpoint needs, check every byte.

What lives here: the lock file, the download and the check of its digests. What must not: anything that reads a
weight, and publishing. The client retries and resumes by itself, but it does not compare digests after a download
(a file of the right size passes), so this module does.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artifacts import EdgewrightError, Progress
from artifacts.manifest import RelativePath, sha256_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOCK = "recipe.lock.json"
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
]


class LockedFile(BaseModel):
    """A file at the locked commit: sha256 where the Hub stores it as a large file, else git's sha1 of the blob."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: RelativePath
    size: int = Field(ge=0)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    git_sha1: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")


class Lock(BaseModel):
    """`recipe.lock.json`: the commit that `revision: null` was resolved to, and every file that was fetched there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    hub: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    files: tuple[LockedFile, ...]


def fetch(repo: str, revision: str | None, lock_file: Path, progress: Progress) -> tuple[Path, str]:
    """The folder of a Hub checkpoint at one commit, downloaded and checked, and that commit.

    `revision` None takes the commit of `lock_file`, or resolves the newest and writes it there. What is in the
    client's cache already is checked again but not downloaded, and needs no network.

    Raises:
        EdgewrightError: no such repository or commit, no access, no network, no safetensors in it, or a file that
            differs from its digest.
    """
    _quiet_client()
    lock = _read_lock(lock_file)
    if lock is None or lock.hub != repo or revision not in (None, lock.revision):
        lock = _resolve(repo, revision)
        _write_lock(lock, lock_file)
    from huggingface_hub import snapshot_download

    with _explained(repo, lock.revision):
        folder = Path(
            snapshot_download(
                repo,
                revision=lock.revision,
                allow_patterns=[_literal(file.path) for file in lock.files],
                tqdm_class=_progress_bar(progress, sum(file.size for file in lock.files)),
            )
        )
    _check(folder, lock, progress)
    return folder, lock.revision


def _quiet_client() -> None:
    """Settings that the client reads when it is first imported. Plain HTTP: Xet needs several times the memory."""
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _literal(path: str) -> str:
    """A glob that matches this path only."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _resolve(repo: str, revision: str | None) -> Lock:
    from huggingface_hub import HfApi, RepoFile

    api: HfApi = HfApi()
    with _explained(repo, revision):
        commit = revision or api.model_info(repo).sha
        if commit is None:
            raise EdgewrightError(f"{repo}: the Hub names no commit for it; pin one with checkpoint.revision")
        found = [f for f in api.list_repo_tree(repo, revision=commit, recursive=True) if isinstance(f, RepoFile)]
    files = [f for f in found if any(fnmatchcase(f.path, pattern) for pattern in PATTERNS)]
    if not any(f.path.endswith(".safetensors") for f in files):
        pickles = sorted(f.path for f in found if f.path.endswith((".bin", ".pt", ".pth", ".ckpt")))
        instead = f" ({pickles[0]} is a pickle, which can run code)" if pickles else ""
        raise EdgewrightError(f"{repo}: holds no model.safetensors{instead}; name a repository with safetensors")
    try:
        locked = [
            LockedFile(
                path=f.path,
                size=f.size,
                sha256=f.lfs.sha256 if f.lfs else None,
                git_sha1=None if f.lfs else f.blob_id,
            )
            for f in sorted(files, key=lambda f: f.path)
        ]
        return Lock(hub=repo, revision=commit, files=tuple(locked))
    except ValidationError as error:
        raise EdgewrightError(f"{repo}: the Hub's listing makes no sense: {error.errors()[0]['msg']}") from None


def _read_lock(path: Path) -> Lock | None:
    try:
        return Lock.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise EdgewrightError(
            f"{path}: not a readable lock file; delete it to resolve the checkpoint's newest commit again"
        ) from error


def _write_lock(lock: Lock, path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(lock.model_dump_json(indent=2) + "\n")
        aside.replace(path)
    except OSError as error:
        raise EdgewrightError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def _check(folder: Path, lock: Lock, progress: Progress) -> None:
    total, done = sum(file.size for file in lock.files), 0
    for file in lock.files:
        path = (folder / file.path).resolve()  # the client's cache links to its blobs
        if not path.is_file():
            raise EdgewrightError(f"{folder / file.path}: missing after the download; run again")
        if file.sha256 is not None:
            intact = sha256_file(path, progress, stage="checking the download", done=done, total=total) == file.sha256
        else:
            intact = _git_sha1(path) == file.git_sha1
        if not intact:
            path.unlink()
            raise EdgewrightError(
                f"{lock.hub}: {file.path} differs from the digest that the Hub states for it, so the download or the "
                "cache is damaged; the file was removed from the cache, run again to fetch it anew"
            )
        done += file.size
        progress("checking the download", done, total)


def _git_sha1(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _progress_bar(progress: Progress, total: int) -> Any:
    """The client's bars, invisible, with the one that counts bytes on disk wired to `progress`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # tqdm publishes no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts = str(kwargs.get("desc", "")).startswith("Reconstructing")
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self.counts:
                progress("downloading", min(int(self.n), total), total)
            return None

    return Bar


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    at = f"{repo} at {revision}" if revision else repo
    try:
        yield
    except errors.GatedRepoError as error:
        raise EdgewrightError(
            f"{repo}: access must be asked for on its page on the Hub; then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EdgewrightError(
            f"{repo}: no such repository on the Hub, or it is private: check checkpoint.hub, or `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EdgewrightError(f"{at}: the repository has no such commit; check checkpoint.revision") from error
    except errors.HfHubHTTPError as error:
        raise EdgewrightError(f"{at}: the Hub answered {error}; run again later") from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise EdgewrightError(f"{at}: the download cannot be written: {error}") from error
        raise EdgewrightError(_offline(at, error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0].startswith("http"):  # the client's transport, whatever its version
            raise EdgewrightError(_offline(at, error)) from error
        raise


def _offline(at: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{at}: the Hub cannot be reached ({reason}); check the network, or give a local copy with --checkpoint PATH"
