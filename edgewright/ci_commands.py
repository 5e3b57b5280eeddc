"""The commands `report`, `matrix` and `baseline`: their arguments, and what they show.

What lives here: words on the command line. What must not: what they do (`edgewright/ci/`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewright import streams
from edgewright.arguments import command, group, output

if TYPE_CHECKING:
    from edgewright.ci.baseline import Comparison
    from edgewright.report import Report

_FILE = "baseline.json"


def declare(commands: Any) -> None:
    """Add all of them to the command line."""
    report = command(commands, "report", _report, "show a run's report again, or write it in the forms that CI reads")
    report.add_argument("folder", metavar="DIR", help="folder of a recipe's artifacts, which holds report.json")
    report.add_argument("--junit", metavar="FILE", help="write JUnit XML")
    report.add_argument("--summary", metavar="FILE", help="append a screen of Markdown ($GITHUB_STEP_SUMMARY)")
    report.add_argument("--baseline", metavar="FILE", help="compare with this baseline in the summary; fails nothing")
    report.add_argument("--recipe", metavar="NAME|PATH", help="recipe whose tolerances hold (section `baseline`)")
    output(report)

    matrix = command(commands, "matrix", _matrix, "print the jobs of recipes and targets as JSON, for a CI matrix")
    matrix.add_argument("recipe", nargs="+", metavar="NAME|PATH", help="a recipe that ships, or a recipe file")
    matrix.add_argument("--target", action="append", default=[], metavar="NAME", help="these targets alone")

    baseline = group(commands, "baseline", "update, check: the figures that later runs are held against")
    update = command(baseline, "update", _update, "write a run's figures as the baseline")
    check = command(baseline, "check", _check, "fail (exit 1) where a figure is worse than its baseline allows")
    for made in (update, check):
        made.add_argument("folder", metavar="DIR", help="folder of a recipe's artifacts, which holds report.json")
        made.add_argument("--file", default=_FILE, metavar="FILE", help=f"the baseline (default: {_FILE})")
    check.add_argument("--recipe", metavar="NAME|PATH", help="recipe whose tolerances hold (section `baseline`)")
    output(check)


def _report(args: argparse.Namespace) -> int:
    from artifacts import user_path
    from edgewright import render
    from edgewright.ci.junit import junit
    from edgewright.ci.summary import summary

    report = _read(args.folder)
    found = _compare(report, args.baseline, args.recipe) if args.baseline is not None else None
    if args.junit is not None:
        _write(user_path(args.junit, "--junit"), junit(report))
    if args.summary is not None:
        _append(user_path(args.summary, "--summary"), summary(report, found))
    if args.json:
        streams.write_json(report.model_dump(mode="json"))
    elif args.junit is None and args.summary is None:
        render.show(render.report(report))
        if found is not None:
            _show(found)
    return 0


def _matrix(args: argparse.Namespace) -> int:
    from edgewright.ci.matrix import matrix

    streams.write_json(matrix(args.recipe, args.target))
    return 0


def _update(args: argparse.Namespace) -> int:
    from artifacts import user_path
    from edgewright.ci.baseline import baseline_of

    made = baseline_of(_read(args.folder))
    _write(user_path(args.file, "--file"), made.text())
    count = sum(len(target.figures) for target in made.targets.values())
    streams.write_lines(f"{args.file}: {count} figures of {made.recipe} ({', '.join(made.targets)})")
    return 0


def _check(args: argparse.Namespace) -> int:
    found = _compare(_read(args.folder), args.file, args.recipe)
    if args.json:
        streams.write_json(found.model_dump(mode="json"))
    else:
        _show(found)
    return 1 if found.regressed else 0


def _show(found: Comparison) -> None:
    for item in found.differences:
        sign = "✗" if item.worse else "·"
        streams.write_lines(f"{sign} {item.target}  {item.label}: {item.change}")
    for reason in found.reasons:
        streams.write_lines(f"  {reason}")
    verdict = "worse than the baseline" if found.regressed else "within the baseline"
    if not found.differences:
        verdict = "every figure is what it was"
    streams.write(f"{verdict}\n")


def _compare(report: Report, file: str, recipe: str | None) -> Comparison:
    from artifacts import user_path
    from edgewright import api
    from edgewright.ci.baseline import baseline_of, compare, read_baseline
    from recipes.delivery import Tolerances

    section = api.load_recipe(recipe).baseline if recipe else None
    return compare(read_baseline(user_path(file, "FILE")), baseline_of(report), section or Tolerances())


def _read(folder: str) -> Report:
    from artifacts import user_path
    from edgewright.report import read_report

    return read_report(user_path(folder, "DIR"))


def _append(path: Path, text: str) -> None:
    with _explained(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def _write(path: Path, text: str) -> None:
    """Aside, then renamed: on a full disk the baseline of a project stays as it was. Not so where no file is."""
    import os

    with _explained(path):
        if path.exists() and not path.is_file():  # such as /dev/stdout
            path.write_text(text, encoding="utf-8")
            return
        target = Path(os.path.realpath(path))
        aside = target.with_name(f".edgewright-{os.getpid()}")  # a name that is short enough wherever `path` is
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    from artifacts import EdgewrightError

    try:
        yield
    except OSError as error:
        raise EdgewrightError(f"{path}: cannot be written ({error.strerror})") from error
