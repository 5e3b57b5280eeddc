"""Which folder Python finds for each of our rooms: their names are short, and somebody else's may come first.

Loads the standard library only, since it must work before any room can be imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("artifacts", "compiler", "device_farm", "recipes", "runtime_tests")


class RoomHidden(ImportError):
    """A package of somebody else has the name of one of ours and is found first; the message says which."""

    exit_code: int = 2


def check() -> None:
    """Raises RoomHidden."""
    for room in ROOMS:
        module = sys.modules.get(room)
        spec = module.__spec__ if module else importlib.util.find_spec(room)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found == ROOT / room / "__init__.py":
            continue
        place = found.parent if found.name == "__init__.py" else found
        raise RoomHidden(
            f"{place} hides Edgewright's own package {room!r} ({ROOT / room}): Python finds it first. Rename it, or "
            "start the command `edgewright` from another folder and without that one in PYTHONPATH"
        )


def leave_working_directory() -> None:
    """Take the working directory, which `python -m` puts first, from the search path, unless Edgewright lives there."""
    if sys.flags.safe_path or not sys.path:
        return
    try:
        first, here = (Path(path).resolve() for path in (sys.path[0], os.getcwd()))
    except OSError:  # the working directory is gone, and nothing can be found there
        return
    if first == here != ROOT:
        del sys.path[0]
