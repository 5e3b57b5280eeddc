"""`edgewright compare`: artifacts, runs and folders of other tools side by side.

What lives here: its arguments, and the comparison as a screen of 80 columns, as CSV and as JSON. What must not: what a
side is (`compare_sides.py`), differences (`compare.py`) and running anything (`compare_measure.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgewright import streams
from edgewright.arguments import command, output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from artifacts import Check
    from device_farm import Profile
    from edgewright.compare import Against, Compared, Measured, Row
    from edgewright.compare_sides import Side

_WIDTH = 77
_BESIDE = 3  # columns that still read at 80
_COLUMNS = (
    *("group", "figure", "unit", "side", "path", "value", "low", "high", "verdict", "obtained"),
    *("difference", "relative", "difference_low", "difference_high", "interval"),
)
_METHODS = {
    "paired": "of differences token by token of the same text",
    "rounds": "of rounds that took turns on this machine",
    "combined": "of both sides' own intervals together, as of independent samples: wider than need be",
}


def declare(commands: Any) -> None:
    """The command's arguments."""
    made: argparse.ArgumentParser = command(
        commands, "compare", _run, "hold artifacts, runs and folders of other tools against the first of them"
    )
    made.add_argument(
        "artifact",
        nargs="+",
        metavar="PATH",
        help="artifact, run's folder, report.json, or a folder of onnxruntime-genai or the mlx-community",
    )
    made.add_argument("--target", metavar="NAME", help="of runs that hold several")
    made.add_argument("--profile", action="append", default=[], metavar="NAME", help="measure memory on this phone")
    made.add_argument(
        "--measure", action="store_true", help="run all of them now (always done beside a folder of another tool)"
    )
    made.add_argument("--csv", metavar="FILE", help="write every figure and difference to FILE")
    output(made)


def _run(args: argparse.Namespace) -> int:
    from artifacts import user_path
    from device_farm import load_profile
    from edgewright import bars, render
    from edgewright.compare import compared
    from edgewright.compare_measure import measure
    from edgewright.compare_sides import require_validated, sides

    table = user_path(args.csv, "--csv") if args.csv else None
    found = sides(args.artifact, args.target)
    measured: list[Measured] = []
    whole, running = True, args.measure or bool(args.profile) or any(side.kind for side in found)
    if not running:
        require_validated(found)
    else:
        names = args.profile or _phones(found)
        phones: list[Profile] = [load_profile(str(user_path(name, "--profile"))) for name in names]
        with bars.progress(shown=not args.json) as progress:
            measured, whole = measure(found, phones, progress)
    result = compared(found, measured)
    if table is not None:
        _write_csv(table, found, result)
    if args.json:
        described = [
            {"name": s.letter, "path": str(s.path), "what": s.what, "weights": s.scheme, "checkpoint": s.checkpoint}
            for s in found
        ]
        streams.write_json({"sides": described, **result.model_dump(mode="json")})
    else:
        render.show(_shown(found, result, running))
    return 0 if whole else 1


def _phones(found: Sequence[Side]) -> list[str]:
    """The phones on which memory is recorded, where nobody names any."""
    from device_farm import list_profiles

    known = list_profiles()
    return list(dict.fromkeys(key[0] for side in found for key in side.checks if key[0] in known))


def _shown(found: Sequence[Side], result: Compared, measured: bool) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from edgewright import tables

    head = [line for s in found for line in ((s.letter, str(s.path)), (" ", f"{s.what}, {s.scheme}"))]
    parts: list[RenderableType] = [tables.padded(tables.pairs(head), (1, 0, 0, 1))]
    clear = [row for row in result.rows if not row.same and not row.unsure]
    unsure = [row for row in result.rows if row.unsure]
    same = [row for row in result.rows if row.same]
    for title, rows in (("Differences to A", clear), ("Within their intervals", unsure)):
        if rows:
            parts.append(tables.padded(Text(title, style="bold"), (1, 0, 0, 1)))
            parts += [_table(found, rows, columns) for columns in _panels(len(found))]
    parts.append(tables.padded(Text.assemble(("The same in all: ", "bold"), _folded(same)), (0, 1)))
    for letter, reasons in result.reasons.items():
        lines = "".join(f"\n  {reason}" for reason in reasons)
        parts.append(
            tables.padded(
                Text.assemble((f"What else is different in {letter}:", "bold"), lines or " nothing"), (1, 1, 0, 1)
            )
        )
    notes = [*result.notes, *_intervals(result, measured)]
    parts.append(tables.padded(Group(*(Text(f"note: {note}", style="dim") for note in notes)), (1, 1, 0, 1)))
    return _Narrow(Group(*parts))


