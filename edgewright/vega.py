"""The interactive runtime of pages: the JavaScript of Vega, Vega-Lite and vega-embed, which vl-convert bundles.

Bundling costs every process that writes a page more than a second, so the last bundle is kept in the user's cache.
Its first line has its versions and its digest: what is of others, damaged or cannot be kept there is bundled again.
"""

from __future__ import annotations

import contextlib
import hashlib
from importlib.metadata import version

from artifacts import user_cache


def bundled(snippet: str, vl_version: str) -> str:
    """A script of the snippet and all that it uses, in a version of Vega-Lite that vl-convert has."""
    place = user_cache() / "vega.js"
    made_by = f"// {snippet} vl-convert {version('vl-convert-python')} vega-lite {vl_version}"
    with contextlib.suppress(OSError, ValueError):
        head, _, script = place.read_bytes().partition(b"\n")
        if head == _head(made_by, script):
            return script.decode()
    import vl_convert

    script = str(vl_convert.javascript_bundle(snippet, vl_version=vl_version)).encode()
    aside = place.with_name(".vega.js")  # one name, so that a killed run leaves nothing for ever
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(_head(made_by, script) + b"\n" + script)
        aside.replace(place)
    with contextlib.suppress(OSError):
        aside.unlink(missing_ok=True)
    return script.decode()


def _head(made_by: str, script: bytes) -> bytes:
    return f"{made_by} {hashlib.sha256(script).hexdigest()}".encode()
