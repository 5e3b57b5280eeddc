"""Artifacts: the manifest, figures and checks, and how a folder gets its place.

Imports nothing of ours; every other room may import it.
"""

from .errors import EdgewrightError, GateFailed, MissingTool
from .figures import Check, Figure, checked, passes, ran_here
from .manifest import (
    MANIFEST,
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
    "Check",
    "EdgewrightError",
    "Figure",
    "GateFailed",
    "Manifest",
    "ManifestDraft",
    "MissingTool",
    "Problem",
    "Progress",
    "checked",
    "passes",
    "ran_here",
    "read_manifest",
    "require_intact",
    "silent",
    "staged",
    "verify",
    "write_manifest",
]
