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
    ValidationRecord,
    read_manifest,
    require_intact,
    verify,
    write_manifest,
)
from .paths import user_cache, user_path
from .progress import Progress, prefixed, silent
from .scratch import scratch_folder, temporary_place
from .store import keep_validations, record_validation, refuse_foreign, staged, tentative_folder

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
    "ValidationRecord",
    "checked",
    "keep_validations",
    "passes",
    "prefixed",
    "ran_here",
    "read_manifest",
    "record_validation",
    "refuse_foreign",
    "require_intact",
    "scratch_folder",
    "silent",
    "staged",
    "temporary_place",
    "tentative_folder",
    "user_cache",
    "user_path",
    "verify",
    "write_manifest",
]
