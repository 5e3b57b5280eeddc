"""Images at their own size and text in, text out: `image_text`, for models that see an image in one piece.

What an app needs travels along as there; the largest image is the recipe's, however large the processor lets it be.
What must not live here: cells and prompts themselves (`artifacts/media/`), and the order of calls
(`runtime_tests/drivers/native_image_text.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.drivers import image_text
from compiler.models.base import Model

FILE = image_text.FILE
covered, warnings, check, looked_at = image_text.covered, image_text.warnings, image_text.check, image_text.looked_at
held_out, samples = image_text.held_out, image_text.samples
write_vectors, copy_vectors = image_text.write_vectors, image_text.copy_vectors


def write_companions(model: Model, checkpoint: Path, folder: Path) -> None:
    """As `image_text` writes them, for images of at most the pixels that memory is planned for."""
    largest: Any = model.constants["max_image"]
    image_text.write_description(checkpoint, folder, largest)
