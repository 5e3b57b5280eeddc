"""Runs of several recipes: one after another in this process, or their stages side by side in processes of their own.

What lives here: what comes after what, and that one failure stops nothing else. What must not: where a stage runs
(`local.py`, `cluster.py`), what it does (`steps.py`) and how anything is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from artifacts import EdgewrightError, Progress, prefixed
from compiler.plan import plan
from edgewright import __version__, api
from edgewright.parallel.stages import Arguments, Ended, Executor, Kind, Order, Stage, memory
from edgewright.report import Report, Reused, TargetReport
from edgewright.steps import Run
from recipes.errors import RecipeError
from recipes.schema import Recipe

_EXPECTED = (RecipeError, EdgewrightError)


@dataclass(frozen=True)
class Failure:
    """What did not come to its end: a recipe or one of its stages, why, and the exit code."""

    name: str
    error: str
    exit_code: int


@dataclass
class Outcome:
    """A recipe's report, of the targets that came to their end, and what failed."""

    recipe: str
    report: Report | None = None
    failures: list[Failure] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The worst."""
        gate = int(self.report is not None and self.report.verdict == "failed")
        return max([gate, *(failure.exit_code for failure in self.failures)])


def one_by_one(recipes: Sequence[str], given: Arguments, progress: Progress) -> Iterator[Outcome]:
    """`api.run` of each recipe."""
    for recipe in recipes:
        outcome = Outcome(recipe)
        said = prefixed(progress, recipe) if len(recipes) > 1 else progress
        try:
            outcome.report = api.run(
                recipe,
                out=given.out,
                targets=given.targets,
                profiles=given.profiles,
                checkpoint=given.checkpoint,
                validate=given.validate_,
                fresh=given.fresh,
                progress=said,
            )
        except _EXPECTED as error:
            outcome.failures.append(Failure(recipe, str(error), error.exit_code))
        yield outcome


def side_by_side(recipes: Sequence[str], given: Arguments, executor: Executor, progress: Progress) -> list[Outcome]:
    """The same packages and reports by stages that run beside one another where `executor` has room.

    recipes: of different names. On any exception, Ctrl-C included, all that runs is ended.
    """
    outcomes = {recipe: Outcome(recipe) for recipe in recipes}
    names = {recipe: api.load_recipe(recipe).name for recipe in recipes}
    jobs: dict[str, _Job] = {}
    with ExitStack() as held:
        for recipe in sorted(recipes, key=names.__getitem__):  # two commands with the same ones wait in one order
            outcome, said = outcomes[recipe], prefixed(progress, names[recipe])
            try:
                run = opened(recipe, given)
                with ExitStack() as own:
                    own.enter_context(run.held(said))
                    outcome.report = run.asked.unchanged()
                    if outcome.report is None:
                        jobs[recipe] = _Job(recipe, run, given, outcome, said)
                    held.push(own.pop_all())
            except _EXPECTED as error:
                outcome.failures.append(Failure(recipe, str(error), error.exit_code))
        held.callback(executor.close)  # while the recipes are held
        begun = [recipe for recipe in recipes if recipe in jobs]
        for recipe in begun:
            executor.submit(jobs[recipe].begin())
        running = len(begun)
        while running:
            stage, ended = executor.wait()
            following = jobs[stage.order.recipe].follow(stage, ended)
            for item in following:
                executor.submit(item)
            running += len(following) - 1
    return list(outcomes.values())


class _Job:
    """The stages of one recipe: weights, then packages, each followed by its validation, then the report."""

    def __init__(self, recipe: str, run: Run, given: Arguments, outcome: Outcome, progress: Progress) -> None:
        self._recipe, self._run, self._given, self._outcome = recipe, run, given, outcome
        self._began, self._since = time.monotonic(), time.time()
        run.clear()
        found = run.locate(progress).checkpoint
        self._plans = {item.target: item for item in plan(run.recipe, found.config, found.names())}
        self._weights_reused = False
        self._reused: dict[str, tuple[Reused, ...]] = {}
        self._judged: dict[str, TargetReport] = {}
        self._open = 1  # stages that were handed out and have not ended

    def begin(self) -> Stage:
        """The first stage."""
        return self._stage("quantize")

    def follow(self, stage: Stage, ended: Ended) -> list[Stage]:
        """What can begin now that a stage has ended."""
        kind, target, found = stage.order.kind, stage.order.target, ended.done
        following: list[Stage] = []
        if found is None:
            self._outcome.failures.append(Failure(stage.name, ended.error, ended.exit_code))
        elif kind == "quantize":
            self._weights_reused = found.reused_weights
            following = [self._stage("package", name) for name in self._run.finals]
        elif kind == "package":
            self._reused[target] = found.reused
            following = [self._stage("validation", target)] if self._given.validate_ else []
        elif found.judged is not None:
            self._judged[target] = found.judged
        else:
            self._outcome.report = found.report
        self._open += len(following) - 1
        if not self._open and kind != "report" and (ready := self._ready()):
            self._open, following = (
                1,
                [self._stage("report", targets=ready if len(ready) < len(self._run.finals) else ())],
            )
        return following

    def _ready(self) -> tuple[str, ...]:
        """The targets that came to their end."""
        wanted = self._judged if self._given.validate_ else self._reused
        return tuple(target for target in self._run.finals if target in wanted)

    def _stage(self, kind: Kind, target: str = "", targets: tuple[str, ...] = ()) -> Stage:
        report = kind == "report"
        order = Order(
            version=__version__,
            kind=kind,
            recipe=self._recipe,
            digest=self._run.whole.digest,
            arguments=self._given.model_copy(update={"targets": targets or self._given.targets}),
            target=target,
            since=self._since,
            took=time.monotonic() - self._began,
            reused_weights=self._weights_reused,
            reused=self._reused if report else {},
            judged=self._judged if report else {},
        )
        plans = [self._plans[target]] if target else list(self._plans.values())
        name = ": ".join(filter(None, [self._run.recipe.name, target, kind]))
        return Stage(name, order, memory(kind, plans))


def opened(recipe: Recipe | str, given: Arguments) -> Run:
    """A run before its first step. Raises as `api.run`."""
    return api.opened(
        recipe,
        out=given.out,
        targets=given.targets,
        profiles=given.profiles,
        checkpoint=given.checkpoint,
        validate=given.validate_,
        fresh=given.fresh,
    )
