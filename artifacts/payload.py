"""What of an artifact goes into an app: the files of `runtime.payload`, which every target's build writes.

What lives here: reading that key. What must not: which files those are (`compiler/targets`). The rest of an artifact
is for those who test and build: golden vectors, reports, documentation, libraries for other machines.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from .errors import EdgewrightError
from .manifest import MANIFEST, Manifest

_PAYLOAD = TypeAdapter(dict[str, tuple[str, ...]])


def app_bytes(folder: Path, manifest: Manifest) -> dict[str, int] | None:
    """Bytes that an app ships, by platform; a platform that is not there cannot run the artifact.

    None where the manifest does not say. `folder` is for messages. EdgewrightError for a list that names no file of the
    artifact.
    """
    listed = manifest.runtime.get("payload")
    if listed is None:
        return None
    try:
        payload = _PAYLOAD.validate_python(listed)
    except ValidationError as error:
        raise EdgewrightError(
            f"{folder / MANIFEST}: runtime.payload must list files by platform ({error.error_count()} wrong entries); "
            "build the artifact again"
        ) from error
    sizes = {entry.path: entry.size for entry in manifest.files}
    for platform, names in payload.items():
        if missing := [name for name in names if name not in sizes]:
            raise EdgewrightError(
                f"{folder / MANIFEST}: runtime.payload.{platform} names {missing[0]!r}, which is no file of the "
                "artifact; build the artifact again"
            )
    return {platform: sum(sizes[name] for name in dict.fromkeys(names)) for platform, names in payload.items()}
