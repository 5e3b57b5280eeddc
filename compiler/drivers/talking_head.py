"""Sound in, a talking head out: the page by which an app cuts windows and puts frames together travels along.

Entry vectors judge every entry. What must not live here: windows and frames themselves (`artifacts/media/speech.py`,
`faces.py`), and the order of calls (`runtime_tests/drivers/talking_head.py`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from artifacts.formats.talking_head import PAGE
from artifacts.media import TALKING_HEAD
from compiler.drivers import plain
from compiler.models.base import Model

FILE = None
covered, held_out, warnings, check = plain.covered, plain.held_out, plain.warnings, plain.check
looked_at, samples, reader = plain.looked_at, plain.samples, plain.reader
write_vectors, copy_vectors = plain.write_vectors, plain.copy_vectors


def write_companions(model: Model, checkpoint: Path, folder: Path) -> None:
    """The page by which an app follows the constants."""
    shutil.copyfile(TALKING_HEAD, folder / PAGE)
