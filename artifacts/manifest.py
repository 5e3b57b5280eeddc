"""edgewright.json: what an artifact is, which files it consists of, and what its last validations found.

What lives here: the strict schema, writing and reading it, hashing files, and checking a folder against its manifest.
What does not: how a folder gets built and put in place, and a verdict written into it (``store.py``), and what the
files mean to a runtime (``runtime_tests``).

A manifest is untrusted input: it may come from a download. No path in it can leave the artifact's folder, no link is
followed, and ``payload_file`` is the only way in which a name from ``runtime`` becomes a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from .documents import DocumentError, parse_json, read_bytes
from .errors import EdgewrightError
from .figures import Check, Figure
from .formats.interface import Component, Driver
from .formats.work import Work
from .paths import user_path
from .progress import Progress, silent

SCHEMA_VERSION: Final = 2
MANIFEST = "edgewright.json"
SIGNATURE = "model.sig"  # of everything else in its folder, the manifest included: made last, listed nowhere
_FIRST_MANIFEST = "manifest.json"  # its name once; onnxruntime takes a folder with one for a package of its own
_MAX_MANIFEST_BYTES = 16 << 20
_CHUNK = 1 << 20


def checked_path(path: str) -> str:
    """Return ``path`` if it is a plain relative POSIX path that stays in its folder everywhere; else ValueError."""
    parts = path.split("/")
    if not path or len(path) > 1024 or "\\" in path or ":" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ValueError(f"{path!r} is not a plain relative path")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} would leave the artifact's folder or is not normalized")
    if path.casefold() == MANIFEST:
        raise ValueError(f"{MANIFEST} cannot list itself")
    return path


RelativePath = Annotated[str, AfterValidator(checked_path)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """One file: POSIX path relative to the artifact's folder, size in bytes, sha256 in lower-case hex."""

    path: RelativePath
    size: Size
    sha256: Sha256


class RecipeEntry(_Strict):
    """A recipe: its name and the sha256 of its canonical form, with this artifact's target as its only one."""

    name: str
    digest: Sha256


class CheckpointFile(_Strict):
    """One input file of the checkpoint. It lies outside the artifact; the path is a label."""

    path: str
    size: Size
    sha256: Sha256


class CheckpointEntry(_Strict):
    """Where the weights came from: a Hub id with the commit that was fetched, or a local folder (revision None).

    ``license``: as the checkpoint states it; None where it states none.
    """

    source: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    license: str | None = None
    files: tuple[CheckpointFile, ...] = ()


class QuantizationGroup(_Strict):
    """Tensors that share a scheme. ``group`` is None where ``bits`` is 16; ``bytes`` counts packed codes and scales."""

    bits: Literal[4, 8, 16]
    group: Literal["channel"] | Annotated[int, Field(gt=0)] | None
    symmetric: bool
    method: str
    tensors: Size
    parameters: Size
    bytes: Size


class ValidationRecord(_Strict):
    """One validation of these very files: its verdict, when (UTC, ISO 8601), where, and every check.

    ``limits``: the recipe whose limits were applied; None: the golden vectors' tolerances and the phones' own limits.
    ``failed_steps``: what did not end by itself, such as a runtime that crashed. ``verdict`` is "not assessed" where
    every phone that was asked for is of a platform that cannot run the artifact.
    """

    verdict: Literal["passed", "failed", "not assessed"]
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
    host: str
    edgewright: str
    limits: RecipeEntry | None
    checks: tuple[Check, ...]
    failed_steps: tuple[str, ...] = ()


class OutdatedManifest(EdgewrightError):
    """A manifest of a schema version before this one. listed: the files that it names, to replace the folder safely."""

    def __init__(self, message: str, listed: frozenset[str]) -> None:
        super().__init__(message)
        self.listed = listed


Standing = Literal["passed", "failed", "not assessed", "not validated"]