class _Narrow:
    """No wider than 80 columns, however wide the terminal is: columns of figures are read across."""

    def __init__(self, what: RenderableType) -> None:
        self._what = what

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield from console.render(self._what, options.update_width(min(options.max_width, 80)))


def _panels(count: int) -> Iterator[list[int]]:
    """Columns of each table: the first side in all of them."""
    step = _BESIDE - 1
    for begin in range(1, count, step):
        yield [0, *range(begin, min(count, begin + step))]


def _table(found: Sequence[Side], rows: Sequence[Row], columns: Sequence[int]) -> RenderableType:
    from edgewright import tables
    from edgewright.streams import plain

    made = tables.table("", *(f"{found[at].letter} {found[at].what}" for at in columns))
    width = 16 if len(columns) > 2 else 20  # of a column of figures; what is left is the label's
    made.columns[0].width = _WIDTH - len(columns) * (width + 1)
    for column in made.columns[1:]:
        column.width = width
    group = None
    for row in rows:
        if row.group != group:
            made.add_row(plain(row.group, lines=False), *[""] * len(columns), style="dim")
            group = row.group
        cells = [_cell(row.cells[at], row.against[at - 1] if at else None) for at in columns]
        made.add_row(f"  {plain(row.label, lines=False)}", *cells)
    return made


def _cell(check: Check | None, against: Against | None) -> str:
    from edgewright import text

    if check is None:
        return "–"
    lines = [text.quantity(check.value, check.unit)] if check.value is not None else []
    if check.verdict not in (None, "passed"):
        lines.append(check.verdict)
    if against is not None and against.value != 0:
        lines.append(_difference(against, check.unit))
    return "\n".join(lines)


def _difference(item: Against, unit: str) -> str:
    """`+12.0 ± 0.4 %`."""
    half = None if item.interval is None else (item.interval[1] - item.interval[0]) / 2
    if item.relative or unit in ("fraction", "change"):
        behind = " %" if item.relative else " pt"
        shown, by = f"{100 * item.value:+,.2f}", None if half is None else f"{100 * half:,.2f}"
    else:
        behind, shown, by = f" {unit}", f"{item.value:+.1e}", None if half is None else f"{half:.0e}"
    return f"{shown} ± {by}{behind}" if by is not None else f"{shown}{behind}"


def _folded(rows: Sequence[Row]) -> str:
    from edgewright import text

    shown: dict[str, list[str]] = {}
    for row in rows:
        first = next(cell for cell in row.cells if cell is not None)
        value = (
            first.verdict if row.group == "parity" or first.value is None else text.quantity(first.value, first.unit)
        )
        shown.setdefault(row.group, []).append(f"{row.label} {value}")
    parity = shown.pop("parity", [])
    lines = [f"{group}: {', '.join(found)}" for group, found in shown.items()]
    if parity:
        lines.append(f"parity: the verdict of {len(parity)} checks")
    return "; ".join(lines) or "nothing"


def _intervals(result: Compared, measured: bool) -> Iterator[str]:
    """Which intervals these are, and what has none."""
    for method, words in _METHODS.items():
        used = [row.label for row in result.rows if any(item and item.method == method for item in row.against)]
        if used:
            yield f"± is the 95 % interval {words}: {'; '.join(used)}"
    if not measured:
        yield "what has no ± was measured once; --measure runs all of them now, with an interval for each"
    elif any(cell and cell.name == "peak_memory" for row in result.rows for cell in row.cells):
        yield "memory is of one run each"


def _write_csv(path: Any, found: Sequence[Side], result: Compared) -> None:
    import csv
    import io

    from artifacts import EdgewrightError

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in result.rows:
        for at, (side, check) in enumerate(zip(found, row.cells, strict=True)):
            if check is None:
                continue
            by = row.against[at - 1] if at else None
            ends, around = check.interval or ("", ""), (by and by.interval) or ("", "")
            apart = [by.value, by.relative, *around, by.method or ""] if by else [""] * 5
            value = "" if check.value is None else check.value
            known = [row.group, row.label, check.unit, side.letter, side.path, value, *ends]
            writer.writerow([*known, check.verdict or "", check.obtained or "", *apart])
    try:
        path.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise EdgewrightError(f"--csv: {path}: cannot be written ({error.strerror}); name another place") from error
