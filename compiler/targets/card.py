"""README.md of an artifact: the Hub's metadata, where the model comes from, its files, and what a target adds.

What lives here: all that is the same for every target. What must not: how a runtime loads a package; that is each
target's own sections.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from artifacts import MANIFEST, read_manifest
from artifacts.formats.task import TASK
from artifacts.formats.vectors import VECTORS
from compiler.licence import licence_of, licence_warning
from compiler.slots import HALF
from compiler.targets.base import BuildJob

README = "README.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class About:
    """What kind of model a card is of. task: the Hub's `pipeline_tag`, "" without one; purpose: ends its sentence;
    vectors: the file of what it has to answer."""

    what: str = "The components"
    task: str = ""
    purpose: str = ""
    vectors: str = VECTORS


_ANY = About()


def write_card(
    job: BuildJob,
    folder: Path,
    *,
    runtime: str,
    library: str,
    tags: Sequence[str],
    sections: Sequence[str],
    about: About = _ANY,
) -> None:
    """Write README.md, last of a package's files, since it lists them with their sizes.

    runtime: its name in the title; library: the Hub's `library_name`; sections: Markdown, in order.
    """
    base, revision = _origin(job)
    licence = licence_of(job.source)
    widths = sorted({job.schemes.get(s.name, HALF).bits for s in job.model.slots if not s.is_vector})
    bits = [b for b in widths if b != 16]
    metadata: dict[str, object] = {"license": licence or "unknown", "library_name": library}
    if about.task:
        metadata["pipeline_tag"] = about.task
    if base is not None:
        metadata |= {"base_model": base, "base_model_relation": "quantized"}
    metadata["tags"] = [*tags, "edgewright", *(f"{b}-bit" for b in bits)]
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    origin = f"[{base}](https://huggingface.co/{base}) at commit `{revision}`" if base else "a local checkpoint"
    sizes = " and ".join(f"{b}-bit" for b in widths)
    parts = [
        f"---\n{header}---\n\n# {job.name}, {runtime}",
        f"{about.what} of {origin}, {sizes} weights, written by Edgewright{about.purpose}.",
    ]
    if licence is None:
        parts.append("The checkpoint states no licence that could be read; set `license` before publishing.")
    if warning := licence_warning(licence):
        parts.append(f"**{warning}.**")
    (folder / README).write_text(
        "\n\n".join([*parts, _files(folder, about.vectors), *sections]) + "\n", encoding="utf-8"
    )


def _files(folder: Path, vectors: str) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != README)
    rows = [f"| `{path.relative_to(folder).as_posix()}` | {path.stat().st_size:,} |" for path in files]
    return (
        "## Files\n\n| file | bytes |\n|---|---:|\n" + "\n".join(rows) + "\n\n"
        f"Beside them, and of no use to an app: `{MANIFEST}` (every file's digest, how it was made, what was found "
        f"when it was validated), `{vectors}` (what the package has to answer), `{TASK}` (questions, where its recipe "
        "asks some) and `quantization.json` (what each tensor lost). `edgewright validate` on this folder runs it here "
        "and compares every answer."
    )


def _origin(job: BuildJob) -> tuple[str | None, str | None]:
    """Hub id and commit of the checkpoint, from the manifest of the packed weights; None for a local folder."""
    if not (job.weights.path / MANIFEST).is_file():
        return None, None
    entry = read_manifest(job.weights.path).checkpoint
    return (entry.source, entry.revision) if entry.revision and _HUB_ID.fullmatch(entry.source) else (None, None)
