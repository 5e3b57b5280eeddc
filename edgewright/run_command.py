"""The command `run`: its arguments, where its stages go, and what is shown of them.

What lives here: words on the command line. What must not: what a run does (`steps.py`, `parallel/`).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgewright import streams
from edgewright.arguments import command, output, recipe_arguments

if TYPE_CHECKING:
    from artifacts import Progress
    from edgewright.parallel import Outcome


def declare(commands: Any) -> None:
    """Add it to the command line."""
    arguments(command(commands, "run", run, "build and validate everything that recipes ask for"))


def arguments(made: argparse.ArgumentParser) -> None:
    """All that it takes."""
    recipe_arguments(made, several=True)
    made.add_argument("--out", default="build", metavar="DIR", help="artifacts land in DIR/<recipe>/ (default: build)")
    made.add_argument("--profile", action="append", default=[], metavar="NAME", help="phone instead of the recipe's")
    made.add_argument("--no-validate", action="store_true", help="build without the runtime test")
    made.add_argument("--fresh", action="store_true", help="do everything again, whatever an earlier run finished")
    made.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="stages side by side at the most, as cores and memory allow (default: 1)",
    )
    made.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="where stages run: on this machine, or on a Ray cluster that shares this folder and --out",
    )
    output(made, quiet="show nothing but the verdict, warnings, and why it failed")


def run(args: argparse.Namespace) -> int:
    """Exit code of the worst."""
    from artifacts import EdgewrightError
    from edgewright import bars

    if args.workers is not None and args.workers < 1:
        raise EdgewrightError(f"--workers is {args.workers}; give 1 or more")
    if args.checkpoint is not None and len(args.recipe) > 1:
        raise EdgewrightError("--checkpoint goes with one recipe; run the others in a command of their own")
    with bars.progress(shown=not (args.json or args.quiet)) as progress:
        outcomes = _outcomes(args, progress)
    if args.json:
        _show_json(outcomes)
    else:
        for outcome in outcomes:
            _show(outcome, args.quiet)
    for outcome in outcomes:
        _say_errors(outcome, several=len(outcomes) > 1)
    return max(outcome.exit_code for outcome in outcomes)


def _outcomes(args: argparse.Namespace, progress: Progress) -> list[Outcome]:
    from edgewright import parallel
    from edgewright.ci.matrix import distinct
    from edgewright.parallel.stages import Arguments, Executor

    given = Arguments(
        out=args.out,
        targets=tuple(args.target),
        profiles=tuple(args.profile),
        checkpoint=args.checkpoint,
        validate_=not args.no_validate,
        fresh=args.fresh,
    )
    if len(args.recipe) > 1:
        distinct(args.recipe)
    if args.executor == "local" and (args.workers or 1) == 1:
        return list(parallel.one_by_one(args.recipe, given, progress))
    executor: Executor
    if args.executor == "ray":
        from edgewright.parallel.cluster import RayExecutor

        executor = RayExecutor(args.workers, progress)
    else:
        from edgewright.parallel.local import LocalExecutor

        executor = LocalExecutor(args.workers, progress)
    return parallel.side_by_side(args.recipe, given, executor, progress)


def _show(outcome: Outcome, quiet: bool) -> None:
    from edgewright import render

    if (report := outcome.report) is not None and quiet:
        render.show(render.verdict_line(report))
        render.show_reasons(report.targets)
        render.show_warnings(report.warnings)
    elif report is not None:
        render.show(render.report(report))


def _say_errors(outcome: Outcome, *, several: bool) -> None:
    for failure in outcome.failures:
        where = f"{failure.name}: " if several or failure.name != outcome.recipe else ""
        streams.say_error(where + failure.error)


def _show_json(outcomes: list[Outcome]) -> None:
    shown = []
    for outcome in outcomes:
        errors = [{"name": item.name, "message": item.error, "exit_code": item.exit_code} for item in outcome.failures]
        report = outcome.report and outcome.report.model_dump(mode="json")
        shown.append({"recipe": outcome.recipe, "report": report, "errors": errors})
    (first, *others) = shown
    if others:
        streams.write_json({"runs": shown})
    elif first["errors"]:
        worst = max(outcomes[0].failures, key=lambda failure: failure.exit_code)
        streams.write_json({"error": {"message": worst.error, "exit_code": worst.exit_code}})
    else:
        streams.write_json(first["report"])