class ManifestDraft(_Strict):
    """A manifest before its files are hashed. ``runtime`` is whatever the target's runner needs (JSON only).

    ``work``: what it computes, for models of its speed; empty in packages that were built before it was counted.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    created_by: dict[str, str]
    recipe: RecipeEntry
    target: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    family: str
    checkpoint: CheckpointEntry
    quantization: tuple[QuantizationGroup, ...] = ()
    components: tuple[Component, ...] = ()
    driver: Driver | None = None
    runtime: dict[str, JsonValue]
    figures: tuple[Figure, ...] = ()
    work: Work = Work()
    weights_digest: Sha256


class Manifest(ManifestDraft):
    """The manifest as it is written: the draft and every file of the folder except edgewright.json itself.

    ``validations`` holds the last one by a recipe's limits and the last one without; a new build has none, unless it
    gave the same bytes again.
    """

    files: tuple[FileEntry, ...]
    validations: tuple[ValidationRecord, ...] = ()

    @model_validator(mode="after")
    def _paths_are_distinct(self) -> Manifest:
        seen: set[str] = set()
        for entry in self.files:
            if (key := entry.path.casefold()) in seen:
                raise ValueError(f"{entry.path!r} is listed twice (or differs only in case)")
            seen.add(key)
        return self

    @property
    def total_bytes(self) -> int:
        """Size of all files in bytes, without edgewright.json."""
        return sum(entry.size for entry in self.files)

    @property
    def verdict(self) -> Standing:
        """failed if any of the recorded validations failed, else passed if one passed."""
        found = {record.verdict for record in self.validations}
        order: tuple[Standing, ...] = ("failed", "passed", "not assessed")
        return next((word for word in order if word in found), "not validated")

    @property
    def identity(self) -> str:
        """sha256 in hex of all that was built: the manifest without what was found out about it later."""
        content = self.model_dump(mode="json", exclude={"validations"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The content of edgewright.json."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class Problem(_Strict):
    """One way in which a folder differs from its manifest; ``path`` is relative to the folder."""

    path: str
    kind: Literal["missing", "extra", "size", "digest", "link", "not a file", "unreadable"]
    message: str


def sha256_file(
    path: Path, progress: Progress = silent, *, stage: str = "hashing", done: int = 0, total: int = 0
) -> str:
    """sha256 in hex of a regular file, streamed (OSError for links); progress counts bytes from ``done``."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(stage, done, max(total, done))
    return digest.hexdigest()


