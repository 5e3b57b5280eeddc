"""The command `sweep`: its arguments, what it asks before a long one, and what is shown and written of it.

What lives here: words on the command line, and the files of a sweep. What must not: which variants there are
(`sweep.py`) and what is made of their reports (`sweep_table.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewright import streams
from edgewright.arguments import command, output, recipe_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgewright.sweep import LeftOut, Ran, Variant
    from edgewright.sweep_table import Row
    from recipes.schema import Recipe

_MARKS = {"passed": "✓", "failed": "✗"}
_MANY = 24  # variants that are run without a question


def declare(commands: Any) -> None:
    """Add it to the command line."""
    made = command(commands, "sweep", run, "run a recipe with other bits, groups and methods, and compare them")
    recipe_arguments(made)
    made.add_argument("--bits", default="", metavar="N,…", help="4, 8 or 16, of what no rule of its own excepts")
    made.add_argument("--group", default="", metavar="N,…", help="weights per scale, or channel")
    made.add_argument("--method", default="", metavar="NAME,…", help="quantization methods, as a rule names them")
    made.add_argument("--profile", action="append", default=[], metavar="NAME", help="phone instead of the recipe's")
    made.add_argument("--out", default="build", metavar="DIR", help="where runs leave theirs too (default: build)")
    made.add_argument(
        "--pick",
        metavar="LIMIT",
        help="write the recipe of the best within size=1.9GB, kl=0.01, ppl=3%% or psnr=0.5dB",
    )
    made.add_argument("--yes", action="store_true", help=f"do not ask before more than {_MANY} variants")
    output(made)


def run(args: argparse.Namespace) -> int:
    """0 where every variant came to its end, else the worst of their exit codes: a gate that failed is a finding here.
    Raises EdgewrightError, RecipeError."""
    from artifacts import EdgewrightError, user_path
    from edgewright import api, bars, sweep, sweep_table

    wanted = sweep_table.parse_pick(args.pick) if args.pick is not None else None
    recipe = api.load_recipe(args.recipe)
    found = sweep.choices(recipe, _bits(args.bits), _groups(args.group), _words(args.method))
    variants, left = sweep.variants(recipe, found, targets=args.target, checkpoint=args.checkpoint)
    if not variants:
        raise EdgewrightError(f"no variant can be run: {left[0].choice.name}: {left[0].reason}")
    folder = user_path(args.out, "--out") / f"{recipe.name}-sweep"
    ran: list[Ran] = []
    with bars.progress(shown=not args.json) as progress:
        for item in sweep.run(
            variants,
            out=args.out,
            targets=args.target,
            profiles=args.profile,
            checkpoint=args.checkpoint,
            progress=progress,
        ):
            ran.append(item)
            rows = sweep_table.rows(ran)
            _write(folder, recipe.name, rows, ran, left)
            if len(ran) == 1 and len(variants) > _MANY and not args.yes:
                _ask(len(variants), item.seconds)
    notes = _draw(folder, recipe.name, rows, ran, left)
    chosen = None
    if wanted is not None:
        best = sweep_table.picked(rows, wanted)
        chosen = _write_recipe(folder, recipe, next(v for v in variants if v.choice.name == best), wanted.said)
    _show(args, folder, recipe.name, rows, ran, left, notes, chosen)
    return max(item.exit_code for item in ran)


def _words(said: str) -> list[str]:
    return [word.strip() for word in said.split(",") if word.strip()]


def _bits(said: str) -> list[int]:
    from artifacts import EdgewrightError

    for word in (words := _words(said)):
        if word not in ("4", "8", "16"):
            raise EdgewrightError(f"--bits: must be 4, 8 or 16, not {word!r}")
    return [int(word) for word in words]


def _groups(said: str) -> list[int | str]:
    from artifacts import EdgewrightError

    for word in (words := _words(said)):
        if word != "channel" and not (word.isascii() and word.isdigit() and len(word) < 10):
            raise EdgewrightError(f"--group: must be a number of weights or channel, not {word!r}")
    return [word if word == "channel" else int(word) for word in words]


def _ask(count: int, seconds: float) -> None:
    """Whether to go on after the first variant. Raises EdgewrightError where nobody says yes."""
    from artifacts import EdgewrightError

    said = (
        f"{count:,} variants: the first took {_long(seconds)}, so the other {count - 1:,} take at the most about "
        f"{_long(seconds * (count - 1))}"
    )
    kept = "what is finished is kept, and the same command goes on from there"
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{said}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        raise EdgewrightError(f"stopped; {kept}")
    raise EdgewrightError(f"{said}; --yes runs them, and {kept}")


def _long(seconds: float) -> str:
    """A duration: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _write(folder: Path, name: str, rows: Sequence[Row], ran: Sequence[Ran], left: Sequence[LeftOut]) -> None:
    """The table so far, after every variant: what is finished stays when the rest is stopped."""
    from artifacts.store import make_folder
    from edgewright import report, sweep_table

    make_folder(folder)
    content = sweep_table.to_json(name, rows, ran, left)
    report.write(folder, "sweep.json", json.dumps(content, indent=2) + "\n")
    report.write(folder, "sweep.md", sweep_table.markdown(name, rows, ran, left, ()))


