"""The error that an image, a clip or a prompt ends in when it cannot be used."""

from __future__ import annotations

from artifacts.errors import EdgewrightError


class MediaError(EdgewrightError):
    """An image, a clip or a prompt that cannot be used: which one, and why."""
