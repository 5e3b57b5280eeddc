"""A folder for what a step needs only while it runs, gone afterwards, also when the process was killed.

What lives here: making it below TMPDIR and removing those of dead processes. What must not: anything that outlives a
step (``store.py``).

Its owner holds a lock on it from before it has its name until it is gone, so a folder with this name and no lock
belongs to nobody; that, its owner and its exact name are what is asked before one is removed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .errors import EdgewrightError
from .locks import lock

_NAME = re.compile(r"edgewright-scratch-[a-z0-9_]{8}")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder below TMPDIR that only this user can read; the first call removes those of killed runs.

    Raises EdgewrightError when none can be made, or when the disk is full while it is in use.
    """
    place = temporary_place()
    _clean_once(place)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=".edgewright-new-", dir=place))
        held = lock(fresh)
        folder = place / f"edgewright-scratch-{fresh.name[-8:]}"
        fresh.rename(folder)
    except OSError as error:
        raise EdgewrightError(f"{place}: no temporary folder can be made ({error}); set TMPDIR to another") from error
    try:
        yield folder
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full and str(error.filename or "").startswith(str(folder)):
            raise EdgewrightError(f"{place}: no room for temporary files ({error}); set TMPDIR to another") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def temporary_place() -> Path:
    """Where temporary files go. Raises EdgewrightError where none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise EdgewrightError(
            f"no temporary folder can be used ({error}); set TMPDIR, or raise a limit on file sizes (ulimit -f)"
        ) from error


@cache
def _clean_once(place: Path) -> None:
    """Remove the folders of dead processes. What cannot be told for sure is left."""
    try:
        with os.scandir(place) as entries:
            found = [
                Path(entry.path)
                for entry in entries
                if _NAME.fullmatch(entry.name)
                and entry.is_dir(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            ]
    except OSError:
        return
    for folder in found:
        if (held := lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