def write_manifest(folder: Path, draft: ManifestDraft, progress: Progress = silent) -> Manifest:
    """Hash every file in ``folder``, then write edgewright.json, last and atomically. Links are refused."""
    found = {name: info for name, info in _walk(folder) if name not in (MANIFEST, SIGNATURE)}
    total, done = sum(info.st_size for info in found.values() if info), 0
    entries = []
    for name, info in found.items():
        if info is None or not stat.S_ISREG(info.st_mode):
            raise EdgewrightError(
                f"{folder / name}: an artifact holds regular files only; remove the link or special file"
            )
        digest = sha256_file(folder / name, progress, done=done, total=total)
        entries.append(FileEntry(path=name, size=info.st_size, sha256=digest))
        done += info.st_size
    manifest = Manifest(files=tuple(entries), **{name: getattr(draft, name) for name in ManifestDraft.model_fields})
    aside = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        aside.write_text(manifest.text(), encoding="utf-8")
        aside.replace(folder / MANIFEST)
    finally:
        aside.unlink(missing_ok=True)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read and validate ``folder``/edgewright.json; EdgewrightError names the file, the field and what to do."""
    path = user_path(folder, "ARTIFACT") / MANIFEST
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise NotADirectoryError
        found = {name for name in (MANIFEST, _FIRST_MANIFEST) if os.path.lexists(folder / name)}
    except (FileNotFoundError, NotADirectoryError):
        raise EdgewrightError(f"{folder}: no such artifact folder") from None
    except OSError as error:
        raise EdgewrightError(f"{folder}: cannot be read ({error.strerror}); check the path and its rights") from error
    if found == {_FIRST_MANIFEST}:
        raise EdgewrightError(f"{folder}: holds a {_FIRST_MANIFEST} and no {MANIFEST}: {_REBUILD}")
    if not found:
        raise EdgewrightError(
            f"{folder}: not an Edgewright artifact, it holds no {MANIFEST}; build one with `edgewright run`"
        )
    try:
        raw = read_bytes(path, _MAX_MANIFEST_BYTES, links=False)
        content = parse_json(raw, str(path))
    except DocumentError as error:
        raise EdgewrightError(f"{error}; {_REBUILD}") from error
    version = content.get("schema_version")
    if type(version) is not int:
        raise EdgewrightError(f"{path}: no schema_version; {_REBUILD}")
    if version < SCHEMA_VERSION:
        raise OutdatedManifest(
            f"{path}: schema version {version} is of an older Edgewright, which did not say how an artifact is called "
            f"(this one reads {SCHEMA_VERSION}); {_REBUILD}",
            _listed(content),
        )
    if version > SCHEMA_VERSION:
        raise EdgewrightError(
            f"{path}: schema version {version} is newer than this Edgewright reads ({SCHEMA_VERSION}); upgrade it"
        )
    try:
        return Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise EdgewrightError(f"{path}: {_first_errors(error)}; {_REBUILD}") from error


def _listed(content: Mapping[str, object]) -> frozenset[str]:
    files = content.get("files")
    entries = files if isinstance(files, list) else []
    return frozenset(path for e in entries if isinstance(e, dict) and isinstance(path := e.get("path"), str))


def verify(folder: Path, progress: Progress = silent) -> list[Problem]:
    """Compare every file of ``folder`` with its manifest and return all problems, sorted by path; empty: intact.

    Raises EdgewrightError when the manifest itself cannot be read. Files of a wrong size are not hashed.
    """
    manifest = read_manifest(folder)
    found = {name: info for name, info in _walk(folder) if name not in (MANIFEST, SIGNATURE)}
    listed = {entry.path: entry for entry in manifest.files}
    problems = [_unlisted(name, info) for name, info in found.items() if name not in listed]
    total, done = manifest.total_bytes, 0
    for name, entry in listed.items():
        problem = _compare(folder, entry, found.get(name), progress, done, total)
        if problem is not None:
            problems.append(problem)
        done += entry.size
        progress("verifying", done, total)
    return sorted(problems, key=lambda problem: (problem.path, problem.kind))


def require_intact(folder: Path, progress: Progress = silent) -> Manifest:
    """Return the manifest of an intact artifact; EdgewrightError lists what differs (the first eight problems)."""
    problems = verify(folder, progress)
    if problems:
        lines = [f"  {problem.path}: {problem.message}" for problem in problems[:8]]
        more = [f"  and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise EdgewrightError("\n".join([f"{folder}: differs from its manifest; {_REBUILD}", *lines, *more]))
    return read_manifest(folder)


def payload_file(folder: Path, name: str) -> Path:
    """The path of a file that ``runtime`` names; EdgewrightError unless it is a regular file reached without links."""
    try:
        path = folder.joinpath(*checked_path(name).split("/"))
    except ValueError as error:
        raise EdgewrightError(f"{folder / MANIFEST}: runtime: {error}; {_REBUILD}") from error
    inner = [path, *path.parents][: len(path.relative_to(folder).parts)]
    if any(part.is_symlink() for part in inner) or not path.is_file():
        raise EdgewrightError(
            f"{folder / MANIFEST}: runtime names {name!r}, which is no file of the artifact; {_REBUILD}"
        )
    return path


_REBUILD = "build the artifact again or fetch it anew"


def _unlisted(name: str, info: os.stat_result | None) -> Problem:
    path = os.fsencode(name).decode("utf-8", "replace")
    if info is None:
        return Problem(path=path, kind="unreadable", message="a folder that cannot be listed")
    return Problem(path=path, kind="extra", message="not listed in the manifest")


def _compare(
    folder: Path, entry: FileEntry, info: os.stat_result | None, progress: Progress, done: int, total: int
) -> Problem | None:
    if info is None:
        return Problem(path=entry.path, kind="missing", message="missing")
    if stat.S_ISLNK(info.st_mode):
        return Problem(path=entry.path, kind="link", message="a symbolic link, which is refused")
    if not stat.S_ISREG(info.st_mode):
        return Problem(path=entry.path, kind="not a file", message="not a regular file")
    if info.st_size != entry.size:
        return Problem(path=entry.path, kind="size", message=f"{info.st_size} bytes, the manifest says {entry.size}")
    try:
        digest = sha256_file(folder / entry.path, progress, stage="verifying", done=done, total=total)
    except OSError as error:
        return Problem(path=entry.path, kind="unreadable", message=f"cannot be read ({error.strerror or error})")
    if digest != entry.sha256:
        return Problem(path=entry.path, kind="digest", message="sha256 differs: the content was changed")
    return None


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result | None]]:
    """Every entry that is not a real folder, sorted, with its lstat; a linked folder is an entry, never walked into.

    A folder that cannot be listed is an entry with None.
    """
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, prefix)) as found:
                entries = sorted(found, key=lambda item: item.name)
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            files = [(prefix + entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except OSError:
            yield prefix.rstrip("/") or ".", None
            continue
        yield from ((name, info) for name, info in files if not stat.S_ISDIR(info.st_mode))
        waiting += [f"{prefix}{name}/" for name in reversed(folders)]


def _first_errors(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    text = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in errors[:3])
    return text if len(errors) <= 3 else f"{text}; and {len(errors) - 3} more"
