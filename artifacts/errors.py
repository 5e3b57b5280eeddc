"""The errors a user can meet, with the exit code each one ends in.

The lowest room of the house: every package except ``recipes/`` may import it. What does not live here: errors that
only one room raises and catches itself.

A message says what is wrong, where (file, key, tensor) and what to do about it; it is printed as it is, without a
traceback.
"""

from __future__ import annotations


class EdgewrightError(Exception):
    """A bad recipe, checkpoint, artifact or profile, or a place that cannot be written."""

    exit_code: int = 2


class MissingTool(EdgewrightError):
    """A tool or optional package which this step needs is not installed; the message names the way to get it."""

    exit_code: int = 3


class GateFailed(EdgewrightError):
    """A figure missed its limit; the message holds both."""

    exit_code: int = 1
