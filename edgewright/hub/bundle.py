"""What a publication consists of: the packages, each in a folder of its own, and what lies beside them.

What lives here: reading artifacts that may be published, and the refusals of those that may not. What must not: the
Hub, and the card's words (`page.py`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts import MANIFEST, EdgewrightError, GateFailed, Manifest, Progress, require_intact, user_path
from artifacts.documents import read_bytes
from artifacts.manifest import SIGNATURE
from artifacts.payload import app_bytes
from compiler.licence import front_matter, non_commercial
from edgewright.hub import index as indexes
from edgewright.hub.bom import BOM, bill
from edgewright.hub.index import CARD, CONFIG, INDEX, Index, Origin, Variant
from edgewright.hub.page import Package, page
from edgewright.hub.signatures import Signer
from edgewright.standing import WEIGHTS, standings

_MAX_MANIFEST_BYTES = 16 << 20
_MAX_CARD_BYTES = 1 << 20
_FORBIDDEN = (".git", ".cache")  # names of folders that the Hub keeps for itself


@dataclass(frozen=True)
class Sent:
    """One file of the repository, and where its bytes are."""

    path: str
    size: int
    sha256: str
    source: Path | bytes

    @property
    def git_sha1(self) -> str:
        """What git calls the file, by which the Hub knows small ones."""
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """Everything that a publication holds, by its path in the repository. folders: of the packages, by their names."""

    index: Index
    files: dict[str, Sent]
    folders: dict[str, Path]
    warnings: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 in hex of all paths and their digests."""
        content = sorted((file.path, file.sha256) for file in self.files.values())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def bundle(
    artifacts: Sequence[str | Path], repo: str, *, licence: str | None, allow_failed: bool, progress: Progress
) -> Bundle:
    """Read and check the artifacts; every byte of theirs is hashed. licence: see `publish`.

    Raises:
        EdgewrightError: one that is changed, that is no package, of another recipe or checkpoint than the others, two
            for one place, a file name that the Hub or other systems cannot take, or a licence that forbids commercial
            use and is not the accepted one.
        GateFailed: one that did not pass, unless `allow_failed`.
    """
    packages: dict[str, Package] = {}
    files: dict[str, Sent] = {}
    for given in artifacts:
        folder = user_path(given, "ARTIFACT")
        manifest = require_intact(folder, progress)
        raw = read_bytes(folder / MANIFEST, _MAX_MANIFEST_BYTES, links=False)
        digest = hashlib.sha256(raw).hexdigest()
        entry = indexes.variant(manifest, digest, len(raw), app_bytes(folder, manifest))
        _check(folder, manifest, entry, allow_failed)
        _check_licence(folder, manifest, licence)
        for other in packages.values():
            _check_together(folder, manifest, entry, other)
        packages[entry.name] = Package(folder, manifest, entry, _metadata(folder, manifest))
        sent = [Sent(f"{entry.name}/{f.path}", f.size, f.sha256, folder / f.path) for f in manifest.files]
        sent.append(Sent(f"{entry.name}/{MANIFEST}", len(raw), digest, raw))
        files |= {file.path: file for file in sent}
    ordered = [packages[name] for name in sorted(packages)]
    index = _index(ordered)
    root = {CARD: page(index, ordered, repo).encode(), CONFIG: _config(index), INDEX: index.content()}
    root[BOM] = bill(ordered, repo)
    files |= {name: _sent(name, content) for name, content in root.items()}
    folders = {package.variant.name: package.folder for package in ordered}
    return Bundle(index, files, folders, tuple(_warnings(ordered)))


def signed(made: Bundle, signer: Signer, earlier: Callable[[str], bytes | None]) -> Bundle:
    """With a signature in every package's folder, and one of the root's own files.

    earlier: the signature that the repository has at a path, which stays where it holds. Raises EdgewrightError.
    """
    signatures = {}
    for name, folder in made.folders.items():
        path = f"{name}/{SIGNATURE}"
        signatures[path] = signer.renewed(folder, earlier(path))
    with tempfile.TemporaryDirectory() as scratch:
        for path, file in made.files.items():
            if isinstance(file.source, bytes) and "/" not in path:
                (Path(scratch) / path).write_bytes(file.source)
        signatures[SIGNATURE] = signer.renewed(Path(scratch), earlier(SIGNATURE))
    return replace(made, files=made.files | {path: _sent(path, raw) for path, raw in signatures.items()})


