"""Artifacts: the manifest, and how a folder gets its place. Imports nothing of ours; every other room may import it."""

from .errors import EdgewrightError, GateFailed, MissingTool
from .manifest import (
    MANIFEST,
    Figure,
    Judged,
    Manifest,
    ManifestDraft,
    Problem,
    ValidationRecord,
    Verdict,
    read_manifest,
    require_intact,
    verify,
    write_manifest,
)
from .paths import read_bounded, user_path
from .progress import Progress, silent
from .scratch import scratch_folder
from .store import make_folder, record_validation, refuse_foreign, staged

__all__ = [
    "MANIFEST",
    "EdgewrightError",
    "Figure",
    "GateFailed",
    "Judged",
    "Manifest",
    "ManifestDraft",
    "MissingTool",
    "Problem",
    "Progress",
    "ValidationRecord",
    "Verdict",
    "make_folder",
    "read_bounded",
    "read_manifest",
    "record_validation",
    "refuse_foreign",
    "require_intact",
    "scratch_folder",
    "silent",
    "staged",
    "user_path",
    "verify",
    "write_manifest",
]
