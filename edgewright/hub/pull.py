"""One package from the Hub: the one that passed on a phone, received and checked, put in place whole.

What lives here: the order of things, and the folder that it lands in. What must not: which package is for which phone
(`index.py`), and how a file is received (`receive.py`).

The Hub is not trusted. Every byte is held against the package's manifest, and the manifest against the index, whose
digest the commit states. Until all is there it lies in `.<package>.pull-<digest>` beside its place, where the next
call goes on.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from artifacts import (
    MANIFEST,
    EdgewrightError,
    Manifest,
    Progress,
    read_manifest,
    refuse_foreign,
    silent,
    staged,
    user_path,
    verify,
)
from artifacts.documents import first_error
from artifacts.locks import lock
from artifacts.manifest import SIGNATURE
from artifacts.store import make_folder
from edgewright.hub.bom import BOM
from edgewright.hub.index import CARD, CONFIG, INDEX, MAX_INDEX_BYTES, Variant, choose, read_index
from edgewright.hub.listing import commit_of, entries, locked
from edgewright.hub.lock import LockedFile
from edgewright.hub.receive import Meter, Words, content, explained, receive
from edgewright.hub.signatures import Trusted
from edgewright.hub.wire import Hub, Nonsense
from edgewright.text import size
from recipes.fields import check_hub_id

_ROOT_FILES = (CARD, CONFIG, INDEX, BOM)
_MAX_MANIFEST_BYTES = 16 << 20
_REVISION = re.compile(r"[\w][\w./-]{0,199}", re.ASCII)
_WORDS = Words("check REPO", "--revision", "", "--out")


@dataclass(frozen=True)
class Pulled:
    """What a pull put in place. `received_bytes` came over the network; what was there already did not."""

    repo: str
    commit: str
    profile: str
    variant: str
    folder: str
    bytes: int
    received_bytes: int


def pull(
    repo: str,
    profile: str,
    out: str | Path,
    *,
    revision: str | None = None,
    trusted: Trusted | None = None,
    progress: Progress = silent,
) -> Pulled:
    """Fetch the smallest package of `repo` that passed on a phone into `out/<package>`, with the root files.

    `revision` is a tag, branch or commit; None: the newest commit. A package that is there and intact is not fetched.
    `trusted`: whose signatures have to hold, of the root files before anything else is fetched, and of the package.

    Raises:
        EdgewrightError: no such repository, none that was published with `edgewright publish`, a phone that it does
            not know, bytes that differ from their digest, or an `out` that holds something else.
        GateFailed: no package passed on the phone.
    """
    folder = user_path(out, "--out", room=1200)
    _check_names(repo, revision)
    with explained(repo, revision, _WORDS), _sensible():
        hub = Hub()
        until = time.monotonic() + hub.patience
        commit = commit_of(hub, repo, revision, until)
        root, signatures = _small(hub, repo, commit, until)
        if trusted is not None:
            _check_root(root, signatures, trusted, repo)
        variant = choose(read_index(root[INDEX], f"{repo}/{INDEX}"), profile, repo)
        _refuse_others(folder)
        final = folder / variant.name
        refuse_foreign(final)
        signature = signatures.get(f"{variant.name}/{SIGNATURE}")
        if trusted is not None and signature is None:
            raise EdgewrightError(f"{repo}/{variant.name}: carries no signature; do not use it, or leave out the key")

        def seal(folder: Path) -> None:
            if signature is not None:
                if trusted is not None:
                    trusted.check(folder, signature, f"{repo}/{variant.name}")
                _write(folder / SIGNATURE, signature)

        received = _fetch(hub, repo, commit, variant, final, seal, progress)
        for name, raw in root.items():
            _write(folder / name, raw)
        if SIGNATURE in signatures:
            _write(folder / SIGNATURE, signatures[SIGNATURE])
    return Pulled(repo, commit, profile, variant.name, str(final), variant.bytes, received)


def _check_names(repo: str, revision: str | None) -> None:
    try:
        check_hub_id(repo)
    except ValueError as error:
        raise EdgewrightError(f"REPO: {error}") from error
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise EdgewrightError(f"--revision: {revision[:96]!r} is no tag, branch or commit")


def _check_root(root: Mapping[str, bytes], signatures: Mapping[str, bytes], trusted: Trusted, repo: str) -> None:
    if SIGNATURE not in signatures:
        raise EdgewrightError(f"{repo}: carries no signature; do not use it, or leave out the key")
    with tempfile.TemporaryDirectory() as scratch:
        for name, raw in root.items():
            (Path(scratch) / name).write_bytes(raw)
        trusted.check(Path(scratch), signatures[SIGNATURE], repo)


def _small(hub: Hub, repo: str, commit: str, until: float) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The root files that a publication has, the index among them; signatures by their paths."""
    found: dict[str, LockedFile] = {}
    for entry in entries(hub, repo, commit, until):
        if entry["path"] in _ROOT_FILES or re.fullmatch(rf"([^/]+/)?{re.escape(SIGNATURE)}", entry["path"]):
            found[entry["path"]] = locked(entry)
    if INDEX not in found:
        raise EdgewrightError(f"{repo}: holds no {INDEX}: nothing that `edgewright publish` put there")
    for file in found.values():
        if file.size > MAX_INDEX_BYTES:
            raise Nonsense(f"{file.path} has {file.size:,} bytes, which it never has")
    read = {name: content(hub, repo, commit, file) for name, file in found.items()}
    return {name: read[name] for name in _ROOT_FILES if name in read}, {
        name: raw for name, raw in read.items() if name not in _ROOT_FILES
    }