def _sent(path: str, content: bytes) -> Sent:
    return Sent(path, len(content), hashlib.sha256(content).hexdigest(), content)


def _check(folder: Path, manifest: Manifest, entry: Variant, allow_failed: bool) -> None:
    if manifest.target == WEIGHTS:
        raise EdgewrightError(f"{folder}: holds quantized weights, which no phone runs; publish the packages instead")
    for file in manifest.files:
        reserved = [part for part in file.path.split("/") if part.casefold() in _FORBIDDEN]
        if reserved or not file.path.isprintable():
            what = f"a folder {reserved[0]}, which the Hub refuses" if reserved else "characters that cannot be shown"
            raise EdgewrightError(f"{folder}: the name {file.path!r} has {what}; build the package without it")
    for record in manifest.validations:
        failed = [check for check in record.checks if check.verdict in ("failed", "does not fit")]
        if record.verdict == "passed" and failed:
            raise EdgewrightError(
                f"{folder / MANIFEST}: says that it passed, and that {failed[0].label} {failed[0].verdict}: it was "
                "edited; validate or build the package again"
            )
    if entry.verdict != "passed" and not allow_failed:
        reasons = "; ".join(found.words for found in standings(manifest, folder) if found.verdict != "passed")
        raise GateFailed(
            f"{folder}: did not pass, so nothing was published: {reasons}. With --allow-failed it is published with "
            "that on its card"
        )


def _check_licence(folder: Path, manifest: Manifest, accepted: str | None) -> None:
    stated = manifest.checkpoint.license
    if stated is not None and non_commercial(stated) and accepted != stated:
        raise EdgewrightError(
            f"{folder}: its checkpoint's licence, {stated}, forbids commercial use, and a publication hands it on. "
            "If that is what you want, a recipe has to name it: "
            f"`publish: {{repo: …, accept_licence: {stated}}}`, given by --recipe"
        )


def _check_together(folder: Path, manifest: Manifest, entry: Variant, other: Package) -> None:
    def inputs(of: Manifest) -> set[str]:
        return {file.sha256 for file in of.checkpoint.files}

    if entry.name.casefold() == other.variant.name.casefold():
        raise EdgewrightError(
            f"{folder} and {other.folder}: both would be {entry.name} in the repository; publish one of them"
        )
    if (manifest.recipe.name, inputs(manifest)) != (other.manifest.recipe.name, inputs(other.manifest)):
        raise EdgewrightError(
            f"{folder} and {other.folder}: are of different recipes or checkpoints ({manifest.recipe.name}, "
            f"{other.manifest.recipe.name}); publish each to a repository of its own"
        )


def _index(packages: Sequence[Package]) -> Index:
    first = packages[0].manifest
    origin = first.checkpoint
    variants = tuple(package.variant for package in packages)
    return Index(
        recipe=first.recipe.name,
        base_model=Origin(repo=origin.source, revision=origin.revision) if origin.revision else None,
        profiles=indexes.phones(variants),
        variants=variants,
    )


def _config(index: Index) -> bytes:
    """The Hub counts the downloads of a repository by those of this file; `edgewright pull` reads it for that alone."""
    content = {"edgewright_index": INDEX, "variants": [item.name for item in index.variants]}
    return (json.dumps(content, indent=2) + "\n").encode()


def _metadata(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The front matter of the package's own card; empty where it has none."""
    if not any(file.path == CARD for file in manifest.files):
        return {}
    import yaml

    try:
        found = yaml.safe_load(front_matter(read_bytes(folder / CARD, _MAX_CARD_BYTES, links=False).decode()) or "")
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise EdgewrightError(f"{folder / CARD}: its metadata cannot be read; build the package again") from error
    return found if isinstance(found, dict) else {}


def _warnings(packages: Sequence[Package]) -> Iterator[str]:
    for package in packages:
        if package.text("license") in (None, "unknown"):
            yield f"{package.folder}: states no licence; the repository's card says license: unknown"
        if package.variant.verdict != "passed":
            yield f"{package.folder}: {package.variant.verdict}; the repository's card and index say so"
