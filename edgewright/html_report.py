"""`report.html`: a run, or one artifact's validation, as a page of one file that asks no network for anything.

What lives here: what the page says, put in order for `report.html.jinja`, which says how it looks. What must not:
what the pictures draw (`charts.py`), figures as words (`text.py`), and HTML.

Text that others chose is escaped by the template, JSON by its filter `tojson`; the page's own policy forbids to load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from artifacts import Check, EdgewrightError, read_manifest
from compiler.quantize import evidence
from edgewright import charts, matrix, text
from edgewright.report import REPORT_HTML, Host, MemoryRun, Report, TargetReport, host, write
from edgewright.standing import GOOD, reasons
from edgewright.streams import plain
from edgewright.text import size

_MOST_TENSORS = 4000  # in a picture; the table has the worst of them
_WORST_TENSORS = 100
_TONES = {"tight": "warn", "not assessed": "warn", "not validated": "warn", "not for this platform": "none"}
_SIGNS = {"good": "✓", "warn": "!", "bad": "✗", "none": "–"}


def write_run(report: Report) -> None:
    """Write a run's page beside report.md; nothing where what draws it is missing. Raises EdgewrightError."""
    at = f" at {report.checkpoint.revision}" if report.checkpoint.revision else ""
    about = {
        "Recipe": f"{report.recipe.name}, digest {report.recipe.digest[:16]}",
        "Checkpoint": report.checkpoint.source + at,
        "Made": f"{report.created} in {report.seconds} s",
        "Reused": ", ".join(report.reused),
        "Machine": _machine(report.host),
    }
    notes = [f"Stale, in no verdict here: {item.artifact}: {item.reason}" for item in report.stale]
    page = _page(report.recipe.name, report.verdict, report.targets, about, report.tools, [*report.warnings, *notes])
    _write(Path(report.folder), page)


def write_artifact(folder: Path, found: TargetReport) -> None:
    """Write the page of one artifact's validation into a folder, as `write_run` does."""
    manifest = read_manifest(Path(found.artifact))
    at = f" at {manifest.checkpoint.revision}" if manifest.checkpoint.revision else ""
    about = {
        "Recipe": f"{manifest.recipe.name}, digest {manifest.recipe.digest[:16]} with target {manifest.target} alone",
        "Checkpoint": manifest.checkpoint.source + at,
        "Made": found.created,
        "Machine": _machine(host()),
    }
    title = f"{manifest.recipe.name}, {manifest.target}"
    _write(folder, _page(title, found.verdict, [found], about, manifest.created_by, []))


def _machine(made: Host) -> str:
    return f"{made.cpu}, {made.cores} cores, {size(made.memory_bytes)} memory, {made.system}"


def _write(folder: Path, page: str | None) -> None:
    if page is not None:
        write(folder, REPORT_HTML, page)