def _draw(folder: Path, name: str, rows: Sequence[Row], ran: Sequence[Ran], left: Sequence[LeftOut]) -> list[str]:
    """A picture for each target, which the table then shows; what is to be said where there can be none."""
    from edgewright import charts, report, sweep_picture, sweep_table

    if (missing := charts.missing()) is not None:
        return [missing]
    pictures = []
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        if (drawn := sweep_picture.svg(own, f"{name} → {target}")) is not None:
            pictures.append(report.write(folder, f"sweep-{target}.svg", drawn).name)
    report.write(folder, "sweep.md", sweep_table.markdown(name, rows, ran, left, pictures))
    return []


def _write_recipe(folder: Path, recipe: Recipe, variant: Variant, said: str) -> Path:
    """The best variant's recipe beside the table. Raises EdgewrightError where another is there."""
    from artifacts import EdgewrightError
    from edgewright import report
    from edgewright.recipe_text import varied

    place = folder / f"{variant.recipe.name}.yaml"
    words = varied(recipe, variant.recipe, f"the best of a sweep by --pick {said},")
    if place.is_file() and place.read_text(encoding="utf-8") != words:
        raise EdgewrightError(f"--pick: {place} is there already and says something else; move it away")
    return report.write(folder, place.name, words)


def _show(
    args: argparse.Namespace,
    folder: Path,
    name: str,
    rows: Sequence[Row],
    ran: Sequence[Ran],
    left: Sequence[LeftOut],
    notes: Sequence[str],
    chosen: Path | None,
) -> None:
    from edgewright import render, sweep_table, tables

    if args.json:
        content = sweep_table.to_json(name, rows, ran, left)
        streams.write_json({**content, "folder": str(folder), "picked": None if chosen is None else str(chosen)})
        return
    # what has words is not in the table, which shall stay within 80 columns: a mark, and lines below
    heads = sweep_table.columns(rows)[:-2]
    table = tables.table("<", *(f"<{head}" if head == "variant" else head for head in heads))
    for row in rows:
        table.add_row(_MARKS.get(row.verdict, "–"), *sweep_table.cells(row, rows)[:-2])
    render.show(table)
    beaten: dict[str, list[str]] = {}
    for row in rows:
        if row.dominated_by is not None:
            beaten.setdefault(row.dominated_by, []).append(row.variant)
    lines = [
        *(f"dominated by {best}: {', '.join(dict.fromkeys(worse))}" for best, worse in beaten.items()),
        sweep_table.NOTE,
        *(f"left out: {item.choice.name}: {item.reason}" for item in left),
    ]
    for line in lines:
        render.show(tables.padded(line, (0, 1)))
    render.show_warnings(notes)
    where = [("table", f"{folder}/sweep.md and sweep.json"), ("picked", "" if chosen is None else str(chosen))]
    render.show(tables.padded(tables.pairs(where), (1, 1)))
    for item in ran:
        if item.report is None:
            streams.say_error(f"{item.variant.choice.name}: {item.error}")
