"""Artifacts: the manifest, and how a folder gets its place. Imports nothing of ours; every other room may import it."""

from .errors import EdgewrightError, GateFailed, MissingTool
from .manifest import (
    MANIFEST,
    Figure,
    Manifest,
    ManifestDraft,
    Problem,
    read_manifest,
    require_intact,
    verify,
    write_manifest,
)
from .progress import Progress, silent
from .store import staged

__all__ = [
    "MANIFEST",
    "EdgewrightError",
    "Figure",
    "GateFailed",
    "Manifest",
    "ManifestDraft",
    "MissingTool",
    "Problem",
    "Progress",
    "read_manifest",
    "require_intact",
    "silent",
    "staged",
    "verify",
    "write_manifest",
]