def _page(
    title: str,
    verdict: str,
    targets: Sequence[TargetReport],
    about: Mapping[str, str],
    tools: Mapping[str, str],
    warnings: Sequence[str],
) -> str | None:
    if charts.missing() is not None:
        return None
    pictures = _Pictures()
    environment = Environment(
        loader=PackageLoader("edgewright", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda shown: shown if isinstance(shown, Markup) else plain(str(shown)),
    )
    environment.globals.update(
        error=charts.weight_error,
        text=text,
        size=size,
        tone=tone,
        sign=lambda word: _SIGNS[tone(word)],
        picture=pictures,
    )
    body = environment.get_template("report.html.jinja").render(
        title=title,
        verdict=verdict,
        targets=targets,
        about=about,
        tools=tools,
        warnings=[*warnings, *(f"{item.target}: {line}" for item in targets for line in item.warnings)],
        reasons=[(item.target, line) for item in targets for line in reasons(item)],
        matrix=_matrix(targets),
        shares=charts.shares(targets),
        sizes=charts.sizes(targets) if targets else None,
        latencies=_latencies(targets),
        memory=[(item, [_run(item, *found) for found in matrix.runs(item) if found[1].phases]) for item in targets],
        weights=_weights(targets),
        specs=pictures.specs,
        # a script ends at the first </script, wherever that is
        runtime=Markup(charts.runtime().replace("</script", "<\\/script").replace("<!--", "<\\!--")),
    )
    return str(body)


class _Pictures:
    """Numbers the pictures of a page as its template comes to them."""

    def __init__(self) -> None:
        self.specs: list[charts.Spec] = []

    def __call__(self, spec: charts.Spec) -> str:
        self.specs.append(spec)
        return f"picture-{len(self.specs)}"


def tone(verdict: str | None) -> str:
    """good, warn, bad or none: what a verdict looks like beside its word."""
    known = _TONES.get(verdict or "not for this platform")
    return known or ("good" if verdict in GOOD else "bad")


def _matrix(targets: Sequence[TargetReport]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """A row for each phone, with a cell for each target: what memory came to, and all that is known of why."""
    phones = dict.fromkeys(phone.profile for target in targets for phone in target.phones)
    cells = {(cell.phone, cell.artifact): cell for cell in matrix.cells(targets)}
    found = {(phone.profile, target.target): phone for target in targets for phone in target.phones}
    rows = []
    for name in phones:
        row: list[dict[str, Any] | None] = []
        for target in targets:
            phone = found.get((name, target.target))
            if phone is None:
                row.append(None)
                continue
            cell = cells[name, target.target]
            others = [text.row(check) for check in phone.checks[1:]]
            word = "failed" if phone.verdict == "failed" and tone(cell.memory) != "bad" else cell.memory
            row.append({"cell": cell, "phone": phone, "word": word, "others": others})
        rows.append((name, row))
    return rows


def _run(target: TargetReport, _: str, run: MemoryRun, names: list[str]) -> dict[str, Any]:
    """A memory run: its picture, in words what that shows, and the phones that were judged by it."""
    phones = [phone for phone in target.phones if phone.profile in names]
    most = max(run.phases, key=lambda phase: phase.peak_anonymous_bytes + phase.peak_file_bytes)
    said = (
        f"{target.target} for {charts.few(names)}, {matrix.conditions(run)}: most in the phase {most.phase}, "
        f"{size(most.peak_anonymous_bytes)} anonymous and {size(most.peak_file_bytes)} file-backed."
    )
    if above := charts.beyond(run, phones):
        said += f" Limits above the picture: {', '.join(f'{phone} {size(limit)}' for phone, limit in above)}."
    return {"spec": charts.memory(run, phones), "said": said, "run": run, "limits": charts.limits(phones)}


def _latencies(targets: Sequence[TargetReport]) -> list[tuple[charts.Spec, str, list[tuple[str, str, Check]]]]:
    """Modelled figures by what they are of, each with its picture and its rows."""
    named: dict[tuple[str, str], list[tuple[str, str, Check]]] = {}
    for target in targets:
        for phone in target.phones:
            for check in phone.checks:
                if check.band is not None and check.unit != "bytes":
                    named.setdefault((check.label, check.unit), []).append((target.target, phone.profile, check))
    return [(charts.latency(name, unit, rows), name, rows) for (name, unit), rows in named.items()]


def _weights(targets: Sequence[TargetReport]) -> list[dict[str, Any]]:
    """What quantization did to every tensor, once for the targets that hold the same weights."""
    found: list[tuple[evidence.QuantizationEvidence | str, list[str]]] = []
    for target in targets:
        known = _evidence(Path(target.artifact))
        same = next((names for other, names in found if other == known), None)
        if same is None:
            found.append((known, [target.target]))
        else:
            same.append(target.target)
    return [
        {
            "targets": ", ".join(names),
            "problem": known if isinstance(known, str) else "",
            "tensors": () if isinstance(known, str) else known.tensors[:_WORST_TENSORS],
            "count": 0 if isinstance(known, str) else len(known.tensors),
            "spec": None if isinstance(known, str) else _strip(known.tensors),
        }
        for known, names in found
    ]


def _strip(found: Sequence[evidence.TensorEvidence]) -> charts.Spec | None:
    return charts.tensors(found[:_MOST_TENSORS]) if found else None


def _evidence(artifact: Path) -> evidence.QuantizationEvidence | str:
    try:
        return evidence.read(artifact, read_manifest(artifact))
    except EdgewrightError as error:
        return str(error)