def _is_there(final: Path, manifest: Manifest, progress: Progress) -> bool:
    """Whether the package lies in its place, intact, whatever was found out about it since."""
    try:
        return read_manifest(final).identity == manifest.identity and not verify(final, progress)
    except EdgewrightError:
        return False


def _fetch(
    hub: Hub, repo: str, commit: str, variant: Variant, final: Path, seal: Callable[[Path], None], progress: Progress
) -> int:
    """Receive a package beside its place, put it there, and return the bytes that came over the network.

    seal: is called with the folder that holds it whole, before it is in its place."""
    make_folder(final.parent)
    with _workplace(final.parent / f".{final.name}.pull-{variant.manifest.sha256[:16]}") as work:
        manifest = _manifest(hub, repo, commit, variant, work)
        if _is_there(final, manifest, progress):
            seal(final)
            return 0
        files = [LockedFile(path=f"{variant.name}/{f.path}", size=f.size, sha256=f.sha256) for f in manifest.files]
        paths = [work.joinpath(*f.path.split("/")) for f in manifest.files]
        needed = manifest.total_bytes - sum(_size(path) for path in paths)
        if needed > (free := shutil.disk_usage(work).free):
            raise EdgewrightError(
                f"{repo}: {size(needed)} are still to be downloaded and the disk of {final.parent} has {size(free)} "
                "free; make room, or choose another --out"
            )
        meter, before = Meter(progress, "downloading", manifest.total_bytes), 0
        for file, path in zip(files, paths, strict=True):
            _receive_into(hub, repo, commit, file, path, meter, before)
            before += file.size
        meter.finish()
        with staged(final) as partial:
            for name in [MANIFEST, *(f.path for f in manifest.files)]:
                place = partial.joinpath(*name.split("/"))
                place.parent.mkdir(parents=True, exist_ok=True)
                work.joinpath(*name.split("/")).rename(place)
            seal(partial)
    return max(needed, 0)


@contextmanager
def _workplace(work: Path) -> Iterator[Path]:
    """A folder for one pull at a time. What another state of the package left is removed; after success, it itself."""
    work.mkdir(exist_ok=True)
    held = lock(work)
    if held is None:
        raise EdgewrightError(f"{work}: another pull is receiving this package; wait for it")
    try:
        yield work
        shutil.rmtree(work, ignore_errors=True)
        stem = work.name.rpartition("-")[0]
        for left in work.parent.glob(f"{stem}-*"):
            if (other := lock(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(other)
    finally:
        os.close(held)


def _manifest(hub: Hub, repo: str, commit: str, variant: Variant, work: Path) -> Manifest:
    entry = variant.manifest
    if entry.bytes > _MAX_MANIFEST_BYTES:
        raise Nonsense(f"{variant.name}/{MANIFEST} has {entry.bytes:,} bytes, which it never has")
    wanted = LockedFile(path=f"{variant.name}/{MANIFEST}", size=entry.bytes, sha256=entry.sha256)
    _write(work / MANIFEST, content(hub, repo, commit, wanted))
    manifest = read_manifest(work)
    if manifest.total_bytes != variant.bytes or manifest.target != variant.target:
        raise Nonsense(f"{variant.name}/{MANIFEST} is of another package than the index says")
    return manifest


def _receive_into(hub: Hub, repo: str, commit: str, file: LockedFile, path: Path, meter: Meter, before: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "r+b") as stream:
        receive(hub, repo, commit, file, stream, meter.beyond(before))


def _size(path: Path) -> int:
    return path.lstat().st_size if os.path.lexists(path) else 0


def _refuse_others(folder: Path) -> None:
    """EdgewrightError where the root files would replace somebody's own."""
    mine = [name for name in _ROOT_FILES if os.path.lexists(folder / name)]
    if mine and INDEX not in mine:
        raise EdgewrightError(f"{folder}: holds a {mine[0]} that no pull put there; choose another --out")


def _write(path: Path, raw: bytes) -> None:
    """Write aside and put in place; a link that lies there is replaced, never followed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(raw)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _sensible() -> Iterator[None]:
    """Names, sizes and digests that no file has are the Hub's nonsense."""
    try:
        yield
    except ValidationError as error:
        raise Nonsense(first_error(error)) from None
