"""README.md of a repository of packages: the Hub's metadata, and what was found out about each package.

What lives here: that one page. What must not: the cards of packages (`compiler/targets/card.py`). All that a manifest
says is somebody's text: nothing in it can become a link, a picture, HTML or another row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import Manifest
from edgewright import text
from edgewright.hub.index import CARD, INDEX, Index, Variant, of_the_model
from edgewright.markdown import table
from edgewright.report import target_report
from edgewright.standing import standings
from edgewright.streams import plain

_MARKDOWN = re.compile(r"([\\`*_\[\]<>!~&$])")
_WORD = re.compile(r"[\w][\w./-]{0,95}", re.ASCII)
_OBTAINED = (
    "Every figure says how it was obtained. *measured*: in the real runtime, on the machine that built it. "
    "*emulated*: with something in place of the phone or its runtime, which is named. *modelled*: calculated. "
    "*declared*: stated by a file. None was measured on a phone. ± is half of a 95 % confidence interval."
)


@dataclass(frozen=True)
class Package:
    """An artifact to be published, its place in the index, and the metadata of its own card."""

    folder: Path
    manifest: Manifest
    variant: Variant
    metadata: dict[str, Any]

    def text(self, key: str) -> str | None:
        """A word of the metadata; None where there is none, or none that is one."""
        found = self.metadata.get(key)
        return found if isinstance(found, str) and _WORD.fullmatch(found) else None

    def tags(self) -> list[str]:
        """The tags of its card that are words."""
        found = self.metadata.get("tags")
        return (
            [tag for tag in found if isinstance(tag, str) and _WORD.fullmatch(tag)] if isinstance(found, list) else []
        )


def page(index: Index, packages: Sequence[Package], repo: str) -> str:
    """The whole page, its metadata written by the Hub's own client."""
    from huggingface_hub import ModelCard, ModelCardData

    base = index.base_model
    data = ModelCardData(
        license=_common(packages, "license") or "unknown",
        library_name=_common(packages, "library_name") or "edgewright",
        pipeline_tag=_common(packages, "pipeline_tag"),
        base_model=base.repo if base else None,
        tags=list(dict.fromkeys([*(tag for package in packages for tag in package.tags()), "edgewright"])),
    )
    if base:
        data["base_model_relation"] = "quantized"
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n")
    card.text = "\n" + "\n".join(_body(index, packages, repo)).rstrip() + "\n"
    return str(card)


def _common(packages: Sequence[Package], key: str) -> str | None:
    found = {package.text(key) for package in packages}
    return found.pop() if len(found) == 1 else None


def _body(index: Index, packages: Sequence[Package], repo: str) -> Iterator[str]:
    base = index.base_model
    of = f"{_escaped(base.repo)} at commit `{base.revision}`" if base else "a local checkpoint"
    yield f"# {_escaped(index.recipe)}"
    yield f"\nPackages for phones of {of}, written and judged by Edgewright. Each folder is one package.\n"
    for package in packages:
        if package.variant.verdict != "passed":
            yield from _not_passed(package)
    yield from _rows(
        ["folder", "runtime", "in an app", "weights", "verdict"],
        [
            [
                f"`{package.variant.name}`",
                package.variant.target,
                text.sizes(package.variant.payload_bytes, package.variant.bytes),
                text.scheme(target_report(package.folder, package.manifest, None)),
                package.variant.verdict,
            ]
            for package in packages
        ],
    )
    good = (name for p in packages for name, judged in p.variant.profiles.items() if judged.verdict == "passed")
    phone = next(good, "PROFILE")
    yield "The package that passed on a phone, every byte of it checked:\n"
    yield f"```\nedgewright pull {repo} --profile {_argument(phone)} --out FOLDER\n```\n"
    yield f"An app chooses by `{INDEX}`. How a runtime loads a package is in its folder's `{CARD}`.\n"
    yield f"## What was found\n\n{_OBTAINED}\n"
    for package in packages:
        yield from _found(package)
    yield "## Quantization\n"
    yield from _rows(
        ["folder", "bits", "group", "symmetric", "method", "tensors", "parameters", "bytes"],
        [
            [
                f"`{package.variant.name}`",
                str(group.bits),
                str(group.group or ""),
                "yes" if group.symmetric else "no",
                _escaped(group.method),
                f"{group.tensors:,}",
                f"{group.parameters:,}",
                text.size(group.bytes),
            ]
            for package in packages
            for group in package.variant.quantization
        ],
    )


def _not_passed(package: Package) -> Iterator[str]:
    name = package.variant.name
    yield f"> **`{name}` did not pass ({package.variant.verdict}) and was published all the same.**"
    for found in standings(package.manifest, Path(name)):
        if found.verdict != "passed":
            yield f">\n> {_escaped(found.words)}"
    yield ""


def _found(package: Package) -> Iterator[str]:
    """Checks of the model by the last validation (by a recipe's limits, if there is one), and of phones as in the
    index."""
    records = sorted(package.manifest.validations, key=lambda item: (item.limits is not None, item.created))
    yield f"### `{package.variant.name}`\n"
    if not records:
        yield "Never validated.\n"
        return
    last = records[-1]
    yield f"{last.verdict} on {last.created}, on {_escaped(last.host)}.\n"
    checks = [check for check in last.checks if of_the_model(check)]
    checks += [check for judged in package.variant.profiles.values() for check in judged.checks]
    rows = [text.row(check) for check in checks]
    yield from _rows(
        ["", "check", "figure", "limit", "obtained", "verdict"],
        [
            [_escaped(cell) for cell in (row.group, row.name, row.figure, row.limit, text.obtained(row), row.verdict)]
            for row in rows
        ],
    )


def _rows(head: list[str], body: list[list[str]]) -> Iterator[str]:
    yield from table(head, body)
    yield ""


def _escaped(words: str) -> str:
    """Somebody's text as one line that Markdown shows as it is. A | is left to the table that it stands in."""
    return _MARKDOWN.sub(r"\\\1", plain(words, lines=False))


def _argument(name: str) -> str:
    """A phone's name in a command; a placeholder where it is more than a name."""
    return name if _WORD.fullmatch(name) else "PROFILE"
