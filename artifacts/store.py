"""Putting an artifact's folder in place, all or nothing.

What lives here: the staging folder, the atomic replacement, writing a verdict into a manifest, cleaning up after
killed runs, and the messages for places that cannot be written. What does not: what an artifact contains
(``manifest.py`` checks that).

Names beside ``<out>/<target>/``: ``.<target>.partial-<pid>`` while it is written, ``.<target>.old-<pid>`` for the
moment in which it is replaced, ``.<target>.manifest-<pid>`` for the moment in which its manifest is. The owner of the
folders holds a lock on them, so that leftovers of a killed process are told from a run that is still going, also when
the process id was given out again; a manifest is written under the lock of the folder that they all lie in.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import EdgewrightError
from .locks import lock, locked
from .manifest import (
    MANIFEST,
    SIGNATURE,
    CheckpointEntry,
    Manifest,
    OutdatedManifest,
    RecipeEntry,
    ValidationRecord,
    read_manifest,
)

IGNORED = frozenset({MANIFEST, SIGNATURE, ".DS_Store"})
_LEFTOVER = re.compile(r"\.(.+)\.(?:partial|old|manifest)-[0-9]+")
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def staged(final: Path, *, needed_bytes: int = 0, replaced: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield an empty folder beside ``final``; when the block ends well, fsync it and put it in the place of ``final``.

    On any exception, Ctrl-C included, the folder is removed and ``final`` stays as it was. After a kill, the next
    call with the same ``final`` removes what was left. ``final`` may hold an earlier artifact, which is replaced;
    anything else there is refused. ``replaced`` is called with the folder that the earlier one was moved to, and
    removes it (which is what happens without).

    Raises:
        EdgewrightError: the place is no folder, read-only or too small (``needed_bytes`` is checked before anything
        is written),
            ``final`` holds something that is not an artifact, or files that Edgewright did not put there.
    """
    final = Path(os.path.abspath(final))
    refuse_foreign(final)
    with _staging(final, needed_bytes) as partial:
        yield partial
        if not (partial / MANIFEST).is_file():
            raise EdgewrightError(f"{final}: the build ended without writing {MANIFEST}; nothing was put in place")
        _sync(partial)
        _refuse_foreign(final)
        _replace(partial, final, replaced)


def put_in_place(folder: Path, final: Path, replaced: Callable[[Path], None]) -> None:
    """Rename a whole artifact of the same file system to ``final``, as ``staged`` does with what it was given."""
    final = Path(os.path.abspath(final))
    with _explained(final):
        with locked(final.parent):
            _clean(final)
        _refuse_foreign(final)
        _replace(folder, final, replaced)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """As ``staged``, for a folder of any files that must not be there yet: nothing is ever replaced."""
    final = Path(os.path.abspath(final))
    there = EdgewrightError(f"{final}: is there already, and is not overwritten; choose another --out")
    if os.path.lexists(final):
        raise there
    with _staging(final, 0) as partial:
        yield partial
        _sync(partial)
        with locked(final.parent):
            if os.path.lexists(final):
                raise there
            partial.rename(final)
        _sync_folder(final.parent)


@contextmanager
def _staging(final: Path, needed_bytes: int) -> Iterator[Path]:
    """An empty folder beside ``final``, locked and gone after the block; leftovers for ``final`` are removed first."""
    make_folder(final.parent)
    partial = final.parent / f".{final.name}.partial-{os.getpid()}"
    held, ours = None, False
    try:
        with _explained(final):
            with locked(final.parent):
                _clean(final)
                free = shutil.disk_usage(final.parent).free
                if needed_bytes > free:
                    raise OSError(errno.ENOSPC, f"{needed_bytes} bytes are needed")
                try:
                    ours = True  # before it is: a signal may come between any two lines
                    partial.mkdir()
                except FileExistsError:
                    ours = False
                    raise EdgewrightError(
                        f"{final}: is being built by this very process; wait for it to finish"
                    ) from None
                held = lock(partial)
            yield partial
    finally:
        if ours:
            shutil.rmtree(partial, ignore_errors=True)
        if held is not None:
            os.close(held)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents. EdgewrightError when the system refuses, whatever the reason."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "cannot be written" if error.errno in _FORBIDDEN else "no folder can be made there"
        raise EdgewrightError(f"{folder}: {what} ({error}); choose another --out") from error


