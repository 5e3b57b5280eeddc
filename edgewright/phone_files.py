"""Files of a validation on phones: `phones.md`, `phones.json`, memory over time as SVG, and `report.html`.

What must not live here: what a cell of the matrix says (`matrix.py`), and how a picture is drawn (`charts.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from artifacts import EdgewrightError
from edgewright import html_report, matrix
from edgewright.markdown import table
from edgewright.report import TargetReport, write
from edgewright.streams import plain

PHONES_MD, PHONES_JSON = "phones.md", "phones.json"


def write_files(folder: Path, target: TargetReport) -> None:
    """phones.md, phones.json, the time lines and the page, into a folder that is made. Raises EdgewrightError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgewrightError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    for name, drawn in matrix.pictures(target):
        write(folder, name, drawn)
    write(
        folder,
        PHONES_JSON,
        json.dumps({"phones": matrix.to_json(matrix.cells([target]))}, indent=2, allow_nan=False) + "\n",
    )
    html_report.write_artifact(folder, target)
    write(folder, PHONES_MD, plain("\n".join(_markdown([target])).rstrip() + "\n"))


def _markdown(targets: Sequence[TargetReport]) -> list[str]:
    """The lines of the matrix of artifacts and phones, what each peak is made of, and its pictures."""
    found = matrix.cells(targets)
    lines = ["# Memory on phones", "", *table(*matrix.rows(found)), ""]
    lines += [f"- {cell.artifact} on {cell.phone}: {cell.reason}" for cell in found if cell.memory != "fits"]
    lines += [f"- **Warning:** {warning}" for cell in found for warning in cell.warnings]
    made = {(cell.artifact, cell.largest): cell for cell in found if cell.largest}
    lines += [f"- Most of {cell.artifact}, in {cell.phase}: {', '.join(cell.largest)}" for cell in made.values()]
    for target in targets:
        for name, run, phones in matrix.runs(target):
            if len(run.time_line) > 1:
                lines += ["", f"{target.target} on {', '.join(phones)}, {matrix.conditions(run)}:", ""]
                lines.append(f"![Memory over time]({name})")
    return lines
