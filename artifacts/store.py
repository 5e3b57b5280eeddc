"""Putting an artifact's folder in place, all or nothing.

What lives here: the staging folder, the atomic replacement, cleaning up after killed runs, and the messages for
places that cannot be written. What does not: what an artifact contains (``manifest.py`` checks that).

Names beside ``<out>/<target>/``: ``.<target>.partial-<pid>`` while it is written, ``.<target>.old-<pid>`` for the
moment in which it is replaced. Their owner holds a lock on them, so that leftovers of a killed process are told from
a run that is still going, also when the process id was given out again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import EdgewrightError
from .manifest import MANIFEST, read_manifest

_IGNORED = frozenset({MANIFEST, ".DS_Store"})


@contextmanager
def staged(final: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield an empty folder beside ``final``; when the block ends well, fsync it and put it in the place of ``final``.

    On any exception, Ctrl-C included, the folder is removed and ``final`` stays as it was. After a kill, the next
    call with the same ``final`` removes what was left. ``final`` may hold an earlier artifact, which is replaced;
    anything else there is refused.

    Raises:
        EdgewrightError: the place is no folder, read-only or too small (``needed_bytes`` is checked before anything
        is written),
            ``final`` holds something that is not an artifact, or files that Edgewright did not put there.
    """
    final = Path(os.path.abspath(final))
    _refuse_foreign(final)
    with _explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.parent / f".{final.name}.partial-{os.getpid()}"
        with _locked(final.parent, wait=True):
            _clean(final)
            free = shutil.disk_usage(final.parent).free
            if needed_bytes > free:
                raise OSError(errno.ENOSPC, f"{needed_bytes} bytes are needed")
            try:
                partial.mkdir()
            except FileExistsError:
                raise EdgewrightError(f"{final}: is being built by this very process; wait for it to finish") from None
            lock = _lock(partial)
    try:
        with _explained(final):
            yield partial
            if not (partial / MANIFEST).is_file():
                raise EdgewrightError(f"{final}: the build ended without writing {MANIFEST}; nothing was put in place")
            _sync(partial)
            _refuse_foreign(final)
            _replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _replace(partial: Path, final: Path) -> None:
    """Rename into place. After a kill between the two renames, ``_clean`` of the next run puts the earlier one back."""
    old = final.parent / f".{final.name}.old-{os.getpid()}"
    with _locked(final.parent, wait=True):
        if replacing := final.exists():
            final.rename(old)
        try:
            partial.rename(final)
        except OSError:
            if replacing:
                old.rename(final)
            raise
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(final: Path) -> None:
    """Nothing but an earlier artifact may be replaced, and only if every file in it is listed in its manifest."""
    if not os.path.lexists(final):
        return
    advice = "move it away or choose another --out"
    if final.is_symlink() or not final.is_dir():
        raise EdgewrightError(f"{final}: exists and is not a folder; {advice}")
    if not any(final.iterdir()):
        return
    try:
        listed = {entry.path for entry in read_manifest(final).files}
    except EdgewrightError as error:
        raise EdgewrightError(f"{final}: exists and is not an Edgewright artifact ({error}); {advice}") from error
    names = {path.relative_to(final).as_posix() for path in final.rglob("*") if path.is_symlink() or not path.is_dir()}
    foreign = sorted(name for name in names - listed if Path(name).name not in _IGNORED)
    if foreign:
        shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise EdgewrightError(f"{final}: holds files that are not part of the artifact ({shown}); {advice}")


def _clean(final: Path) -> None:
    """Remove leftovers of dead runs for ``final``; an artifact moved aside and never replaced goes back in place."""
    with os.scandir(final.parent) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in names:
        for kind in ("partial", "old"):
            prefix = f".{final.name}.{kind}-"
            if not (name.startswith(prefix) and name[len(prefix) :].isdigit()):
                continue
            path = final.parent / name
            lock = _lock(path)
            if lock is None:
                continue
            if kind == "old" and not final.exists() and (path / MANIFEST).is_file():
                path.rename(final)
            else:
                shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of ``folder``; None when another one does, or the file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


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
        if code in (errno.ENOSPC, errno.EDQUOT):
            free = _free_bytes(final.parent)
            raise EdgewrightError(
                f"{final}: no space left on the disk ({free / 1e6:.0f} MB free; {error}); nothing half-written is left "
                "behind; free some space or choose another --out"
            ) from error
        writing = isinstance(error, OSError) and _is_below(error.filename, final.parent)
        if writing and code in (errno.EROFS, errno.EACCES, errno.EPERM):
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
        if os.strerror(errno.ENOSPC) in str(seen):
            return errno.ENOSPC
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