@contextmanager
def tentative_folder(folder: Path) -> Iterator[None]:
    """Make a folder with its parents for what the block puts there; those that are empty after an error go again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first that holds something
            for path in missing:
                path.rmdir()
        raise


def keep_validations(made: Manifest, partial: Path, final: Path) -> Manifest:
    """What was found out about the artifact in ``final`` holds for one in ``partial`` of the same bytes: written there.

    made: the manifest in ``partial``. Returns the one that is there now.
    """
    try:
        earlier = read_manifest(final)
    except EdgewrightError:  # there is none, or none that can be read
        return made
    if not earlier.validations or earlier.identity != made.identity:
        return made
    (partial / MANIFEST).write_text(earlier.text(), encoding="utf-8")
    return earlier


def record_validation(folder: Path, validated: Manifest, record: ValidationRecord) -> Manifest:
    """Write what a validation of ``validated`` found into ``folder``'s manifest, atomically, and return that manifest.

    It takes the place of the record by the same limits. Raises EdgewrightError when the artifact was replaced since,
    or when the manifest cannot be written; the manifest stays as it was.
    """

    def recorded(current: Manifest) -> Manifest:
        if current.identity != validated.identity:
            raise EdgewrightError(f"{folder}: was replaced while it was validated; validate it again")
        others = [item for item in current.validations if (item.limits is None) != (record.limits is None)]
        return current.model_copy(update={"validations": (*others, record)})

    return _rewritten(folder, recorded, "the verdict")


def relabel(folder: Path, recipe: RecipeEntry, checkpoint: CheckpointEntry) -> Manifest:
    """Have ``folder``'s manifest say that these very bytes are what ``recipe`` gives of ``checkpoint``, atomically.

    What was found out by the limits of another recipe goes. Raises EdgewrightError as ``record_validation`` does.
    """

    def relabelled(current: Manifest) -> Manifest:
        kept = tuple(item for item in current.validations if item.limits in (None, recipe))
        return current.model_copy(update={"recipe": recipe, "checkpoint": checkpoint, "validations": kept})

    current = read_manifest(folder)
    return current if relabelled(current) == current else _rewritten(folder, relabelled, "the recipe's digest")


def _rewritten(folder: Path, change: Callable[[Manifest], Manifest], what: str) -> Manifest:
    folder = Path(os.path.realpath(folder))
    aside = folder.parent / f".{folder.name}.manifest-{os.getpid()}"
    try:
        with locked(folder.parent):
            _clean_manifests(folder)
            updated = change(read_manifest(folder))
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write(updated.text())
                    file.flush()
                    os.fsync(descriptor)
                aside.replace(folder / MANIFEST)
            finally:
                aside.unlink(missing_ok=True)
            _sync_folder(folder)
    except OSError as error:
        raise EdgewrightError(f"{folder / MANIFEST}: {what} cannot be written ({error.strerror})") from error
    return updated


def _replace(partial: Path, final: Path, replaced: Callable[[Path], None] | None) -> None:
    """Rename into place. After a kill between the two renames, ``_clean`` of the next run puts the earlier one back."""
    old = final.parent / f".{final.name}.old-{os.getpid()}"
    with locked(final.parent):
        replacing = final.exists()
        try:
            if replacing:
                final.rename(old)
            partial.rename(final)
        finally:  # an error, or a signal between the two
            if replacing and not final.exists():
                old.rename(final)
    _sync_folder(final.parent)
    if replacing and replaced is not None:
        replaced(old)
    shutil.rmtree(old, ignore_errors=True)


def refuse_foreign(final: Path) -> None:
    """EdgewrightError unless ``final`` can be replaced: nothing, or an artifact in which every file is listed."""
    with _explained(Path(os.path.abspath(final))):
        _refuse_foreign(final)


def _refuse_foreign(final: Path) -> None:
    if not os.path.lexists(final):
        return
    advice = "move it away or choose another --out"
    if final.is_symlink() or not final.is_dir():
        raise EdgewrightError(f"{final}: exists and is not a folder; {advice}")
    if not any(final.iterdir()):
        return
    try:
        listed = {entry.path for entry in read_manifest(final).files}
    except OutdatedManifest as error:
        listed = set(error.listed)
    except EdgewrightError as error:
        raise EdgewrightError(f"{final}: exists and is not an Edgewright artifact ({error}); {advice}") from error
    names = {path.relative_to(final).as_posix() for path in final.rglob("*") if path.is_symlink() or not path.is_dir()}
    foreign = sorted(name for name in names - listed if Path(name).name not in IGNORED)
    if foreign:
        shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise EdgewrightError(f"{final}: holds files that are not part of the artifact ({shown}); {advice}")


def clean(folder: Path) -> None:
    """Remove leftovers of dead runs for whatever lies, or was to lie, in ``folder``."""
    with locked(folder):
        names = {found[1] for entry in os.listdir(folder) if (found := _LEFTOVER.fullmatch(entry))}
        for name in sorted(names):
            _clean(folder / name)


def _clean(final: Path) -> None:
    """Remove leftovers of dead runs for ``final``; an artifact moved aside and never replaced goes back in place.

    The caller holds the lock of the folder that ``final`` lies in.
    """
    _clean_manifests(final)
    with os.scandir(final.parent) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in names:
        for kind in ("partial", "old"):
            prefix = f".{final.name}.{kind}-"
            if not (name.startswith(prefix) and name[len(prefix) :].isdigit()):
                continue
            path = final.parent / name
            held = lock(path)
            if held is None:
                continue
            if kind == "old" and not final.exists() and (path / MANIFEST).is_file():
                path.rename(final)
            else:
                shutil.rmtree(path, ignore_errors=True)
            os.close(held)


def _clean_manifests(final: Path) -> None:
    """Remove what a writer of the manifest left: whoever holds the lock of the folder around it is the only one."""
    prefix = f".{final.name}.manifest-"
    with os.scandir(final.parent) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    for name in names:
        if name.startswith(prefix) and name[len(prefix) :].isdigit():
            (final.parent / name).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """fsync every file and folder below ``folder``, so that a crash after the rename cannot leave empty files."""
    for path, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(path))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(final: Path) -> Iterator[None]:
    """Turn the file-system errors a user can do something about into one message; everything else passes."""
    try:
        yield
    except EdgewrightError:
        raise
    except Exception as error:
        code = _errno(error)
        if code == errno.EFBIG:
            raise EdgewrightError(
                f"{final}: a file became larger than this process may write ({error}); nothing half-written is left "
                "behind; raise the limit (ulimit -f)"
            ) from error
        if code in (errno.ENOSPC, errno.EDQUOT):
            free = _free_bytes(final.parent)
            raise EdgewrightError(
                f"{final}: no space left on the disk ({free / 1e6:.0f} MB free; {error}); nothing half-written is left "
                "behind; free some space or choose another --out"
            ) from error
        writing = isinstance(error, OSError) and _is_below(error.filename, final.parent)
        if writing and code in _FORBIDDEN:
            raise EdgewrightError(f"{final.parent}: cannot be written ({error}); choose another --out") from error
        if writing and code in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP):
            raise EdgewrightError(f"{final}: no folder can be made there ({error}); choose another --out") from error
        raise


def _errno(error: BaseException) -> int | None:
    """The error number; writers in other languages only carry it in their message ("… (os error 28)")."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        for code in (errno.ENOSPC, errno.EFBIG):
            if os.strerror(code) in str(seen):
                return code
        seen = seen.__cause__
    return None


def _is_below(filename: object, folder: Path) -> bool:
    """Whether an error's file lies in ``folder`` or is one of its ancestors (where a folder could not be made)."""
    if not isinstance(filename, str | os.PathLike):
        return False
    path = Path(os.path.abspath(filename))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
